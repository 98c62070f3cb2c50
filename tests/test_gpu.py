"""What only a GPU can show: memory, long sequences, races between programs, the compiled model."""

import pytest
import torch
from tiny import assert_same, batch, gradients, step, tiny, wrapped

from asa_mini import asa_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
HEADS, DIM = 12, 64


def inputs(batch_size: int, length: int) -> list[torch.Tensor]:
    def random(*shape):
        x = torch.randn(*shape, generator=generator, device="cuda")
        return x.to(torch.bfloat16).requires_grad_()

    generator = torch.Generator("cuda").manual_seed(0)
    attended = [random(batch_size, HEADS, length, DIM) for _ in range(3)]
    return attended + [random(batch_size, length, HEADS * DIM) for _ in range(2)]


def train(tensors: list[torch.Tensor], backend: str, dropout: float = 0.0) -> list[torch.Tensor]:
    torch.manual_seed(0)
    output, kept, _ = asa_attention(*tensors, backend=backend, dropout=dropout)
    return [output, *torch.autograd.grad(output.float().square().mean() + kept.mean(), tensors)]


def peak_bytes(backend: str, length: int) -> int:
    tensors = inputs(1, length)
    train(tensors, backend)  # compiles
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    train(tensors, backend)
    return torch.cuda.max_memory_allocated() - before


def test_memory_is_a_tenth_of_the_dense_reference():
    assert peak_bytes("triton", 8192) < peak_bytes("reference", 8192) / 10


def test_a_sequence_trains_that_the_dense_reference_cannot_hold():
    for result in train(inputs(1, 32768), "triton"):
        assert result.isfinite().all() and result.any()


def test_no_races():
    tensors = inputs(4, 2048)
    first, second = train(tensors, "triton", dropout=0.1), train(tensors, "triton", dropout=0.1)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_compiled_by_inductor():
    torch._dynamo.reset()
    data = {name: x.cuda() for name, x in batch().items()}
    model = wrapped(tiny(), backend="triton").cuda()
    expected, grads = step(model, **data)
    model.zero_grad()
    out = torch.compile(model, fullgraph=True)(**data)
    out.loss.backward()
    torch.testing.assert_close(out.loss, expected.loss, rtol=1e-4, atol=1e-4)
    assert_same(gradients(model), grads, tolerance=1e-3)
