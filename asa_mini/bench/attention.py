"""What ASA's attention costs next to plain attention, and to what one would write without the kernels."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.benchmark import Timer
from tqdm.auto import tqdm

from asa_mini.adversary import MASKED_SCORE, keep_mask
from asa_mini.attention import asa_attention
from asa_mini.bench.measuring import device, peak_mib, print_rows
from asa_mini.errors import InputError

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
LONGEST = 2**18  # tokens; where the search for the longest sequence ends


def sdpa(q, k, v, adversary_q, adversary_k):
    """Plain attention, no adversary: what everything is compared with."""
    return (F.scaled_dot_product_attention(q, k, v),)


def float_bias(q, k, v, adversary_q, adversary_k):
    """PyTorch's attention with the mask as a dense, differentiable bias."""
    mask = keep_mask(adversary_q, adversary_k)  # (B, L, L)
    return F.scaled_dot_product_attention(q, k, v, MASKED_SCORE * (1 - mask)[:, None]), mask.sum((1, 2))


def flex(q, k, v, adversary_q, adversary_k):
    """flex_attention, compiled, which reads the same dense bias in its score function; GPU only."""
    mask = keep_mask(adversary_q, adversary_k)
    bias = MASKED_SCORE * (1 - mask)

    def add_bias(score, batch, head, i, j):
        return score + bias[batch, i, j]

    return torch.compile(flex_attention)(q, k, v, score_mod=add_bias), mask.sum((1, 2))


# Each takes q, k, v (B, H, L, D), Qa, Ka (B, L, E), and returns the output and, but for sdpa, the kept units.
KINDS: dict[str, Callable] = {
    "sdpa": sdpa,
    "triton": partial(asa_attention, backend="triton"),
    "reference": partial(asa_attention, backend="reference"),
    "float bias": float_bias,
    "flex": flex,
}
# Interpreted kernels say nothing about speed, and flex_attention has no backward pass on a CPU.
CPU_KINDS = ("sdpa", "reference", "float bias")


def counted(kind: str, batch: int, length: int, heads: int, dim: int, itemsize: int) -> tuple[float, float]:
    """Operations and bytes that forward and backward of a kind need, counted by hand.

    One unit is a product of 2 B L L E operations, E = H D. Plain attention: two products forward (QK^T, PV),
    five backward (QK^T again, dO V^T, dV, dQ, dK). The kernels: those seven, s forward and backward, two that
    take its gradient to Qa and Ka; dS is written, and read for dQ and for the mask's gradient, 3 passes over
    B H L L. The dense forms keep their matrices, so they compute nothing twice, and pay in bytes:
    about 15 such passes.

    Args:
        itemsize: bytes per number.

    Returns:
        Floating point operations, and bytes that must move to and from memory if every tile is read once.
    """
    unit, row = 2 * batch * length**2 * heads * dim, batch * length * heads * dim * itemsize
    square = batch * length**2  # attention units, all heads sharing them
    if kind == "sdpa":
        return 7 * unit, 12 * row
    if kind == "triton":
        bits = 4 * square / 8  # of the mask, in both directions, written and read
        return 11 * unit, 22 * row + bits + 3 * (heads + 1) * square * itemsize
    return 9 * unit, 16 * row + 15 * heads * square * itemsize


def bench_attention(
    lengths: Sequence[int], tokens: int, heads: int, dim: int, dtype: str, kinds: Sequence[str] = ()
) -> dict:
    """Time forward plus backward of every kind at a fixed number of tokens, dropout off.

    Args:
        lengths: L; the batch is tokens // L sequences.
        heads, dim: H and D; the adversary is E = H D wide.
        dtype, kinds: keys of DTYPES and KINDS; by default all kinds on a GPU, CPU_KINDS elsewhere.

    Returns:
        `rows`: one dict per L and kind: `batch_size`, `length`, `kind`, `flops` and `bytes` as `counted`,
        `seconds` (median; `ms`: the same in milliseconds), `ratio` to sdpa, `peak_mib` above the inputs (on a
        GPU), and `of_matmul` and `of_copy`, the share of the machine's rates; of a kind that failed `seconds`
        is None, and `error` says why. `machine`: `copy_bytes_per_s` and `matmul_flops_per_s`, measured.
        `longest`: by kind, the longest L that trains with B 1 (on a GPU; the search ends at LONGEST).

    Raises:
        InputError: a number below 1, a length above `tokens`, an unknown dtype or kind, or a GPU that cannot
            be timed, see `device`.
    """
    if min([*lengths, tokens, heads, dim]) < 1 or max(lengths) > tokens:
        raise InputError("lengths, tokens, heads and dim must be at least 1, and no length above --tokens")
    unknown = ({dtype} - DTYPES.keys()) | (set(kinds) - KINDS.keys())
    if unknown:
        raise InputError(f"unknown {unknown}; dtypes: {', '.join(DTYPES)}; kinds: {', '.join(KINDS)}")
    on_gpu = device() == "cuda"
    kinds = kinds or (tuple(KINDS) if on_gpu else CPU_KINDS)
    number = DTYPES[dtype]
    machine, rows = _machine(number), []
    for length in tqdm(lengths, desc="lengths"):
        shape = tokens // length, length, heads, dim
        plain = None
        for kind in kinds:
            flops, moved = counted(kind, *shape, number.itemsize)
            row = {"batch_size": shape[0], "length": length, "kind": kind, "flops": flops, "bytes": moved}
            row |= {"seconds": None, "error": None} | _measure(kind, *shape, dtype=number)
            if seconds := row["seconds"]:
                plain = seconds if kind == "sdpa" else plain
                row |= {"ratio": plain and seconds / plain, "ms": 1e3 * seconds}
                row["of_matmul"] = flops / seconds / machine["matmul_flops_per_s"]
                row["of_copy"] = moved / seconds / machine["copy_bytes_per_s"]
            rows.append(row)
    tried = tqdm(kinds, desc="longest") if on_gpu else ()
    longest = {kind: _longest(kind, heads, dim, number) for kind in tried}
    return {"rows": rows, "machine": machine, "longest": longest}


def print_attention(result: dict) -> None:
    machine = result["machine"]
    copied, multiplied = machine["copy_bytes_per_s"], machine["matmul_flops_per_s"]
    print(f"copy {copied / 1e9:.0f} GB/s, matrix products {multiplied / 1e12:.2f} TFLOP/s")
    measured = dict(ms=".2f", ratio=".2f", peak_mib=".0f", of_matmul=".0%", of_copy=".0%")
    print_rows(result["rows"], **measured, error="")
    for kind, length in result["longest"].items():
        print(f"longest sequence that trains, B 1, {kind}: {length or 'none'}")


def _inputs(batch: int, length: int, heads: int, dim: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator(device()).manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, device=generator.device).to(dtype)

    tensors = [random(batch, length, heads, dim).transpose(1, 2) for _ in range(3)]
    tensors += [random(batch, length, heads * dim) for _ in range(2)]
    return [x.requires_grad_() for x in tensors]


def _step(kind: str, tensors: list[Tensor], d_out: Tensor) -> None:
    output, *kept = KINDS[kind](*tensors)
    units = kept[:1]  # after it come the allowed units, which depend on nothing
    wanted = tensors if units else tensors[:3]
    torch.autograd.grad([output, *units], wanted, [d_out, *map(torch.ones_like, units)])


def _measure(kind: str, *shape: int, dtype: torch.dtype, timed: bool = True) -> dict:
    """The measured part of a row, or only its error: what others make need not run everywhere.

    Args:
        shape: B, L, H, D.
        timed: else only one step is taken, to see whether it fails.
    """
    try:
        tensors = _inputs(*shape, dtype)
        given = kind, tensors, torch.ones_like(tensors[0])
        _step(*given)  # compiles
        if not timed:
            return {}
        peak = peak_mib(lambda: _step(*given)) if torch.cuda.is_available() else None
        timer = Timer("step(*given)", globals={"step": _step, "given": given})
        return {"seconds": timer.blocked_autorange(min_run_time=0.5).median, "peak_mib": peak}
    except torch.OutOfMemoryError:
        return {"error": "out of memory"}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    finally:
        torch.cuda.empty_cache()  # does nothing without a GPU


def _longest(kind: str, heads: int, dim: int, dtype: torch.dtype) -> int:
    """By doubling; 0 if even 2048 tokens do not fit."""
    length = 1024
    while length < LONGEST and not _measure(kind, 1, 2 * length, heads, dim, dtype=dtype, timed=False):
        length *= 2
    return length if length > 1024 else 0


def _machine(dtype: torch.dtype) -> dict[str, float]:
    """The ceilings of this machine, in the same run: a large copy, and a large square product."""
    size, side = (2**31, 8192) if device() == "cuda" else (2**27, 1024)
    source = torch.empty(size, dtype=torch.uint8, device=device())
    target = torch.empty_like(source)
    copy = Timer("target.copy_(source)", globals={"target": target, "source": source})
    a = torch.randn(side, side, device=device()).to(dtype)
    product = Timer("a @ a", globals={"a": a / math.sqrt(side)})
    return {
        "copy_bytes_per_s": 2 * source.numel() / copy.blocked_autorange(min_run_time=0.5).median,
        "matmul_flops_per_s": 2 * side**3 / product.blocked_autorange(min_run_time=0.5).median,
    }
