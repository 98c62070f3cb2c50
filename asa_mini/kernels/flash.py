"""Flash attention under the packed mask: forward, and backward for Q, K and V.

Scores are kept in base 2 (scale2 = scaling log2(e)), because the hardware has exp2. The tensors lie in memory
as transformers makes them, (B, L, H, D).
"""

import triton
import triton.language as tl

from asa_mini.kernels.tiles import (
    allowed_units,
    drop,
    head_start,
    kept_units,
    load_numbers,
    load_rows,
    masked_scores,
    probability_gradient,
    product,
    store_rows,
)


@triton.jit
def forward_kernel(
    q,  # (B, L, H, D)
    k,  # (B, L, Hkv, D)
    v,  # (B, L, Hkv, D)
    key_mask,  # (B, L) or None
    words,  # (B, L, L/32)
    row_kept,  # (B, L)
    seed,  # (1,) or None
    out,  # out (B, L, H, D)
    lse,  # out (B, H, L): log2 of the softmax's denominator
    length,
    H,
    kv_heads,
    scale2,
    dropout,
    D: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: M queries of one head of one sequence, over all keys, N at a time."""
    n = tl.program_id(1)
    batch, head = (n // H).to(tl.int64), n % H
    start = head_start(batch, head, length, H, D)
    kv_start = head_start(batch, head // (H // kv_heads), length, kv_heads, D)
    rows, features = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, BLOCK_D)
    i = rows[:, None]

    q_tile = load_rows(q + start, rows, features, H * D, length, D)
    kept_in_row = load_numbers(row_kept, batch, rows, length, 1)[:, None]
    top = tl.full((M,), float("-inf"), tl.float32)  # largest score so far
    total = tl.zeros((M,), tl.float32)  # sum of exp2(score - top) so far
    result = tl.zeros((M, BLOCK_D), tl.float32)  # the same sum, each term times its value
    end = tl.minimum((tl.program_id(0) + 1) * M, length) if CAUSAL else length
    for first_key in range(0, end, N):
        keys = first_key + tl.arange(0, N)
        j = keys[None, :]
        k_tile = load_rows(k + kv_start, keys, features, kv_heads * D, length, D)
        allowed = allowed_units(key_mask, batch, i, j, length, CAUSAL)
        kept = kept_units(words, batch, i, j, first_key, length, N)
        scores = masked_scores(q_tile, k_tile, kept, allowed, kept_in_row, scale2, PRECISION)

        new_top = tl.maximum(top, tl.max(scores, 1))
        origin = tl.where(new_top == float("-inf"), 0.0, new_top)  # nothing seen yet: -inf - -inf is NaN
        p = tl.exp2(scores - origin[:, None])
        rescale = tl.exp2(top - origin)
        total = total * rescale + tl.sum(p, 1)
        p = drop(p, seed, i, j, n, dropout)
        v_tile = load_rows(v + kv_start, keys, features, kv_heads * D, length, D)
        result = result * rescale[:, None] + product(p.to(v_tile.dtype), v_tile, PRECISION)
        top = new_top

    nothing = total == 0  # a row without an allowed key gives zeros, and no gradient
    total = tl.where(nothing, 1.0, total)
    result = result / total[:, None]
    store_rows(out + start, result, rows, features, H * D, length, D)
    row_lse = tl.where(nothing, float("inf"), top + tl.log2(total))
    tl.store(lse + n.to(tl.int64) * length + rows, row_lse, mask=rows < length)


@triton.jit
def delta_kernel(out, d_out, delta, length, H, D: tl.constexpr, M: tl.constexpr, BLOCK_D: tl.constexpr):
    """delta_i = sum_j P_ij dP_ij, which is O_i . dO_i; delta (B, H, L)."""
    n = tl.program_id(1)
    start = head_start((n // H).to(tl.int64), n % H, length, H, D)
    rows, features = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, BLOCK_D)
    out_tile = load_rows(out + start, rows, features, H * D, length, D).to(tl.float32)
    d_out_tile = load_rows(d_out + start, rows, features, H * D, length, D).to(tl.float32)
    tl.store(delta + n.to(tl.int64) * length + rows, tl.sum(out_tile * d_out_tile, 1), mask=rows < length)


@triton.jit
def query_gradient_kernel(
    q,
    k,
    v,
    d_out,  # (B, L, H, D)
    lse,  # (B, H, L)
    delta,  # (B, H, L)
    key_mask,
    words,
    row_kept,
    seed,
    d_q,  # out (B, L, H, D)
    length,
    H,
    kv_heads,
    scale2,
    scaling,
    dropout,
    D: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: M queries of one head of one sequence, over all keys.   dQ = scaling (mask dS) K"""
    n = tl.program_id(1)
    batch, head = (n // H).to(tl.int64), n % H
    start = head_start(batch, head, length, H, D)
    kv_start = head_start(batch, head // (H // kv_heads), length, kv_heads, D)
    rows, features = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, BLOCK_D)
    i = rows[:, None]

    q_tile = load_rows(q + start, rows, features, H * D, length, D)
    d_out_tile = load_rows(d_out + start, rows, features, H * D, length, D)
    kept_in_row = load_numbers(row_kept, batch, rows, length, 1)[:, None]
    row_lse = load_numbers(lse, n, rows, length, float("inf"))[:, None]
    row_delta = load_numbers(delta, n, rows, length, 0.0)[:, None]
    result = tl.zeros((M, BLOCK_D), tl.float32)
    end = tl.minimum((tl.program_id(0) + 1) * M, length) if CAUSAL else length
    for first_key in range(0, end, N):
        keys = first_key + tl.arange(0, N)
        j = keys[None, :]
        k_tile = load_rows(k + kv_start, keys, features, kv_heads * D, length, D)
        allowed = allowed_units(key_mask, batch, i, j, length, CAUSAL)
        kept = kept_units(words, batch, i, j, first_key, length, N)
        p = tl.exp2(masked_scores(q_tile, k_tile, kept, allowed, kept_in_row, scale2, PRECISION) - row_lse)
        v_tile = load_rows(v + kv_start, keys, features, kv_heads * D, length, D)
        d_p = probability_gradient(d_out_tile, v_tile, seed, i, j, n, dropout, PRECISION)
        d_scores = tl.where(kept, p * (d_p - row_delta), 0.0)
        result += product(d_scores.to(k_tile.dtype), k_tile, PRECISION)
    store_rows(d_q + start, result * scaling, rows, features, H * D, length, D)


@triton.jit
def key_value_gradient_kernel(
    q,
    k,
    v,
    d_out,
    lse,
    delta,
    key_mask,
    words,
    row_kept,
    seed,
    d_k,  # out (B, L, Hkv, D)
    d_v,  # out (B, L, Hkv, D)
    length,
    H,
    kv_heads,
    scale2,
    scaling,
    dropout,
    D: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: N keys of one key head, over all queries of the heads that share it::

        dV = dropout(P)^T dO        dK = scaling (mask dS)^T Q

    Tiles are transposed, keys down and queries across, so that P^T and dS^T stand ready for these products.
    """
    batch, kv_head = (tl.program_id(1) // kv_heads).to(tl.int64), tl.program_id(1) % kv_heads
    kv_start = head_start(batch, kv_head, length, kv_heads, D)
    first_key = tl.program_id(0) * N
    keys, features = first_key + tl.arange(0, N), tl.arange(0, BLOCK_D)
    j = keys[:, None]

    k_tile = load_rows(k + kv_start, keys, features, kv_heads * D, length, D)
    v_tile = load_rows(v + kv_start, keys, features, kv_heads * D, length, D)
    k_result = tl.zeros((N, BLOCK_D), tl.float32)
    v_result = tl.zeros((N, BLOCK_D), tl.float32)
    first = first_key // M * M if CAUSAL else 0
    groups = H // kv_heads
    for head in range(kv_head * groups, (kv_head + 1) * groups):
        n = (batch * H + head).to(tl.int32)  # as Philox takes it
        start = head_start(batch, head, length, H, D)
        for first_row in range(first, length, M):
            rows = first_row + tl.arange(0, M)
            i = rows[None, :]
            q_tile = load_rows(q + start, rows, features, H * D, length, D)
            allowed = allowed_units(key_mask, batch, i, j, length, CAUSAL)
            kept = kept_units(words, batch, i, j, first_key, length, N)
            kept_in_row = load_numbers(row_kept, batch, rows, length, 1)[None, :]
            scores = masked_scores(k_tile, q_tile, kept, allowed, kept_in_row, scale2, PRECISION)
            p = tl.exp2(scores - load_numbers(lse, n, rows, length, float("inf"))[None, :])

            d_out_tile = load_rows(d_out + start, rows, features, H * D, length, D)
            d_p = probability_gradient(v_tile, d_out_tile, seed, i, j, n, dropout, PRECISION)
            row_delta = load_numbers(delta, n, rows, length, 0.0)[None, :]
            dropped = drop(p, seed, i, j, n, dropout)
            v_result += product(dropped.to(d_out_tile.dtype), d_out_tile, PRECISION)
            d_scores = tl.where(kept, p * (d_p - row_delta), 0.0)
            k_result += product(d_scores.to(q_tile.dtype), q_tile, PRECISION)
    store_rows(d_k + kv_start, k_result * scaling, keys, features, kv_heads * D, length, D)
    store_rows(d_v + kv_start, v_result, keys, features, kv_heads * D, length, D)
