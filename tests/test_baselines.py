"""The priors and the perturbations that ASA is compared with."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tiny import batch, checkpoint, tiny
from tiny_text import tokenizer

from asa_mini.errors import InputError
from asa_mini.look.capture import capture
from asa_mini.train.baselines import _prior_attention_forward, attention_prior, perturbed_embeddings


def attention_inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 2, 6, 4, generator=generator, dtype=torch.float64) for _ in range(3)]


def attend(kind, strength, q, k, v, allowed):
    module = torch.nn.Module()
    module.is_causal, module.training = False, True
    output, _ = _prior_attention_forward(module, q, k, v, allowed, prior=(kind, strength), scaling=0.5)
    return output.transpose(1, 2)


def padding():
    allowed = torch.ones(3, 1, 6, 6, dtype=torch.bool)
    allowed[1, ..., 4:] = False
    allowed[2, ..., :2] = False
    return allowed


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_smoothing_is_the_bias_of_its_definition(padded, strength):
    q, k, v = attention_inputs()
    allowed = padding() if padded else torch.ones(3, 1, 6, 6, dtype=torch.bool)
    scores = (0.5 * q @ k.mT).masked_fill(~allowed, -torch.inf)
    a, n = scores.softmax(-1), allowed.sum(-1, keepdim=True)
    bias = torch.log((1 - strength) + strength / (n * a))
    expected = (scores + bias).masked_fill(~allowed, -torch.inf).softmax(-1) @ v
    output = attend("smoothing", strength, q, k, v, allowed if padded else None)
    torch.testing.assert_close(output, expected)


def test_random_mask_hides_the_given_share_and_never_shows_padding():
    q, k, _ = attention_inputs()
    one_hot = torch.eye(6, dtype=torch.float64).expand(3, 2, 6, 6)  # its output is the attention itself
    torch.manual_seed(0)
    weights = torch.stack(
        [attend("random_mask", 0.3, q, k, one_hot, padding()) for _ in range(200)]
    )  # (200, B, H, L, L)
    allowed = padding().expand(3, 2, 6, 6)
    assert not weights[:, ~allowed].any()
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))
    hidden = (weights[:, allowed] == 0).double().mean()
    assert abs(hidden - 0.3) < 0.01
    assert torch.equal(weights[:, :, 0] == 0, weights[:, :, 1] == 0)  # one mask for all heads
    everything = attend("random_mask", 1.0, q, k, one_hot, padding())
    torch.testing.assert_close(
        everything, attend(None, 0.0, q, k, one_hot, padding())
    )  # a bias on all is none


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert"])
@pytest.mark.parametrize("kind", ["random_mask", "smoothing"])
def test_a_prior_acts_in_training_alone_and_leaves_no_trace(family, kind):
    model, inputs = tiny(family, attention="eager"), batch()
    train, evaluate = model(**inputs).logits, model.eval()(**inputs).logits
    with attention_prior(model.train(), kind, 0.5):
        under_prior = model(**inputs).logits
        torch.testing.assert_close(model.eval()(**inputs).logits, evaluate, rtol=1e-4, atol=1e-5)
    assert (under_prior - train).abs().max() > 1e-3
    assert torch.equal(model.train()(**inputs).logits, train)
    assert model.config._attn_implementation == "eager" and not model._forward_pre_hooks


def test_a_prior_goes_after_a_failure_too():
    model = tiny(attention="eager")
    with pytest.raises(ZeroDivisionError), attention_prior(model, "smoothing", 0.5):
        raise ZeroDivisionError
    assert model.config._attn_implementation == "eager" and not model._forward_pre_hooks


def test_no_prior_is_plain_attention():
    model, inputs = tiny(), batch()
    plain = model(**inputs).logits
    for kind in ("random_mask", "smoothing"):
        with attention_prior(model, kind, 0.0):
            torch.testing.assert_close(model(**inputs).logits, plain)


def test_random_masks_are_the_same_when_recomputed():
    """Under gradient checkpointing the backward pass must meet the masks of the forward pass."""
    gradients = []
    for checkpointing in (False, True):
        model = tiny()
        if checkpointing:
            checkpoint(model, reentrant=False)
        torch.manual_seed(0)
        with attention_prior(model, "random_mask", 0.5):
            model(**batch()).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_refusals():
    with pytest.raises(InputError, match="unknown prior 'window'"):
        attention_prior(tiny(), "window", 0.1).__enter__()
    with pytest.raises(InputError, match=r"from 0 to 1, but is 1\.5"):
        attention_prior(tiny(), "smoothing", 1.5).__enter__()
    with pytest.raises(InputError, match="causal decoder"):
        attention_prior(tiny("llama"), "smoothing", 0.1).__enter__()
    with pytest.raises(InputError, match="asks for a classifier, which BertForTokenClassification is not"):
        perturbed_embeddings(tiny(task="TokenClassification"), batch(), size=0.1)
    with pytest.raises(InputError, match="size must be at least 0"):
        perturbed_embeddings(tiny(), batch(), -1.0)


@pytest.mark.parametrize("steps", [1, 5])
def test_perturbation_stays_in_its_ball_and_hurts_more_than_a_random_one(steps):
    model = tiny().eval()
    inputs = {name: x for name, x in batch().items() if name != "labels"}
    x = model.get_input_embeddings()(inputs["input_ids"]).detach()
    size = 0.2 * (x * inputs["attention_mask"][..., None]).norm(dim=(1, 2))  # (B,)
    moved = perturbed_embeddings(model, inputs, 0.2, steps)
    real = inputs["attention_mask"].bool()
    assert torch.equal(moved[~real], x[~real])
    distance = (moved - x).norm(dim=(1, 2))
    assert (distance <= size * (1 + 1e-5)).all()
    if steps == 1:
        torch.testing.assert_close(distance, size)

    prediction = model(**inputs).logits.argmax(-1)

    def loss(embeddings):
        logits = model(inputs_embeds=embeddings, attention_mask=inputs["attention_mask"]).logits
        return F.cross_entropy(logits, prediction, reduction="none")

    noise = torch.randn_like(x) * real[..., None]
    noise = noise * (size / noise.norm(dim=(1, 2)))[:, None, None]
    assert (loss(moved) > loss(x)).all() and (loss(moved) > loss(x + noise)).all()


def test_more_steps_hurt_more():
    model = tiny().eval()
    inputs = {name: x for name, x in batch(size=16).items() if name != "labels"}
    prediction = model(**inputs).logits.argmax(-1)
    losses = []
    for steps in (1, 10):
        moved = perturbed_embeddings(model, inputs, 1.0, steps)
        logits = model(inputs_embeds=moved, attention_mask=inputs["attention_mask"]).logits
        losses.append(F.cross_entropy(logits, prediction))
    assert losses[1] > losses[0]


def test_capture_takes_a_perturbation():
    model = tiny()
    options = {"tokenizer": tokenizer(), "texts": ["a fine film", "a very dull story"], "max_length": 32}
    untouched = capture(model, perturb=partial(perturbed_embeddings, size=0.0), **options)
    moved = capture(model, perturb=partial(perturbed_embeddings, size=0.5), **options)
    for before, after in zip(untouched, moved, strict=True):
        assert abs(before.adversarial - before.clean).max() < 1e-5
        assert abs(after.clean - before.clean).max() < 1e-5
        assert abs(after.adversarial - before.clean).max() > 1e-3
