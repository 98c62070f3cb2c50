"""Wrapped models on the Triton kernels give what they give on the reference."""

import logging
from types import SimpleNamespace

import pytest
import torch
import transformers
from attention_cases import DEVICE, triton_only
from tiny import assert_same, assert_same_terms, batch, checkpoint, gradients, step, tiny, wrapped

from asa_mini import hf as interface
from asa_mini.errors import InputError

pytestmark = triton_only


def on_device(inputs: dict) -> dict:
    return {name: x.to(DEVICE) for name, x in inputs.items()}


def both(family="bert", prepare=lambda model: model, inputs=None, **options):
    """The output and gradients of a step on the reference, then on triton."""
    inputs = on_device(inputs or batch(2))
    for backend in ("reference", "triton"):
        model = wrapped(tiny(family), backend=backend, **options).to(DEVICE)
        assert model.asa_backend == backend
        yield step(prepare(model), **inputs)


@pytest.mark.parametrize(
    "family, padded, joint",
    [
        ("bert", True, True),
        ("bert", False, False),
        ("distilbert", True, False),
        ("llama", False, True),  # causal, and two heads share keys
        ("llama", True, False),
    ],
)
def test_a_step(family, padded, joint):
    (a, expected), (b, ours) = both(family, inputs=batch(2, padded=padded), joint_pass=joint)
    assert_same_terms(b, a)
    assert_same(ours, expected, tolerance=1e-4)


def test_reentrant_gradient_checkpointing():
    (a, expected), (b, ours) = both(prepare=lambda model: checkpoint(model, reentrant=True))
    assert_same_terms(b, a)
    assert_same(ours, expected, tolerance=1e-4)


def test_dropout_is_repeated_under_gradient_checkpointing():
    found = []
    for prepare in (lambda model: model, lambda model: checkpoint(model, reentrant=False)):
        model = prepare(wrapped(tiny(dropout=True, attention_probs_dropout_prob=0.4), backend="triton"))
        torch.manual_seed(0)
        found.append(step(model.to(DEVICE), **on_device(batch(2))))
    (a, expected), (b, ours) = found
    assert_same_terms(a, b)
    assert_same(ours, expected)


def test_bf16_autocast():
    expected, _ = step(wrapped(tiny(), backend="reference").to(DEVICE), **on_device(batch(2)))
    model = wrapped(tiny(), backend="triton").to(DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        out = model(**on_device(batch(2)))
    out.loss.backward()
    torch.testing.assert_close(out.loss, expected.loss, rtol=0.05, atol=0.05)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_compile():
    """`fullgraph` turns every graph break into an error."""
    torch._dynamo.reset()
    model = wrapped(tiny(num_hidden_layers=1), backend="triton").to(DEVICE)
    expected, grads = step(model, **on_device(batch(2)))
    model.zero_grad()
    out = torch.compile(model, backend="aot_eager", fullgraph=True)(**on_device(batch(2)))
    out.loss.backward()
    assert_same_terms(out, expected)
    assert_same(gradients(model), grads)


def test_padding_mask_is_never_dense(monkeypatch):
    """(B, 1, 1, L) reaches the kernels; an L x L mask would make memory quadratic again."""
    seen = []
    original = interface.asa_attention

    def spy(*args, **options):
        seen.append((args[5].shape, options["causal"]))
        return original(*args, **options)

    monkeypatch.setattr(interface, "asa_attention", spy)
    for family, causal in (("bert", False), ("llama", True)):
        wrapped(tiny(family), backend="reference")(**batch(4, 8))
        assert seen == 2 * [((4, 1, 1, 8), causal)]
        seen.clear()


def test_sliding_windows_are_refused_by_name():
    model = wrapped(tiny("modernbert"), backend="triton").to(DEVICE)
    with pytest.raises(InputError, match=r"padding and causal masks.*backend='reference'"):
        model(**on_device(batch(2)))


class TestAuto:
    @pytest.fixture
    def on_gpu(self, monkeypatch):
        """The backend that a model would have there."""

        def backend(model, capability=(8, 0), **options):
            model = wrapped(model, **options)
            with monkeypatch.context() as patch:
                patch.setattr(transformers.PreTrainedModel, "device", torch.device("cuda"))
                properties = SimpleNamespace(major=capability[0], minor=capability[1])
                patch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
                return model.asa_backend

        return backend

    def test_reference_on_the_cpu(self):
        assert wrapped(tiny()).asa_backend == "reference"

    def test_triton_on_a_gpu(self, on_gpu):
        assert on_gpu(tiny()) == on_gpu(tiny("distilbert")) == "triton"
        assert on_gpu(tiny(), backend="reference") == "reference"

    def test_reference_on_a_gpu_for_what_the_kernels_cannot_do(self, on_gpu):
        assert on_gpu(tiny(), capability=(7, 5)) == "reference"
        assert on_gpu(tiny("modernbert")) == "reference"
        assert on_gpu(tiny().double()) == "reference"
        assert on_gpu(tiny(hidden_size=256, num_attention_heads=1)) == "reference"

    def test_the_log_says_which(self, caplog):
        with caplog.at_level(logging.INFO, "asa_mini"):
            model = wrapped(tiny(), backend="reference")
            for _ in range(2):
                model(**batch())
        assert [r.message for r in caplog.records] == ["ASA attention backend: reference, on cpu"]
