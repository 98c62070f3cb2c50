"""The kernels as two PyTorch operators, forward and backward, which autograd and torch.compile know."""

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

# The piece of the adversary's score gradient that exists at one time, B x rows x L numbers, takes about
# this many bytes, or one tile of rows if that is more.
CHUNK_BYTES = 2**28


@torch.library.custom_op("asa_mini::attention", mutates_args=())
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    adversary_q: Tensor,
    adversary_k: Tensor,
    key_mask: Tensor | None,
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
        seed: (1,) int64, of the dropout; None for no dropout.
        reversal: of the gradient into the adversary.

    Returns:
        out (B, L, H, D); kept units (B,), float32; and what the backward pass needs: log2 of the softmax's
        denominators (B, H, L), the packed mask (B, L, L/32), kept units by row (B, L).
    """
    batch, length, heads, _ = q.shape
    values = _arguments(q, k, v, adversary_q, adversary_k, key_mask, seed, causal, scaling, dropout, reversal)
    tiles = tile_sizes(q)

    n_tiles = triton.cdiv(length, tiles["mask"]["N"])
    words = q.new_empty(batch, length, triton.cdiv(length, 32), dtype=torch.int32)
    counts = q.new_empty(batch, n_tiles, length, dtype=torch.int32)
    grid = triton.cdiv(length, tiles["mask"]["M"]), n_tiles, batch
    _launch(mask_kernel, grid, tiles["mask"], **values, words=words, counts=counts)
    row_kept = counts.sum(1, dtype=torch.int32)

    out = torch.empty_like(q)
    lse = q.new_empty(batch, heads, length, dtype=torch.float32)
    grid = triton.cdiv(length, tiles["forward"]["M"]), batch * heads
    values |= dict(words=words, row_kept=row_kept, out=out, lse=lse)
    _launch(forward_kernel, grid, tiles["forward"], **values)
    return out, row_kept.sum(1).float(), lse, words, row_kept


@attention.register_fake
def _(q, k, v, adversary_q, adversary_k, key_mask, seed, causal, scaling, dropout, reversal):
    batch, length, heads, _ = q.shape
    return (
        torch.empty_like(q),
        q.new_empty(batch, dtype=torch.float32),
        q.new_empty(batch, heads, length, dtype=torch.float32),
        q.new_empty(batch, length, (length + 31) // 32, dtype=torch.int32),
        q.new_empty(batch, length, dtype=torch.int32),
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
    seed: Tensor | None,
    out: Tensor,
    lse: Tensor,
    words: Tensor,
    row_kept: Tensor,
    causal: bool,
    scaling: float,
    dropout: float,
    reversal: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, adversary_q, adversary_k, given those of out (B, L, H, D) and kept (B,)."""
    batch, length, heads, _ = q.shape
    values = _arguments(q, k, v, adversary_q, adversary_k, key_mask, seed, causal, scaling, dropout, reversal)
    delta = torch.empty_like(lse)
    values |= dict(d_out=d_out, d_kept=d_kept, out=out, lse=lse, delta=delta, words=words, row_kept=row_kept)
    tiles = tile_sizes(q)

    grid = triton.cdiv(length, tiles["delta"]["M"]), batch * heads
    _launch(delta_kernel, grid, tiles["delta"], **values)
    d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    grid = triton.cdiv(length, tiles["query"]["M"]), batch * heads
    _launch(query_gradient_kernel, grid, tiles["query"], **values, d_q=d_q)
    grid = triton.cdiv(length, tiles["key_value"]["N"]), batch * k.shape[2]
    _launch(key_value_gradient_kernel, grid, tiles["key_value"], **values, d_k=d_k, d_v=d_v)

    # The adversary's score gradient s is the one L x L matrix in memory, so it is made some rows at a time.
    tile = tiles["mask_gradient"]
    padded = triton.cdiv(length, 64) * 64  # rows that start at a round address, for the matrix products
    row_bytes = batch * padded * adversary_q.element_size()
    step = max(CHUNK_BYTES // row_bytes // tile["M"], 1) * tile["M"]
    d_adversary_q = torch.empty_like(adversary_q)
    d_adversary_k = torch.zeros_like(adversary_k, dtype=torch.float32)
    for first_row in range(0, length, step):
        chunk = min(step, length - first_row)
        d_s = adversary_q.new_empty(batch, chunk, padded)
        grid = triton.cdiv(chunk, tile["M"]), triton.cdiv(length, tile["N"]), batch
        piece = dict(d_s=d_s, first_row=first_row, chunk=chunk, width=padded)
        _launch(mask_gradient_kernel, grid, tile, **values, **piece)
        d_s, rows = d_s[..., :length], slice(first_row, first_row + chunk)
        d_adversary_q[:, rows] = d_s @ adversary_k  # (B, chunk, L) x (B, L, E) -> (B, chunk, E)
        d_adversary_k += d_s.mT @ adversary_q[:, rows]  # (B, L, chunk) x (B, chunk, E) -> (B, L, E)
    return d_q, d_k, d_v, d_adversary_q, d_adversary_k.to(adversary_k.dtype)


@attention_backward.register_fake
def _(d_out, d_kept, q, k, v, adversary_q, adversary_k, *_):
    return tuple(torch.empty_like(x) for x in (q, k, v, adversary_q, adversary_k))


def _setup_context(ctx, inputs, output):
    *tensors, ctx.causal, ctx.scaling, ctx.dropout, ctx.reversal = inputs
    out, _, lse, words, row_kept = output
    ctx.save_for_backward(*tensors, out, lse, words, row_kept)
    ctx.mark_non_differentiable(lse, words, row_kept)


def _backward(ctx, d_out, d_kept, *_):
    # The gradient of a sum or a mean is one number with strides of 0; kernels count in elements.
    given = d_out.contiguous(), d_kept.contiguous(), *ctx.saved_tensors
    gradients = attention_backward(*given, ctx.causal, ctx.scaling, ctx.dropout, ctx.reversal)
    return (*gradients, *[None] * 6)


attention.register_autograd(_backward, setup_context=_setup_context)


def _arguments(q, k, v, adversary_q, adversary_k, key_mask, seed, causal, scaling, dropout, reversal) -> dict:
    """An operator's arguments, and what follows from them, by the names that the kernels give them."""
    _, length, heads, dim = q.shape
    return dict(
        q=q, k=k, v=v, adversary_q=adversary_q, adversary_k=adversary_k, key_mask=key_mask, seed=seed,
        length=length, H=heads, kv_heads=k.shape[2],
        D=dim, E=adversary_q.shape[-1], scaling=scaling, scale2=scaling * math.log2(math.e),
        dropout=dropout, reversal=reversal, CAUSAL=causal, PRECISION=_precision(),
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

    Chosen by compiling, for few registers spilled (tests/compile_kernels.py says how many) and at most the
    99 KiB of shared memory that Ampere's and Ada's consumer cards have.
    """
    dim = max(16, triton.next_power_of_2(q.shape[-1]))  # 16: the least that tl.dot takes
    if q.element_size() == 2 and dim <= 64:
        sizes = {
            "mask": (128, 128, 8, 2),
            "forward": (128, 64, 8, 3),
            "query": (128, 64, 8, 2),
            "key_value": (32, 128, 8, 2),
            "mask_gradient": (128, 64, 8, 2),
        }
    elif q.element_size() == 2:
        sizes = {
            "mask": (128, 128, 8, 2),
            "forward": (128, 64, 8, 2),
            "query": (64, 64, 4, 2),
            "key_value": (32, 64, 4, 2),
            "mask_gradient": (64, 64, 4, 1),
        }
    else:
        sizes = {
            "mask": (64, 64, 4, 2),
            "forward": (32, 32, 8, 1),
            "query": (32, 32, 8, 1),
            "key_value": (32, 32, 8, 1),
            "mask_gradient": (64, 32, 8, 1),
        }
    sizes["delta"] = (64, 1, 4, 1)  # it knows rows alone
    features = dict(BLOCK_D=dim, BLOCK_E=128 // q.element_size())  # of the heads; of the adversary, 128 bytes
    return {
        name: dict(M=m, N=n, **features, num_warps=warps, num_stages=stages)
        for name, (m, n, warps, stages) in sizes.items()
    }
