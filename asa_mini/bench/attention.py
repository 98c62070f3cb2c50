"""What ASA's attention costs next to plain attention, and to what one would write without the kernels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention
from tqdm.auto import tqdm

from asa_mini.adversary import MASKED_SCORE, keep_mask
from asa_mini.attention import asa_attention
from asa_mini.bench.measuring import device, ms_by_kernel, peak_mib, seconds_of
from asa_mini.errors import InputError


@dataclass(frozen=True)
class Case:
    """Attention over B sequences of H heads, D wide; the adversary is E = H D wide.

    `padded`: the sequences have L/2 to L tokens, evenly spread, instead of L each.
    """

    batch_size: int
    length: int
    heads: int = 12
    dim: int = 64
    dtype: str = "bfloat16"
    padded: bool = False
    dropout: float = 0.0

    def inputs(self) -> list[Tensor | None]:
        """Random q, k, v (B, H, L, D), Qa, Ka (B, L, E), all in need of a gradient, and `allowed` or None."""
        generator = torch.Generator(device()).manual_seed(0)

        def random(*shape):
            x = torch.randn(*shape, generator=generator, device=generator.device)
            return x.to(getattr(torch, self.dtype))

        rows = self.batch_size, self.length
        tensors = [random(*rows, self.heads, self.dim).transpose(1, 2) for _ in range(3)]
        tensors += [random(*rows, self.heads * self.dim) for _ in range(2)]
        real = torch.linspace(self.length / 2, self.length, self.batch_size, device=generator.device).ceil()
        allowed = torch.arange(self.length, device=generator.device) < real[:, None]
        return [x.requires_grad_() for x in tensors] + [allowed[:, None, None] if self.padded else None]


def plain(backend: SDPBackend, q, k, v, adversary_q, adversary_k, allowed=None, dropout=0.0):
    """PyTorch's attention by one backend, no adversary. Flash takes no mask: it computes padding as well."""
    mask = None if backend == SDPBackend.FLASH_ATTENTION else allowed
    with sdpa_kernel(backend):
        return (F.scaled_dot_product_attention(q, k, v, mask, dropout),)


def float_bias(q, k, v, adversary_q, adversary_k, allowed=None, dropout=0.0):
    """PyTorch's attention with the mask as a dense, differentiable bias."""
    bias, kept = _bias(adversary_q, adversary_k, allowed)
    return F.scaled_dot_product_attention(q, k, v, bias[:, None], dropout), kept


def flex(q, k, v, adversary_q, adversary_k, allowed=None, dropout=0.0):
    """flex_attention, compiled, which reads the same dense bias in its score function; GPU only."""
    if dropout:
        raise InputError("flex_attention has no dropout")
    bias, kept = _bias(adversary_q, adversary_k, allowed)

    def add_bias(score, batch, head, i, j):
        return score + bias[batch, i, j]

    return torch.compile(flex_attention)(q, k, v, score_mod=add_bias), kept


def _bias(adversary_q, adversary_k, allowed) -> tuple[Tensor, Tensor]:
    """(B, L, L) what is added to the scores, and (B,) the kept units."""
    mask = keep_mask(adversary_q, adversary_k)
    if allowed is None:
        return MASKED_SCORE * (1 - mask), mask.sum((1, 2))
    mask = mask * allowed[:, 0]
    return (MASKED_SCORE * (1 - mask)).masked_fill(~allowed[:, 0], float("-inf")), mask.sum((1, 2))


# Each takes the six of `Case.inputs`, and returns the output and, but for the plain ones, the kept units.
# cuDNN is what PyTorch takes by itself on Hopper.
PLAIN: dict[str, Callable] = {
    "flash": partial(plain, SDPBackend.FLASH_ATTENTION),
    "cuDNN": partial(plain, SDPBackend.CUDNN_ATTENTION),
}
KINDS: dict[str, Callable] = PLAIN | {
    "triton": partial(asa_attention, backend="triton"),
    "reference": partial(asa_attention, backend="reference"),
    "float bias": float_bias,
    "flex": flex,
}
GPU_KINDS = ("flash", "cuDNN", "triton", "reference", "float bias")  # flex takes a process of its own
CPU_KINDS = ("flash", "reference", "float bias")  # interpreted kernels say nothing about speed


def counted(kind: str, batch: int, length: int, heads: int, dim: int, itemsize: int) -> tuple[float, float]:
    """Operations of forward and backward, and bytes that have to move if every tile is read once.

    Counted by hand, with `itemsize` bytes per number. One unit is a product of 2 B L L E operations, E = H D.
    Plain attention: two products forward (QK^T, PV), five backward (QK^T again, dO V^T, dV, dQ, dK). The
    kernels: those seven, s forward and backward, two that take its gradient to Qa and Ka; dS is written, and
    read for dQ and for the mask's gradient, 3 passes over B H L L. The dense forms keep their matrices, so
    they compute nothing twice, and pay in bytes: about 15 such passes.
    """
    unit, row = 2 * batch * length**2 * heads * dim, batch * length * heads * dim * itemsize
    square = batch * length**2  # attention units, all heads sharing them
    if kind in PLAIN:
        return 7 * unit, 12 * row
    if kind == "triton":
        bits = 4 * square / 8  # of the mask, in both directions, written and read
        return 11 * unit, 22 * row + bits + 3 * (heads + 1) * square * itemsize
    return 9 * unit, 16 * row + 15 * heads * square * itemsize


def of_tokens(tokens: int, lengths: Sequence[int], paddings=(False,), dropouts=(0.0,), **shape) -> list[Case]:
    """Cases of the same number of tokens, the plainest first; `shape`: heads, dim, dtype.

    Raises:
        InputError: a number below 1, or a length above `tokens`.
    """
    numbers = [tokens, *lengths, *(x for x in shape.values() if isinstance(x, int))]
    if min(numbers) < 1 or max(lengths) > tokens:
        raise InputError("lengths, tokens, heads and dim must be at least 1, and no length above --tokens")
    chosen = product(paddings, dropouts, lengths)
    return [Case(tokens // n, n, padded=padded, dropout=p, **shape) for padded, p, n in chosen]


def compare(cases: Sequence[Case], kinds: Sequence[str] = (), timed: bool = True) -> Iterator[dict]:
    """Measure every kind in every case, by default GPU_KINDS, without a GPU CPU_KINDS.

    Yields:
        One dict per case and kind: the case's fields, `kind`, what `measure` finds, and `to_flash` and
        `to_cuDNN`, how many times as long as these it takes.
    """
    kinds = kinds or (GPU_KINDS if device() == "cuda" else CPU_KINDS)
    for case in tqdm(cases, desc="cases"):
        seconds = {}
        for kind in kinds:
            row = asdict(case) | {"kind": kind} | measure(kind, case, timed)
            if "seconds" in row:
                seconds[kind] = row["seconds"]
                row |= {f"to_{name}": seconds[kind] / seconds[name] for name in PLAIN if name in seconds}
            yield row


def measure(kind: str, case: Case, timed: bool = True) -> dict:
    """Take steps, or, not `timed`, one that may fail: what others make need not run everywhere.

    Returns:
        `seconds` (median); on a GPU `peak_mib`, above the inputs, and `ms_by_kernel`; `error`, if one came.
    """
    found = {}
    try:
        inputs = case.inputs()
        run = partial(step, kind, inputs, torch.ones_like(inputs[0]), case.dropout)
        run()  # compiles
        if timed:
            found["seconds"] = seconds_of(run)
            if torch.cuda.is_available():
                found["peak_mib"] = peak_mib(run)
                found["ms_by_kernel"] = ms_by_kernel(run)
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}".partition("\n")[0].partition(". ")[0]
    torch.cuda.empty_cache()  # does nothing without a GPU
    return found


def step(kind: str, inputs: list, d_out: Tensor, dropout: float = 0.0) -> list[Tensor]:
    """Forward and backward: the output, the kept units (but for the plain kinds), and all gradients."""
    output, *units = KINDS[kind](*inputs, dropout=dropout)
    units = units[:1]  # after it come the allowed units, which depend on nothing
    wanted = inputs[:5] if units else inputs[:3]
    found = torch.autograd.grad([output, *units], wanted, [d_out, *map(torch.ones_like, units)])
    return [output, *units, *found]
