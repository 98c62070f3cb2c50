"""The adversary's mask, one bit per attention unit, and the way back from the scores' gradient."""

import triton
import triton.language as tl

from asa_mini.adversary import MASKED_SCORE
from asa_mini.kernels.tiles import (
    WORD,
    allowed_units,
    head_start,
    kept_units,
    load_numbers,
    load_rows,
    masked_scores,
    probability_gradient,
    product,
)

MASKED = tl.constexpr(MASKED_SCORE)  # the gradient of the scores reaches the mask as -MASKED dS


@triton.jit
def adversary_scores(
    q,  # (B, L, E)
    k,  # (B, L, E)
    batch,
    rows,
    keys,
    length,
    E,
    BLOCK_E: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(rows, keys) tile of Qa Ka^T, BLOCK_E of the E features at a time."""
    q, k = q + batch * length * E, k + batch * length * E
    scores = tl.zeros((rows.shape[0], keys.shape[0]), tl.float32)
    for start in range(0, E, BLOCK_E):
        features = start + tl.arange(0, BLOCK_E)
        q_tile = load_rows(q, rows, features, E, length, E)
        k_tile = load_rows(k, keys, features, E, length, E)
        scores += product(q_tile, tl.trans(k_tile), PRECISION)
    return scores


@triton.jit
def mask_kernel(
    adversary_q,  # (B, L, E)
    adversary_k,  # (B, L, E)
    key_mask,  # (B, L) or None
    words,  # out (B, L, L/32) packed: kept and allowed
    counts,  # out (B, L/N, L): kept units of each row in each tile of N keys
    length,
    E: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """One program: M queries, N keys of one sequence."""
    batch = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * M + tl.arange(0, M)
    first_key = tl.program_id(1) * N
    keys = first_key + tl.arange(0, N)
    scores = adversary_scores(adversary_q, adversary_k, batch, rows, keys, length, E, BLOCK_E, PRECISION)
    allowed = allowed_units(key_mask, batch, rows[:, None], keys[None, :], length, CAUSAL)
    kept = (allowed & (scores > 0)).to(tl.int32)  # s > 0 needs no division by sqrt(E)
    counts += (batch * tl.num_programs(1) + tl.program_id(1)) * length
    tl.store(counts + rows, tl.sum(kept, 1), mask=rows < length)

    n_words = tl.cdiv(length, WORD)
    shifted = tl.reshape(kept, (M, N // WORD, WORD)) << tl.arange(0, WORD)[None, None, :]
    columns = first_key // WORD + tl.arange(0, N // WORD)
    inside = (rows < length)[:, None] & (columns < n_words)[None, :]
    target = words + (batch * length + rows)[:, None] * n_words + columns[None, :]
    tl.store(target, tl.sum(shifted, 2), mask=inside)


@triton.jit
def mask_gradient_kernel(
    q,  # (B, L, H, D)
    k,  # (B, L, Hkv, D)
    v,  # (B, L, Hkv, D)
    d_out,  # (B, L, H, D)
    lse,  # (B, H, L)
    delta,  # (B, H, L)
    adversary_q,  # (B, L, E)
    adversary_k,  # (B, L, E)
    d_kept,  # (B,)
    key_mask,
    words,
    row_kept,  # (B, L)
    seed,
    d_s,  # out (B, chunk, width): gradient of the adversary's scores, rows first_row onwards
    first_row,
    chunk,
    width,
    length,
    H,
    kv_heads,
    scale2,
    dropout,
    reversal,
    D: tl.constexpr,
    E: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """One program: M queries, N keys, all heads, because the heads share the mask.

    d_mask = -MASKED sum_h dS_h + d_kept         over the allowed units
    d_s    = -reversal d_mask sigmoid'(s) / sqrt(E)
    """
    batch = tl.program_id(2).to(tl.int64)
    in_chunk = tl.program_id(0) * M + tl.arange(0, M)
    rows, first_key = first_row + in_chunk, tl.program_id(1) * N
    keys, features = first_key + tl.arange(0, N), tl.arange(0, BLOCK_D)
    i, j = rows[:, None], keys[None, :]
    allowed = allowed_units(key_mask, batch, i, j, length, CAUSAL)
    kept = kept_units(words, batch, i, j, first_key, length, N)
    kept_in_row = load_numbers(row_kept, batch, rows, length, 1)[:, None]
    d_scores = tl.zeros((M, N), tl.float32)  # summed over the heads
    for head in range(H):
        n = (batch * H + head).to(tl.int32)  # as Philox takes it
        start = head_start(batch, head, length, H, D)
        kv_start = head_start(batch, head // (H // kv_heads), length, kv_heads, D)
        q_tile = load_rows(q + start, rows, features, H * D, length, D)
        k_tile = load_rows(k + kv_start, keys, features, kv_heads * D, length, D)
        scores = masked_scores(q_tile, k_tile, kept, allowed, kept_in_row, scale2, PRECISION)
        p = tl.exp2(scores - load_numbers(lse, n, rows, length, float("inf"))[:, None])
        d_out_tile = load_rows(d_out + start, rows, features, H * D, length, D)
        v_tile = load_rows(v + kv_start, keys, features, kv_heads * D, length, D)
        d_p = probability_gradient(d_out_tile, v_tile, seed, i, j, n, dropout, PRECISION)
        d_scores += p * (d_p - load_numbers(delta, n, rows, length, 0.0)[:, None])

    d_mask = -MASKED * d_scores + tl.where(allowed, tl.load(d_kept + batch), 0.0)
    s = adversary_scores(adversary_q, adversary_k, batch, rows, keys, length, E, BLOCK_E, PRECISION)
    norm = 1 / tl.sqrt(E * 1.0)
    sigmoid = tl.sigmoid(s * norm)
    tile = -reversal * norm * d_mask * sigmoid * (1 - sigmoid)
    inside = (in_chunk < chunk)[:, None] & (j < width) & (i < length)
    tl.store(
        d_s + (batch * chunk + in_chunk)[:, None] * width + j, tile.to(d_s.dtype.element_ty), mask=inside
    )
