"""The three terms of the objective, and the losses of Hugging Face's own heads."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import batch, tiny, wrapped
from torch import distributions

from asa_mini import asa_objective, symmetric_divergence
from asa_mini.errors import InputError
from asa_mini.heads import check_head, predicted_by, task_loss

seeds = st.integers(0, 10**6)


def two(seed: int, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, *shape, generator=generator, dtype=torch.float64) * 2)


def kl_both_ways(p: distributions.Distribution, q: distributions.Distribution) -> torch.Tensor:
    """By PyTorch's definition, one number for each prediction."""
    return (distributions.kl_divergence(p, q) + distributions.kl_divergence(q, p)) / 2


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 4), st.integers(2, 4))
def test_divergence_of_classes(seed, rows, classes):
    a, b = two(seed, rows, classes)
    divergence = symmetric_divergence(a, b)
    torch.testing.assert_close(divergence, symmetric_divergence(b, a))
    expected = kl_both_ways(*(distributions.Categorical(logits=x) for x in (a, b))).mean()
    torch.testing.assert_close(divergence, expected)
    assert divergence > 0 and symmetric_divergence(a, a) == 0
    assert symmetric_divergence(a, a + 3).abs() < 1e-12  # the same prediction


def test_divergence_by_hand():
    a, b = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)  # p = (3/4, 1/4), q = (1/2, 1/2)
    assert symmetric_divergence(a, b).item() == pytest.approx(0.5 * (0.25 * math.log(3)))


def test_divergence_of_labels_knows_that_each_is_on_its_own():
    a, b = two(0, 5, 3)
    expected = kl_both_ways(*(distributions.Bernoulli(logits=x) for x in (a, b))).sum() / 5
    torch.testing.assert_close(symmetric_divergence(a, b, "bernoulli"), expected)
    all_of_them = torch.full((1, 3), 9.0)  # all or none: every label differs, the softmax does not
    assert symmetric_divergence(all_of_them, -all_of_them) == 0
    assert symmetric_divergence(all_of_them, -all_of_them, "bernoulli") > 20


def test_divergence_of_scores():
    a, b = two(0, 5, 1)
    expected = kl_both_ways(*(distributions.Normal(x, 1.0) for x in (a, b))).mean()
    torch.testing.assert_close(symmetric_divergence(a, b, "gaussian"), expected)
    across = kl_both_ways(*(distributions.Categorical(logits=x[:, 0]) for x in (a, b))) / 5
    torch.testing.assert_close(symmetric_divergence(a, b, "batch_softmax"), across)


def test_divergence_of_tokens_is_a_sum_or_a_mean_over_the_real_ones():
    a, b = two(0, 3, 7, 4)
    by_token = kl_both_ways(*(distributions.Categorical(logits=x) for x in (a, b)))
    torch.testing.assert_close(symmetric_divergence(a, b), by_token.sum() / 3)
    real = torch.arange(7) < torch.tensor([[7], [4], [1]])
    torch.testing.assert_close(symmetric_divergence(a, b, real=real), by_token[real].mean())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_divergence_is_computed_in_float32_at_least(dtype):
    a, b = (x.to(dtype) for x in two(0, 4, 3))
    expected = symmetric_divergence(a.double(), b.double())
    torch.testing.assert_close(symmetric_divergence(a, b), expected.float(), rtol=1e-5, atol=0)


def test_both_sides_of_the_divergence_learn():
    a, b = (x.requires_grad_() for x in two(0, 3, 2))
    symmetric_divergence(a, b).backward()
    assert a.grad.any() and b.grad.any()


def test_objective_puts_the_terms_together():
    a, b = two(0, 3, 2)
    out = asa_objective(torch.tensor(2.0), a, b, torch.tensor(10.0), alpha=0.7, temperature=0.5)
    assert out.loss.item() == pytest.approx(2 + 0.7 * symmetric_divergence(a, b).item() + 0.25 * 10)
    assert (out.task_loss, out.kept_units) == (2, 10) and out.divergence == symmetric_divergence(a, b)


def labels_of(kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 3, (4, 8), generator=generator)
    tokens[:, ::3] = -100  # tokens that do not count
    return {
        "classes": torch.tensor([0, 2, 1, 1]),
        "scores": torch.tensor([0.3, -1.0, 2.0, 0.0]),
        "several": torch.randint(0, 2, (4, 3), generator=generator).float(),
        "tokens": tokens,
        "choice": torch.tensor([1, 0]),
    }[kind]


# Family, head, labels, options of its config, what it predicts.
HEADS = [
    ("bert", "SequenceClassification", "classes", dict(num_labels=3), "class"),
    ("bert", "SequenceClassification", "scores", dict(num_labels=1), "scores"),
    ("bert", "SequenceClassification", "several", dict(num_labels=3), "labels"),
    ("bert", "TokenClassification", "tokens", dict(num_labels=3), "tokens"),
    ("bert", "MaskedLM", "tokens", {}, "words"),
    ("bert", "CausalLM", "tokens", dict(is_decoder=True), "words"),
    ("bert", "MultipleChoice", "choice", {}, "choice"),
    ("modernbert", "MaskedLM", "tokens", {}, "words"),
    ("llama", "SequenceClassification", "classes", dict(num_labels=3), "class"),
    ("llama", "TokenClassification", "tokens", dict(num_labels=3), "tokens"),
    ("llama", "CausalLM", "tokens", {}, "words"),
]


def inputs_of(task: str, kind: str) -> dict:
    inputs = batch() | {"labels": labels_of(kind)}
    if task == "MultipleChoice":
        inputs |= {name: inputs[name].reshape(2, 2, 8) for name in ("input_ids", "attention_mask")}
    return inputs


@pytest.mark.parametrize(
    "family, task, kind, options, predicted", HEADS, ids=lambda x: x if isinstance(x, str) else ""
)
def test_task_loss_is_the_model_s_own(family, task, kind, options, predicted):
    model = tiny(family, task, **options)
    check_head(model)
    inputs = inputs_of(task, kind)
    assert predicted_by(model, inputs["labels"]) == predicted
    plain = model(**inputs)
    torch.testing.assert_close(task_loss(model, plain.logits, inputs["labels"]), plain.loss, rtol=0, atol=0)

    out = wrapped(model)(**inputs)
    torch.testing.assert_close(out.logits, plain.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.task_loss, plain.loss, rtol=1e-5, atol=1e-5)
    assert out.adversarial_logits.shape == plain.logits.shape and out.divergence > 0


@pytest.mark.parametrize(
    "kind, options, likelihood",
    [
        ("several", {}, "bernoulli"),
        ("scores", {}, "batch_softmax"),
        ("scores", {"regression_likelihood": "gaussian"}, "gaussian"),
    ],
)
def test_a_model_s_divergence_has_the_likelihood_of_its_head(kind, options, likelihood):
    model = tiny(num_labels=1 if kind == "scores" else 3)
    out = wrapped(model, **options)(**inputs_of("SequenceClassification", kind))
    assert out.divergence == symmetric_divergence(out.logits, out.adversarial_logits, likelihood)


@pytest.mark.parametrize("padded", [True, False])
def test_divergence_over_real_tokens_knows_no_padding(padded):
    """More padding, and a second copy of the batch, change nothing; over all tokens they do."""
    inputs = {**batch(padded=padded), "labels": torch.zeros(4, 8, dtype=torch.long)}
    longer = {name: F.pad(x, (0, 3), value=-100 if name == "labels" else 0) for name, x in inputs.items()}
    for over, same in (("real_tokens", True), ("all_tokens", False)):
        model = wrapped(tiny(task="TokenClassification", num_labels=3), divergence_over=over)
        assert torch.allclose(model(**inputs).divergence, model(**longer).divergence) == same
    model.asa_config.divergence_over = "real_tokens"
    dense = inputs["attention_mask"].bool()[:, None, None].expand(4, 1, 8, 8)
    with pytest.raises(InputError, match=r"needs an attention_mask of \(4, 8\).* not of \(4, 1, 8, 8\)"):
        model(**inputs | {"attention_mask": dense})


@pytest.mark.parametrize(
    "family, task, kind",
    [("bert", "SequenceClassification", "classes")]
    + [
        (family, task, "tokens")
        for family in ("bert", "llama")
        for task in ("TokenClassification", "CausalLM")
    ],
)
def test_subclass_has_the_loss_of_what_it_inherits_from(family, task, kind):
    model = tiny(family, task, **(dict(num_labels=3) if task != "CausalLM" else dict(is_decoder=True)))
    inputs = batch() | {"labels": labels_of(kind)}
    expected = wrapped(model)(**inputs)
    model = tiny(family, task, **(dict(num_labels=3) if task != "CausalLM" else dict(is_decoder=True)))
    model.__class__ = type("MyEncoder", (type(model),), {})
    model.loss_type = None  # what transformers makes of such a name
    assert torch.equal(wrapped(model)(**inputs).loss, expected.loss)


def test_subclass_with_a_forward_of_its_own():
    """Its loss may be weighted, or another one altogether."""
    model = tiny()
    model.__class__ = type("Mine", (type(model),), {"forward": lambda self, **_: None})
    with pytest.raises(InputError, match=r"Mine has a forward of its own.*set model\.loss_function"):
        check_head(model)
    model.loss_function = torch.nn.functional.cross_entropy
    check_head(model)


def test_loss_function_of_the_user():
    model = tiny("bert", "SequenceClassification")
    model.loss_function = lambda logits, labels, **_: logits.sum() * 0 + labels.sum()
    inputs = batch()
    assert wrapped(model)(**inputs).task_loss == inputs["labels"].sum()


@pytest.mark.parametrize("task", ["", "QuestionAnswering", "PreTraining", "NextSentencePrediction"])
def test_heads_without_a_known_loss(task):
    model = tiny("bert", task)
    with pytest.raises(InputError, match=f"{type(model).__name__} has no head.*AutoModelForSequenceClass"):
        wrapped(model)
    assert model.config._attn_implementation == "sdpa"


def mean_after_a_step(side: str, term: str, rate: float) -> tuple[float, float]:
    """A term before and after one SGD step of one side alone, mean of five random models."""
    before = after = 0.0
    for seed in range(5):
        model = wrapped(tiny(), seed=seed)
        inputs = batch(seed=seed)
        out = model(**inputs)
        out[term].backward()
        side_of_model = {"adversary": model.adversaries, "model": model.model}[side]
        torch.optim.SGD(side_of_model.parameters(), rate).step()
        before += out[term].item() / 5
        after += model(**inputs)[term].item() / 5
    return before, after


def test_adversary_ascends_the_divergence():
    before, after = mean_after_a_step("adversary", "divergence", 0.1)
    assert after > 1.1 * before


def test_adversary_ascends_the_kept_units():
    before, after = mean_after_a_step("adversary", "kept_units", 1e-2)
    assert after > 1.1 * before


@pytest.mark.parametrize("term", ["divergence", "task_loss"])
def test_model_descends(term):
    before, after = mean_after_a_step("model", term, 1e-3)
    assert after < before
