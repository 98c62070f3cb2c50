"""The kernels as two PyTorch operators, forward and backward, which autograd and torch.compile know."""

import itertools
import math
from collections.abc import Callable

import torch
import triton
from torch import Tensor

from asa_mini.kernels.adversary import mask_gradient_kernel, mask_kernel
from asa_mini.kernels.flash import (
    delta_kernel,
    forward_kernel,
    key_value_gradient_kernel,
    query_gradient_kernel,
)
from asa_mini.kernels.tiles import SIDE, WORD

# dS is the one L x L matrix in memory, so it exists for a block of sequences and keys at a time, of as many
# numbers as B sequences with so many keys have: eight times q, with heads of 64. Fewer would leave
# multiprocessors idle.
BLOCK_KEYS = 512


@torch.library.custom_op("asa_mini::attention", mutates_args=())
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    adversary_q: Tensor,
    adversary_k: Tensor,
    key_mask: Tensor | None,
    key_ends: Tensor,
    seed: Tensor | None,
    causal: bool,
    scaling: float,
    dropout: float,
    reversal: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The forward pass.

    Args:
        q: (B, L, H, D), contiguous. k, v: (B, L, Hkv, D), contiguous. One float type for all five.
        adversary_q, adversary_k: (B, L, E), contiguous.
        key_mask: (B, L) boolean, or None.
        key_ends: (B,) int32; all keys from there on are masked.
        seed: (1,) int64, of the dropout; None for no dropout.
        reversal: of the gradient into the adversary.

    Returns:
        out (B, L, H, D); kept units of each query (B, L), float32; and what the backward pass needs: log2 of
        the softmax's denominators (B, H, L), the mask packed along the queries (B, words, L), the scores'
        factors (B, L).
    """
    batch, length, heads, _ = q.shape
    values = _arguments(
        q, k, v, adversary_q, adversary_k, key_mask, key_ends, seed, causal, scaling, dropout, reversal
    )
    tiles = tile_sizes(q)

    words = q.new_zeros(batch, _padded(length) // WORD.value, length, dtype=torch.int32)
    words_t = torch.zeros_like(words)
    row_kept = q.new_empty(batch, length, dtype=torch.int32)
    factors = q.new_empty(batch, length, dtype=torch.float32)
    values |= dict(words=words, words_t=words_t, row_kept=row_kept, factors=factors)
    _launch(mask_kernel, (triton.cdiv(length, tiles["mask"]["M"]), batch), tiles["mask"], **values)

    out = torch.empty_like(q)
    lse = q.new_empty(batch, heads, length, dtype=torch.float32)
    grid = triton.cdiv(length, tiles["forward"]["M"]), batch * heads
    _launch(forward_kernel, grid, tiles["forward"], **values, out=out, lse=lse)
    return out, row_kept.float(), lse, words_t, factors


@attention.register_fake
def _(q, k, v, adversary_q, adversary_k, key_mask, key_ends, seed, causal, scaling, dropout, reversal):
    batch, length, heads, _ = q.shape
    return (
        torch.empty_like(q),
        q.new_empty(batch, length, dtype=torch.float32),
        q.new_empty(batch, heads, length, dtype=torch.float32),
        q.new_empty(batch, _padded(length) // WORD.value, length, dtype=torch.int32),
        q.new_empty(batch, length, dtype=torch.float32),
    )


@torch.library.custom_op("asa_mini::attention_backward", mutates_args=())
def attention_backward(
    d_out: Tensor,
    d_kept: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    adversary_q: Tensor,
    adversary_k: Tensor,
    key_mask: Tensor | None,
    key_ends: Tensor,
    seed: Tensor | None,
    out: Tensor,
    lse: Tensor,
    words_t: Tensor,
    factors: Tensor,
    causal: bool,
    scaling: float,
    dropout: float,
    reversal: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, adversary_q, adversary_k, given those of out (B, L, H, D) and kept (B, L)."""
    batch, length, heads, _ = q.shape
    values = _arguments(
        q, k, v, adversary_q, adversary_k, key_mask, key_ends, seed, causal, scaling, dropout, reversal
    )
    delta, d_k, d_v, d_adversary_k = (torch.empty_like(x) for x in (lse, k, v, adversary_k))
    values |= dict(out=out, lse=lse, words_t=words_t, factors=factors, d_out=d_out, d_kept=d_kept)
    values |= dict(delta=delta, d_k=d_k, d_v=d_v)
    tiles = tile_sizes(q)
    grid = triton.cdiv(length, tiles["delta"]["M"]), batch * heads
    _launch(delta_kernel, grid, tiles["delta"], **values)

    n_sequences = min(max(batch * BLOCK_KEYS // length, 1), batch)
    n_keys, width = min(batch * BLOCK_KEYS, length), _padded(length)
    # The queries' gradients are sums over the blocks of a sequence: in float32, where there are several.
    sums = q.dtype if n_keys == length else torch.float32
    d_q, d_adversary_q = torch.empty_like(q, dtype=sums), torch.empty_like(adversary_q, dtype=sums)
    d_scores = q.new_empty(n_sequences, heads, _padded(n_keys), width)
    d_s = q.new_empty(n_sequences, _padded(n_keys), width)
    values |= dict(d_scores=d_scores, d_s=d_s, d_q=d_q, lines=_padded(n_keys), width=width)
    for first, first_key in itertools.product(range(0, batch, n_sequences), range(0, length, n_keys)):
        values |= dict(first_sequence=first, sides_before=first_key // SIDE.value)
        these, keys = slice(first, first + n_sequences), slice(first_key, first_key + n_keys)
        some, n = adversary_k[these, keys].shape[:2]
        grid = _padded(n) // tiles["key_value"]["N"], some * k.shape[2]
        _launch(key_value_gradient_kernel, grid, tiles["key_value"], **values)
        grid = triton.cdiv(length, tiles["query"]["M"]), some * heads
        _launch(query_gradient_kernel, grid, tiles["query"], **values)
        m, n_tile = tiles["mask_gradient"]["M"], tiles["mask_gradient"]["N"]
        grid = triton.cdiv(length, m), triton.cdiv(n, n_tile), some
        _launch(mask_gradient_kernel, grid, tiles["mask_gradient"], **values)
        known = d_s[:some, :n, :length]
        torch.bmm(known, adversary_q[these], out=d_adversary_k[these, keys])  # (keys, L) x (L, E)
        term = known.mT @ adversary_k[these, keys]  # (L, keys) x (keys, E) -> (L, E)
        total = d_adversary_q[these]
        total.copy_(term) if first_key == 0 else total.add_(term)
    return d_q.to(q.dtype), d_k, d_v, d_adversary_q.to(q.dtype), d_adversary_k


@attention_backward.register_fake
def _(d_out, d_kept, q, k, v, adversary_q, adversary_k, *_):
    return tuple(torch.empty_like(x) for x in (q, k, v, adversary_q, adversary_k))


def _setup_context(ctx, inputs, output):
    *tensors, ctx.causal, ctx.scaling, ctx.dropout, ctx.reversal = inputs
    out, _, *statistics = output
    ctx.save_for_backward(*tensors, out, *statistics)
    ctx.mark_non_differentiable(*statistics)


def _backward(ctx, d_out, d_kept, *_):
    # The gradient of a sum or a mean is one number with strides of 0; kernels count in elements.
    given = d_out.contiguous(), d_kept.contiguous(), *ctx.saved_tensors
    gradients = attention_backward(*given, ctx.causal, ctx.scaling, ctx.dropout, ctx.reversal)
    return (*gradients, *[None] * 7)


attention.register_autograd(_backward, setup_context=_setup_context)


def _padded(length: int) -> int:
    return triton.cdiv(length, SIDE.value) * SIDE.value


def _arguments(
    q, k, v, adversary_q, adversary_k, key_mask, key_ends, seed, causal, scaling, dropout, reversal
) -> dict:
    """An operator's arguments, and what follows from them, by the names that the kernels give them."""
    _, length, heads, dim = q.shape
    return dict(
        q=q, k=k, v=v, adversary_q=adversary_q, adversary_k=adversary_k, key_mask=key_mask, key_ends=key_ends,
        seed=seed, length=length, H=heads, kv_heads=k.shape[2], D=dim, E=adversary_q.shape[-1],
        scale2=scaling * math.log2(math.e), survivor_scale=1 / (1 - dropout) if dropout < 1 else 0.0,
        drop_below=min(int(dropout * 2**32) - 2**31, 2**31 - 1),  # of the random 32-bit integers, with a sign
        reversal=reversal, CAUSAL=causal, PRECISION=_precision(),
    )  # fmt: skip


def _launch(kernel: Callable, grid: tuple[int, ...], tile: dict[str, int], **values) -> None:
    """Start a kernel with those of the values, and of the tile's sizes, that its parameters name."""
    named = {name: x for name, x in (values | tile).items() if name in kernel.arg_names}
    with torch.cuda.device_of(values["q"]):  # Triton launches on the current GPU, which may be another
        kernel[grid](**named, num_warps=tile["num_warps"], num_stages=tile["num_stages"])


def _precision() -> str:
    """How float32 products are computed: as exact, or as rounded, as PyTorch's own are set to be.

    tf32x3 splits each factor in two, and is exact to about the last bit; plain float32 arithmetic ("ieee")
    would leave the tensor cores idle and spill the accumulators out of the registers.
    """
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def tile_sizes(q: Tensor) -> dict[str, dict[str, int]]:
    """Of each kernel: M queries x N keys in a tile, features at a time, warps, stages of the pipeline.

    Chosen by compiling (tests/compile_kernels.py): nothing is spilled on Hopper with bfloat16, heads of 64,
    and nowhere is there more than the 99 KiB of shared memory of Ampere's and Ada's consumer cards.
    """
    half = q.element_size() == 2
    sizes = {
        "mask": (128, 128, 8, 2) if half else (64, 64, 4, 2),
        "forward": (128, 64, 8, 2) if half else (32, 32, 8, 1),
        "delta": (64, 1, 4, 1),  # it knows rows alone
        "key_value": (32, 64, 4, 2) if half else (32, 32, 8, 1),
        "query": (128, 64, 8, 2) if half else (32, 32, 8, 1),
        "mask_gradient": (128, 64, 8, 2) if half else (64, 32, 8, 1),
    }
    features = {
        "BLOCK_D": max(16, triton.next_power_of_2(q.shape[-1])),  # 16: the least that tl.dot takes
        "BLOCK_E": 128 // q.element_size(),  # 128 bytes of the adversary's
    }
    return {
        name: dict(M=m, N=n, **features, num_warps=warps, num_stages=stages)
        for name, (m, n, warps, stages) in sizes.items()
    }
