"""What only a GPU can show: whether the compiled kernels are right, repeat themselves, and save memory.

`make gpu` runs these tests first; `errors` and the like go into results/gpu_tests.json.
"""

from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from tiny import assert_same, batch, gradients, tiny, wrapped
from tiny import step as training_step

from asa_mini.bench.attention import Case, measure, step
from asa_mini.bench.measuring import compile_ahead, peak_mib

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
NAMES = ("output", "kept", "d_q", "d_k", "d_v", "d_adversary_q", "d_adversary_k")
# Each type, D, odd length, mask and dropout is other machine code. With a mask, and L % 128 = 64 as for 320,
# PyTorch's own gradients have been NaN on Hopper (pytorch issue 196678).
SHAPES = product((2048, 320, 449), (False, True), (0.0, 0.1))
CASES = [Case(2, length, padded=padded, dropout=dropout) for length, padded, dropout in SHAPES]
CASES += [
    Case(2, 321, dim=32),
    Case(2, 257, 4, 128, padded=True),
    Case(2, 200, 4, 64, "float32", padded=True),
]
POISON = 2**28  # numbers: 1 GiB
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(scope="module", autouse=True)
def compiled():
    compile_ahead(partial(measure, "triton", timed=False), CASES)


def run(kind: str, case: Case, poison: int = 0) -> list[torch.Tensor]:
    """One step, in memory that holds so many numbers of NaN before."""
    inputs = case.inputs()
    torch.full((poison,), float("nan"), device=inputs[0].device)
    torch.manual_seed(0)
    return step(kind, inputs, torch.ones_like(inputs[0]), case.dropout)


@pytest.mark.parametrize("case", [case for case in CASES if not case.dropout], ids=str)
def test_as_exact_as_the_reference(case, record_property):
    """Against the reference in float64, the kernels err as it does itself in the case's dtype."""
    rounded = case.inputs()
    weights = torch.linspace(-1, 1, rounded[0].numel(), device=rounded[0].device).reshape(rounded[0].shape)
    exact = [x.detach().double().requires_grad_() for x in rounded[:5]] + rounded[5:]
    expected = step("reference", exact, weights.to(rounded[0]).double())
    errors = {}
    for kind in ("triton", "reference"):
        found = zip(NAMES, step(kind, rounded, weights.to(rounded[0])), expected, strict=True)
        errors[kind] = {name: ((x.double() - e).norm() / e.norm()).item() for name, x, e in found}
    record_property("errors", errors)
    eps = torch.finfo(rounded[0].dtype).eps
    # 4, because float32 products made of three tf32 ones are a bit or two less exact.
    bounds = {name: 4 * error + 8 * eps for name, error in errors["reference"].items()}
    bounds["kept"] = 1e-4  # a score within rounding of 0 may be kept here and masked there
    wrong = {name: error for name, error in errors["triton"].items() if not error <= bounds[name]}
    assert wrong == {}  # NaN is not below anything


@every_case
def test_the_same_bits_ten_times(case):
    first, *others = [run("triton", case, POISON) for _ in range(11)]
    assert [name for name, x in zip(NAMES, first, strict=True) if not x.isfinite().all()] == []
    for other in others:
        differing = [name for name, a, b in zip(NAMES, first, other, strict=True) if not torch.equal(a, b)]
        assert differing == []


@every_case
def test_pytorchs_own_gradients_are_finite(case):
    """By whatever backend it takes: the plain half of a step."""
    *tensors, _, _, allowed = case.inputs()
    output = F.scaled_dot_product_attention(*tensors, allowed, case.dropout)
    for gradient in torch.autograd.grad(output.float().square().sum(), tensors):
        assert gradient.isfinite().all()


def test_memory_is_a_tenth_of_the_dense_reference(record_property):
    peaks = {}
    for kind in ("triton", "reference"):
        run(kind, long := Case(1, 8192))  # compiles
        peaks[kind] = peak_mib(lambda kind=kind: run(kind, long))
    record_property("peak_mib", peaks)
    assert peaks["triton"] < peaks["reference"] / 10


def test_a_sequence_trains_that_the_dense_reference_cannot_hold():
    for result in run("triton", Case(1, 32768)):
        assert result.isfinite().all() and result.any()


def test_compiled_by_inductor():
    torch._dynamo.reset()
    data = {name: x.cuda() for name, x in batch().items()}
    model = wrapped(tiny(), backend="triton").cuda()
    expected, grads = training_step(model, **data)
    model.zero_grad()
    out = torch.compile(model, fullgraph=True)(**data)
    out.loss.backward()
    torch.testing.assert_close(out.loss, expected.loss, rtol=1e-4, atol=1e-4)
    assert_same(gradients(model), grads, tolerance=1e-3)
