"""The adversary's mask, one bit per attention unit, and the way back from the scores' gradient."""

import triton
import triton.language as tl

from asa_mini.kernels.tiles import (
    WORD,
    allowed_units,
    drop,
    kept_units,
    load_rows,
    masked_scores,
    product,
)


@triton.jit
def adversary_scores(
    q,
    k,
    rows,
    keys,
    length,
    E,
    M: tl.constexpr,
    N: tl.constexpr,
    BLOCK_E: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(M, N) tile of Qa Ka^T, BLOCK_E of the E features at a time."""
    scores = tl.zeros((M, N), tl.float32)
    for start in range(0, E, BLOCK_E):
        features = start + tl.arange(0, BLOCK_E)
        q_tile = load_rows(q, rows, features, E, length, E)
        k_tile = load_rows(k, keys, features, E, length, E)
        scores += product(q_tile, tl.trans(k_tile), PRECISION)
    return scores


@triton.jit
def mask_kernel(
    q,  # (B, L, E)
    k,  # (B, L, E)
    key_mask,  # (B, L) or None
    words,  # out (B, L, L/32) packed: kept and allowed
    counts,  # out (B, L/N, L): kept units of each row in each tile of N keys
    length,
    n_words,
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
    q += batch * length * E
    k += batch * length * E
    if key_mask is not None:
        key_mask += batch * length

    scores = adversary_scores(q, k, rows, keys, length, E, M, N, BLOCK_E, PRECISION)
    allowed = allowed_units(key_mask, rows[:, None], keys[None, :], length, CAUSAL)
    kept = (allowed & (scores > 0)).to(tl.int32)  # s > 0 needs no division by sqrt(E)
    counts += (batch * tl.num_programs(1) + tl.program_id(1)) * length
    tl.store(counts + rows, tl.sum(kept, 1), mask=rows < length)

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
    n_words,
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

    d_mask = 10000 sum_h dS_h + d_kept           over the allowed units
    d_s    = -reversal d_mask sigmoid'(s) / sqrt(E)
    """
    batch = tl.program_id(2).to(tl.int64)
    in_chunk = tl.program_id(0) * M + tl.arange(0, M)
    rows, first_key = first_row + in_chunk, tl.program_id(1) * N
    keys, features = first_key + tl.arange(0, N), tl.arange(0, BLOCK_D)
    i, j = rows[:, None], keys[None, :]
    q, d_out = q + batch * length * H * D, d_out + batch * length * H * D
    k, v = k + batch * length * kv_heads * D, v + batch * length * kv_heads * D
    lse, delta = lse + batch * H * length, delta + batch * H * length
    if key_mask is not None:
        key_mask += batch * length

    allowed = allowed_units(key_mask, i, j, length, CAUSAL)
    kept = kept_units(words + batch * length * n_words, i, j, first_key, length, n_words, N)
    kept_in_row = tl.load(row_kept + batch * length + rows, mask=rows < length, other=1)[:, None]
    d_scores = tl.zeros((M, N), tl.float32)  # summed over the heads
    for head in range(H):
        kv = head // (H // kv_heads) * D
        q_tile = load_rows(q + head * D, rows, features, H * D, length, D)
        k_tile = load_rows(k + kv, keys, features, kv_heads * D, length, D)
        scores = product(q_tile, tl.trans(k_tile), PRECISION) * scale2
        row_lse = tl.load(lse + head * length + rows, mask=rows < length, other=float("inf"))
        p = tl.exp2(masked_scores(scores, kept, allowed, kept_in_row) - row_lse[:, None])
        d_out_tile = load_rows(d_out + head * D, rows, features, H * D, length, D)
        v_tile = load_rows(v + kv, keys, features, kv_heads * D, length, D)
        d_p = product(d_out_tile, tl.trans(v_tile), PRECISION)
        d_p = drop(d_p, seed, i, j, (batch * H + head).to(tl.int32), dropout)
        row_delta = tl.load(delta + head * length + rows, mask=rows < length, other=0.0)
        d_scores += p * (d_p - row_delta[:, None])

    d_mask = 10000.0 * d_scores + tl.where(allowed, tl.load(d_kept + batch), 0.0)
    adversary_q, adversary_k = adversary_q + batch * length * E, adversary_k + batch * length * E
    s = adversary_scores(adversary_q, adversary_k, rows, keys, length, E, M, N, BLOCK_E, PRECISION)
    norm = 1 / tl.sqrt(E * 1.0)
    sigmoid = tl.sigmoid(s * norm)
    tile = -reversal * norm * d_mask * sigmoid * (1 - sigmoid)
    inside = (in_chunk < chunk)[:, None] & (j < width) & (i < length)
    tl.store(
        d_s + (batch * chunk + in_chunk)[:, None] * width + j, tile.to(d_s.dtype.element_ty), mask=inside
    )
