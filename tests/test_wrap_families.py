"""Every supported family under ASA: training, evaluation, padding, causality, and the way back."""

import pytest
import torch
import transformers
from tiny import FAMILIES, PAD, SMALL, batch, every_mode, step, tiny, wrapped

import asa_mini
from asa_mini.errors import InputError
from asa_mini.hf import AsaPass
from asa_mini.look.recording import Recording, read_masks

FOUND = dict.fromkeys(FAMILIES, 2) | {"albert": 1}  # ALBERT shares one layer
every_family = pytest.mark.parametrize("family", FAMILIES)


def plain_logits(model, **inputs) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**inputs).logits


@every_family
@every_mode
def test_training(family, joint):
    model = wrapped(tiny(family, dropout=True), joint_pass=joint)
    assert len(model.adversaries) == FOUND[family]
    out, gradients = step(model, **batch())
    assert isinstance(out, asa_mini.AsaOutput)
    assert out.logits.shape == out.adversarial_logits.shape == (4, 2)
    assert out.kept_share.shape == (2,) and ((out.kept_share > 0) & (out.kept_share < 1)).all()
    for name in ("loss", "task_loss", "divergence", "kept_units"):
        assert out[name].shape == () and out[name].isfinite(), name
    assert out.divergence > 0
    expected = out.task_loss + out.divergence + 0.25 * out.kept_units
    torch.testing.assert_close(out.loss, expected)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if name.startswith("adversaries."):
            assert gradients[name].any(), name


@every_family
@every_mode
def test_padding_cannot_matter(family, joint):
    """Trap 1: without the mask function, "asa" would attend to padding and say nothing."""
    model = wrapped(tiny(family), joint_pass=joint)
    short = batch(padded=False)  # transformers gives no mask at all for it
    long = short | {
        "input_ids": torch.nn.functional.pad(short["input_ids"], (0, 3), value=PAD),
        "attention_mask": torch.nn.functional.pad(short["attention_mask"], (0, 3)),
    }
    a, b = model(**short), model(**long)
    for name in ("logits", "adversarial_logits"):
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)
    assert (a.logits - a.adversarial_logits).abs().max() > 1e-4  # so the adversary did something


def keep_everything(model: asa_mini.AsaModel) -> asa_mini.AsaModel:
    for name, parameter in model.adversaries.named_parameters():
        torch.nn.init.constant_(parameter, 1.0 if name.endswith("bias") else 0.0)
    return model


@every_family
@pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "padded"])
def test_adversary_that_keeps_everything_changes_nothing(family, padded):
    out = keep_everything(wrapped(tiny(family)))(**batch(padded=padded))
    assert (out.kept_share == 1).all()
    torch.testing.assert_close(out.adversarial_logits, out.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_attention_dropout_in_the_adversarial_pass(family, rate):
    name = "attention_probs_dropout_prob" if family == "bert" else "attention_dropout"
    model = keep_everything(wrapped(tiny(family, **{name: rate})))
    a, b = (model(**batch()).adversarial_logits for _ in range(2))
    assert torch.equal(a, b) == (rate == 0)


@every_family
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_evaluation_is_the_plain_model_bit_for_bit(family, attention):
    inputs = batch()
    model = tiny(family, attention=attention)
    expected = plain_logits(model, **inputs)
    model.train()
    model = wrapped(model)
    model(**inputs)
    assert model.config._attn_implementation == "asa"
    assert torch.equal(plain_logits(model, **inputs), expected)
    assert model.config._attn_implementation == attention
    inputs.pop("labels")
    assert model(**inputs).get("loss") is None


def test_attention_maps_in_evaluation():
    """Trap 4: `output_attentions` is an empty tuple under anything but eager."""
    inputs = batch()
    model = tiny(attention="eager").eval()
    expected = model(**inputs, output_attentions=True).attentions
    ours = wrapped(model.train()).eval()(**inputs, output_attentions=True).attentions
    assert len(ours) == 2 and all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


@every_family
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_unwrap(family, attention):
    model = tiny(family, attention=attention)
    modules = list(model.modules())
    state = {name: x.clone() for name, x in model.state_dict().items()}
    asa = wrapped(model)
    asa(**batch())
    assert asa.unwrap() is model
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in modules)
    assert model.config._attn_implementation == attention
    assert model.training

    with pytest.raises(InputError, match="was unwrapped"):
        asa(**batch())
    assert asa.unwrap() is model  # a second time does no harm
    again = wrapped(model)
    asa.train()  # the old wrapper has no say any more
    assert again(**batch()).kept_units > 0


def test_wrapping_twice():
    model = tiny()
    asa = wrapped(model, layers=())
    for twice in (asa, model):
        with pytest.raises(InputError, match=r"wrapped already.*unwrap"):
            asa_mini.wrap(twice)


@pytest.mark.parametrize("task", ["TokenClassification", "CausalLM"])
@pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "padded"])
@pytest.mark.parametrize("options", [{}, {"layers": [1]}, {"joint_pass": False}], ids=str)
def test_causal_decoder_does_not_look_ahead(task, padded, options):
    """Neither in the adversarial half, nor in the clean one, nor in a layer that is not attacked."""
    model = wrapped(tiny("llama", task), **options)
    inputs = batch(padded=padded) | {"labels": torch.zeros(4, 8, dtype=torch.long)}
    before = model(**inputs)
    changed = inputs["input_ids"].clone()
    changed[:, 5] = 7
    after = model(**inputs | {"input_ids": changed})
    for half in ("logits", "adversarial_logits"):
        torch.testing.assert_close(after[half][:, :5], before[half][:, :5], rtol=1e-5, atol=1e-6)
        moved = (after[half][0, 5:] - before[half][0, 5:]).abs().amax(-1)
        assert moved.min() > 1e-4  # later tokens do see it

    for mask in read_masks(model, input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]):
        assert mask.any() and not mask.triu(1).any()


def test_decoder_without_a_padding_token():
    """transformers classifies without one, but one sequence at a time."""
    model = tiny("llama", pad_token_id=None)
    with pytest.raises(
        InputError, match=r"set model\.config\.pad_token_id, or AsaConfig\(joint_pass=False\)"
    ):
        wrapped(model)
    assert wrapped(model, joint_pass=False)(**batch(size=1)).loss.isfinite()
    model = tiny("llama", "TokenClassification", pad_token_id=None)
    assert wrapped(model)(**batch() | {"labels": torch.zeros(4, 8, dtype=torch.long)}).loss.isfinite()


def test_sliding_windows_stay():
    """ModernBERT's local layers: ASA's mask is combined with the window, never put in its place."""
    model = wrapped(tiny("modernbert", local_attention=4))
    everywhere, local = read_masks(model, input_ids=batch(padded=False)["input_ids"])
    distance = (torch.arange(8)[:, None] - torch.arange(8)).abs()
    assert not local[:, distance > 2].any() and local[:, distance <= 2].any()
    assert everywhere[:, distance > 2].any()


def test_masks_are_those_of_the_training_pass():
    model = wrapped(tiny(dropout=True, attention="eager"))
    inputs = {name: x for name, x in batch().items() if name != "labels"}
    masks = read_masks(model, **inputs)
    assert model.training and model.model.training and model.config._attn_implementation == "asa"
    model.model.eval()  # no dropout, but still the adversarial attention
    asa = AsaPass(joint=False, record=(recording := Recording()))
    out = model.model(**inputs, asa=asa)
    assert out.logits.grad_fn is not None
    for ours, theirs, kept in zip(masks, recording.masks, asa.kept_units, strict=True):
        assert ours.dtype == torch.bool and torch.equal(ours, theirs)
        assert not ours[~inputs["attention_mask"].bool()[:, None].expand(4, 8, 8)].any()
        assert ours.sum() / 4 == kept


UNSUPPORTED = {
    "deberta-v2": {},
    "mpnet": {},
    "t5": dict(d_model=16, num_heads=2, d_kv=8, d_ff=16, num_layers=1),
    "gemma2": dict(
        head_dim=8, num_key_value_heads=2
    ),  # its scores go through a soft cap, which the adversarial pass would skip
}


def unsupported(family: str) -> transformers.PreTrainedModel:
    config = transformers.AutoConfig.for_model(family, **SMALL | UNSUPPORTED[family])
    return transformers.AutoModelForSequenceClassification.from_config(config).train()


@pytest.mark.parametrize("family", UNSUPPORTED)
def test_unsupported_family(family):
    model = unsupported(family)
    plain = model.config._attn_implementation
    with pytest.raises(ValueError, match=f"{family} models do not.*supported families: bert, roberta"):
        asa_mini.wrap(model)
    assert model.config._attn_implementation == plain
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("family", ["deberta-v2", "mpnet"])
def test_family_that_only_claims_to_be_supported(family):
    model = unsupported(family)
    model._supports_attention_backend = True
    with pytest.raises(InputError, match="supported families: bert, roberta"):
        asa_mini.wrap(model)


def test_attention_that_is_never_called(monkeypatch):
    model = tiny()
    eager = transformers.models.bert.modeling_bert.eager_attention_forward
    monkeypatch.setattr(
        transformers.models.bert.modeling_bert.ALL_ATTENTION_FUNCTIONS, "get_interface", lambda *_: eager
    )
    with pytest.raises(InputError, match="supported families: bert, roberta"):
        asa_mini.wrap(model)
