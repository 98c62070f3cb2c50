"""Flash attention under the packed mask: forward, and backward for Q, K and V.

The mask's bits say what a query attends to. Its scores are multiplied by its factor: scaling log2(e), because
the hardware has exp2, or 0 where it attends evenly. Keys from a sequence's end on are padding. Tensors lie in
memory as transformers makes them, (B, L, H, D).
"""

import triton
import triton.language as tl

from asa_mini.kernels.tiles import (
    SIDE,
    attended,
    drop,
    head_start,
    load_numbers,
    load_rows,
    product,
    store_rows,
)

LN_2 = tl.constexpr(0.6931471805599453)  # the scores' gradient is that of base e


@triton.jit
def forward_kernel(
    q,  # (B, L, H, D)
    k,  # (B, L, Hkv, D)
    v,  # (B, L, Hkv, D)
    key_ends,  # (B,)
    words,  # (B, words, L)
    factors,  # (B, L)
    seed,  # (1,) or None
    out,  # out (B, L, H, D)
    lse,  # out (B, H, L): log2 of the softmax's denominator
    length,
    H,
    kv_heads,
    drop_below,
    survivor_scale,
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
    if seed is not None:
        seed = tl.load(seed)

    q_tile = load_rows(q + start, rows, features, H * D, length, D)
    factor = load_numbers(factors, batch, rows, length, 0.0)[:, None]
    top = tl.full((M,), float("-inf"), tl.float32)  # largest score so far
    total = tl.zeros((M,), tl.float32)  # sum of exp2(score - top) so far
    result = tl.zeros((M, BLOCK_D), tl.float32)  # the same sum, each term times its value
    end = tl.load(key_ends + batch)
    if CAUSAL:
        end = tl.minimum(end, (tl.program_id(0) + 1) * M)
    for first_key in range(0, end, N):
        keys = first_key + tl.arange(0, N)
        k_tile = load_rows(k + kv_start, keys, features, kv_heads * D, length, D)
        scores = product(q_tile, tl.trans(k_tile), PRECISION) * factor
        scores = attended(scores, words, batch, rows, first_key, length)

        new_top = tl.maximum(top, tl.max(scores, 1))
        origin = tl.where(new_top == float("-inf"), 0.0, new_top)  # nothing seen yet: -inf - -inf is NaN
        p = tl.exp2(scores - origin[:, None])
        rescale = tl.exp2(top - origin)
        total = total * rescale + tl.sum(p, 1)
        p = drop(p, seed, rows[:, None], keys[None, :], n, drop_below)
        v_tile = load_rows(v + kv_start, keys, features, kv_heads * D, length, D)
        result = product(p.to(v_tile.dtype), v_tile, PRECISION, result * rescale[:, None])
        top = new_top

    nothing = total == 0  # a row without an allowed key gives zeros, and no gradient
    total = tl.where(nothing, 1.0, total)
    store_rows(out + start, result * (survivor_scale / total)[:, None], rows, features, H * D, length, D)
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


@triton.jit(do_not_specialize=["first_sequence", "sides_before"])
def key_value_gradient_kernel(
    q,
    k,
    v,
    d_out,  # (B, L, H, D)
    lse,  # (B, H, L)
    delta,  # (B, H, L)
    key_ends,
    words_t,  # (B, words, L)
    factors,
    seed,
    d_k,  # out (B, L, Hkv, D)
    d_v,  # out (B, L, Hkv, D)
    d_scores,  # out (sequences, H, lines, width): dS of a block of sequences and keys, transposed
    first_sequence,  # of the block
    sides_before,  # its first key is sides_before SIDE
    lines,
    width,
    length,
    H,
    kv_heads,
    drop_below,
    survivor_scale,
    D: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: N keys of a block, of one key head, over all queries of the heads that share it::

        dS = P (dropout(dO V^T) - delta)        dV = dropout(P)^T dO        dK = (factor ln 2 dS)^T Q

    Tiles are transposed, keys down and queries across, so that P^T and dS^T stand ready for these products.
    """
    in_block, kv_head = (tl.program_id(1) // kv_heads).to(tl.int64), tl.program_id(1) % kv_heads
    batch = first_sequence + in_block
    kv_start = head_start(batch, kv_head, length, kv_heads, D)
    line, first_key = tl.program_id(0) * N + tl.arange(0, N), sides_before * SIDE + tl.program_id(0) * N
    keys, features = first_key + tl.arange(0, N), tl.arange(0, BLOCK_D)
    if seed is not None:
        seed = tl.load(seed)

    k_tile = load_rows(k + kv_start, keys, features, kv_heads * D, length, D)
    v_tile = load_rows(v + kv_start, keys, features, kv_heads * D, length, D)
    k_result = tl.zeros((N, BLOCK_D), tl.float32)
    v_result = tl.zeros((N, BLOCK_D), tl.float32)
    first_tile = first_key // M if CAUSAL else 0
    first_tile = tl.where(first_key < tl.load(key_ends + batch), first_tile, width // M)
    groups = H // kv_heads
    for head in range(kv_head * groups, (kv_head + 1) * groups):
        n = (batch * H + head).to(tl.int32)  # as Philox takes it
        start = head_start(batch, head, length, H, D)
        target = d_scores + ((in_block * H + head) * lines + line[:, None]) * width + tl.arange(0, M)[None, :]
        for tile in range(0, first_tile):  # these queries see none of the keys
            tl.store(target + tile * M, tl.zeros((N, M), d_scores.dtype.element_ty))
        for tile in range(first_tile, width // M):
            first_row = tile * M  # not the loop's own number: the compiler has to know that M divides it
            rows = first_row + tl.arange(0, M)
            i, j = rows[None, :], keys[:, None]
            factor = load_numbers(factors, batch, rows, length, 0.0)[None, :]
            row_lse = load_numbers(lse, n, rows, length, float("inf"))[None, :]
            q_tile = load_rows(q + start, rows, features, H * D, length, D)
            scores = product(k_tile, tl.trans(q_tile), PRECISION) * factor - row_lse
            p = tl.exp2(attended(scores, words_t, batch, keys, first_row, length))

            row_delta = load_numbers(delta, n, rows, length, 0.0)[None, :]
            d_out_tile = load_rows(d_out + start, rows, features, H * D, length, D)
            d_p = drop(product(v_tile, tl.trans(d_out_tile), PRECISION), seed, i, j, n, drop_below)
            d_score = p * (d_p * survivor_scale - row_delta)
            tl.store(target + first_row, d_score.to(d_scores.dtype.element_ty))
            p = drop(p, seed, i, j, n, drop_below)
            v_result = product(p.to(d_out_tile.dtype), d_out_tile, PRECISION, v_result)
            k_result = product((d_score * factor).to(q_tile.dtype), q_tile, PRECISION, k_result)
    store_rows(d_k + kv_start, k_result * LN_2, keys, features, kv_heads * D, length, D)
    store_rows(d_v + kv_start, v_result * survivor_scale, keys, features, kv_heads * D, length, D)


@triton.jit(do_not_specialize=["first_sequence", "sides_before"])
def query_gradient_kernel(
    d_scores,
    k,
    key_ends,
    factors,
    d_q,  # out (B, L, H, D)
    first_sequence,
    sides_before,
    lines,
    width,
    length,
    H,
    kv_heads,
    D: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: M queries of one head over the keys of a block, dQ = factor ln 2 dS K.

    It is added to what the blocks before have given.
    """
    in_block = tl.program_id(1).to(tl.int64)
    batch, head = first_sequence + in_block // H, in_block % H
    start = head_start(batch, head, length, H, D)
    kv_start = head_start(batch, head // (H // kv_heads), length, kv_heads, D)
    rows, features = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, BLOCK_D)
    source = d_scores + in_block * lines * width + rows[None, :]
    first_key = sides_before * SIDE
    end = tl.load(key_ends + batch) - first_key
    if CAUSAL:
        end = tl.minimum(end, (tl.program_id(0) + 1) * M - first_key)
    result = tl.zeros((M, BLOCK_D), tl.float32)
    for first in range(0, tl.minimum(end, lines), N):
        line = first + tl.arange(0, N)
        tile = tl.load(source + line[:, None] * width)
        k_tile = load_rows(k + kv_start, first_key + line, features, kv_heads * D, length, D)
        result = product(tl.trans(tile), k_tile, PRECISION, result)
    result *= load_numbers(factors, batch, rows, length, 0.0)[:, None] * LN_2
    if sides_before > 0:
        result += load_rows(d_q + start, rows, features, H * D, length, D)
    store_rows(d_q + start, result, rows, features, H * D, length, D)
