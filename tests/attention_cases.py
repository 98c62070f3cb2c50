"""Arguments of `asa_attention` for its tests: random, of any shape, and the two extreme masks."""

import sys
from dataclasses import dataclass, replace

import interpreted  # noqa: F401
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from asa_mini import asa_attention

triton_only = pytest.mark.skipif(sys.platform != "linux", reason="triton exists for Linux only")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # of the kernels
# What every backend has to do, every backend is asked to do.
every_backend = pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=triton_only)])
# Relative to the largest entry; the kernels know no float64.
TOLERANCES = {"reference": 1e-9, "triton": 1e-5}


@dataclass
class Case:
    """The arguments of one call, in their order."""

    q: Tensor
    k: Tensor
    v: Tensor
    adversary_q: Tensor
    adversary_k: Tensor
    allowed: Tensor | None = None

    def run(self, backend="reference", **options) -> tuple[Tensor, Tensor, Tensor]:
        """For triton, on its device, float64 computed in float32; the results come back as they went."""
        given = arguments(self)
        if backend == "triton":
            given = [x if x is None else x.to(DEVICE) for x in given]
            given = [x.float() if x is not None and x.dtype == torch.float64 else x for x in given]
        output, *counts = asa_attention(*given, backend=backend, **options)
        count_dtype = torch.promote_types(self.adversary_q.dtype, torch.float32)
        return output.to(self.q), *(count.to("cpu", count_dtype) for count in counts)

    def step(self, names: str = "q k v adversary_q adversary_k", **options) -> dict[str, Tensor]:
        """Output, kept and allowed units, and the gradients of a scalar that weighs each differently."""
        leaves = {name: getattr(self, name).detach().requires_grad_() for name in names.split()}
        output, kept, allowed = replace(self, **leaves).run(**options)
        weights = torch.arange(1.0, output.numel() + 1, dtype=torch.float64).sin().reshape(output.shape)
        total = (output.double() * weights).sum() + 0.3 * kept.sum()
        gradients = dict(zip(leaves, torch.autograd.grad(total, leaves.values()), strict=True))
        return {"output": output.detach(), "kept": kept.detach(), "allowed": allowed} | gradients

    def gradients(self, names: str = "q k v adversary_q adversary_k", **options) -> dict[str, Tensor]:
        step = self.step(names, **options)
        return {name: step[name] for name in names.split()}


def arguments(case: Case) -> tuple:
    return tuple(getattr(case, name) for name in case.__dataclass_fields__)


def make(batch=2, kv_heads=2, groups=1, length=5, dim=3, width=4, seed=0, dtype=torch.float64) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    heads = kv_heads * groups
    return Case(
        random(batch, heads, length, dim),
        random(batch, kv_heads, length, dim),
        random(batch, kv_heads, length, dim),
        random(batch, length, width),
        random(batch, length, width),
    )


def padding(batch: int, length: int, seed: int) -> Tensor:
    """(B, 1, 1, L), at least one real token in each row."""
    real = torch.randint(1, length + 1, (batch, 1), generator=torch.Generator().manual_seed(seed))
    return (torch.arange(length) < real)[:, None, None]


@st.composite
def cases(draw):
    """Random shapes and values, no mask; few heads, since the interpreter takes them one by one."""
    two, three = st.integers(1, 2), st.integers(1, 3)
    sizes = draw(st.tuples(two, two, two, st.integers(1, 7), three, three))
    return make(*sizes, seed=draw(st.integers(0, 10**6)))


@st.composite
def padded_cases(draw):
    case = draw(cases())
    case.allowed = padding(case.q.shape[0], case.q.shape[2], draw(st.integers(0, 10**6)))
    return case


def keep_everything(case: Case) -> Case:
    ones = torch.ones_like(case.adversary_q)
    return replace(case, adversary_q=ones, adversary_k=ones)


def mask_everything(case: Case) -> Case:
    ones = torch.ones_like(case.adversary_q)
    return replace(case, adversary_q=ones, adversary_k=-ones)


def close(a: Tensor, b: Tensor, backend: str = "reference", name: str = "") -> None:
    """Equal up to the backend's rounding, relative to the largest entry.

    It counts as at least 1, or 1000 for the adversary's gradient: 10000 times scores' gradients that cancel.
    """
    unit = 1000.0 if name.startswith("adversary") else 1.0
    atol = TOLERANCES[backend] * max(unit, b.abs().max().item())
    torch.testing.assert_close(a, b, rtol=0, atol=atol)
