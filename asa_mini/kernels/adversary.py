"""The adversary's mask, one bit per attention unit, and the way back from the scores' gradient."""

import triton
import triton.language as tl

from asa_mini.adversary import MASKED_SCORE
from asa_mini.kernels.tiles import SIDE, add_bits, load_rows, product

MASKED = tl.constexpr(MASKED_SCORE)  # the gradient of the scores reaches the mask as -MASKED dS


@triton.jit
def allowed_units(key_mask, batch, i, j, length, CAUSAL: tl.constexpr):
    """True where query i may see key j: a real token, not in the future of a causal model."""
    allowed = (i < length) & (j < length)
    if key_mask is not None:
        allowed = allowed & (tl.load(key_mask + batch * length + j, mask=j < length, other=0) != 0)
    if CAUSAL:
        allowed = allowed & (i >= j)
    return allowed


@triton.jit
def adversary_scores(
    a,  # (B, L, E)
    b,  # (B, L, E)
    batch,
    rows,
    columns,
    length,
    E,
    BLOCK_E: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(rows, columns) tile of a b^T, BLOCK_E of the E features at a time: of Qa, Ka, or Ka, Qa transposed."""
    a, b = a + batch * length * E, b + batch * length * E
    scores = tl.zeros((rows.shape[0], columns.shape[0]), tl.float32)
    for start in range(0, E, BLOCK_E):
        features = start + tl.arange(0, BLOCK_E)
        a_tile = load_rows(a, rows, features, E, length, E)
        b_tile = load_rows(b, columns, features, E, length, E)
        scores = product(a_tile, tl.trans(b_tile), PRECISION, scores)
    return scores


@triton.jit
def mask_kernel(
    adversary_q,  # (B, L, E)
    adversary_k,  # (B, L, E)
    key_mask,  # (B, L) or None
    key_ends,  # (B,)
    words,  # out (B, words, L), zeros: what each query attends to, packed along the keys
    words_t,  # out (B, words, L), zeros: the same for each key, packed along the queries
    row_kept,  # out (B, L): kept units of each query
    factors,  # out (B, L): what its scores are multiplied by
    scale2,
    length,
    E,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """One program: M queries of one sequence, over all keys, N at a time.

    A query attends to the allowed units that are kept. One that keeps none attends to all that are allowed,
    evenly, because its factor is 0.
    """
    batch = tl.program_id(1).to(tl.int64)
    first_row, end = tl.program_id(0) * M, tl.load(key_ends + batch)
    rows = first_row + tl.arange(0, M)
    n_kept = tl.zeros((M,), tl.int32)
    for first_key in range(0, end, N):
        keys = first_key + tl.arange(0, N)
        s = adversary_scores(adversary_q, adversary_k, batch, rows, keys, length, E, BLOCK_E, PRECISION)
        allowed = allowed_units(key_mask, batch, rows[:, None], keys[None, :], length, CAUSAL)
        kept = (allowed & (s > 0)).to(tl.int32)  # s > 0 needs no division by sqrt(E)
        n_kept += tl.sum(kept, 1)
        add_bits(words, kept, batch, rows, first_key, length)
        add_bits(words_t, tl.trans(kept), batch, keys, first_row, length)
    empty = (n_kept == 0) & (rows < length)
    tl.store(row_kept + batch * length + rows, n_kept, mask=rows < length)
    tl.store(factors + batch * length + rows, tl.where(empty, 0.0, scale2), mask=rows < length)
    if tl.max(empty.to(tl.int32), 0) > 0:
        tl.debug_barrier()  # what other threads of this program have stored is read again
        for first_key in range(0, end, N):
            keys = first_key + tl.arange(0, N)
            allowed = allowed_units(key_mask, batch, rows[:, None], keys[None, :], length, CAUSAL)
            seen = (allowed & empty[:, None]).to(tl.int32)
            add_bits(words, seen, batch, rows, first_key, length)
            add_bits(words_t, tl.trans(seen), batch, keys, first_row, length)


@triton.jit(do_not_specialize=["first_sequence", "sides_before"])
def mask_gradient_kernel(
    d_scores,  # (sequences, H, lines, width): gradient of the heads' scores, of a block, transposed
    adversary_q,  # (B, L, E)
    adversary_k,  # (B, L, E)
    d_kept,  # (B, L)
    key_mask,
    d_s,  # out (sequences, lines, width): gradient of the adversary's scores
    first_sequence,  # of the block
    sides_before,  # its first key is sides_before SIDE
    lines,
    width,
    length,
    H,
    reversal,
    E,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """One program: M queries, N keys of a block, all heads, because the heads share the mask::

        d_mask = -MASKED sum_h dS_h + d_kept_i       over the allowed units
        d_s    = -reversal d_mask sigmoid'(s) / sqrt(E)

    Tiles are transposed, as `d_scores` comes.
    """
    in_block = tl.program_id(2).to(tl.int64)
    batch = first_sequence + in_block
    line = tl.program_id(1) * N + tl.arange(0, N)
    rows, keys = tl.program_id(0) * M + tl.arange(0, M), sides_before * SIDE + line
    i, j = rows[None, :], keys[:, None]
    place = line[:, None] * width + i
    total = tl.zeros((N, M), tl.float32)
    for head in range(H):
        total += tl.load(d_scores + (in_block * H + head) * lines * width + place).to(tl.float32)
    allowed = allowed_units(key_mask, batch, i, j, length, CAUSAL)
    d_row = tl.load(d_kept + batch * length + i, mask=i < length, other=0.0)
    d_mask = tl.where(allowed, d_row - MASKED * total, 0.0)
    s = adversary_scores(adversary_k, adversary_q, batch, keys, rows, length, E, BLOCK_E, PRECISION)
    norm = 1 / tl.sqrt(E * 1.0)
    sigmoid = tl.sigmoid(s * norm)
    tile = -reversal * norm * d_mask * sigmoid * (1 - sigmoid)
    tl.store(d_s + in_block * lines * width + place, tile.to(d_s.dtype.element_ty))
