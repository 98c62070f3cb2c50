"""The small steps that all kernels share. A tile is a block of attention units, held by one program.

Index tensors come expanded, so that every step serves a tile and its transpose alike: i (M, 1) and j (1, N),
or i (1, M) and j (N, 1). What lies beyond the edges of a tensor is read as zero and never written.
"""

import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

WORD = tl.constexpr(32)  # attention units per word of the packed mask


@triton.jit
def head_start(batch, head, length, heads, D):
    """Where a head's first row lies in a (B, L, heads, D) tensor; its rows are heads D elements apart."""
    return batch * length * heads * D + head * D


@triton.jit
def load_numbers(numbers, n, rows, length, other):
    """(R,) one number for each row of sequence, or head, n of a tensor (..., L)."""
    return tl.load(numbers + (n.to(tl.int64) * length + rows), mask=rows < length, other=other)


@triton.jit
def load_rows(tensor, rows, columns, row_stride, n_rows, n_columns):
    """(R, C) tile of a matrix whose rows are `row_stride` elements apart."""
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    return tl.load(tensor + rows[:, None] * row_stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def store_rows(tensor, tile, rows, columns, row_stride, n_rows, n_columns):
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    target = tensor + rows[:, None] * row_stride + columns[None, :]
    tl.store(target, tile.to(tensor.dtype.element_ty), mask=inside)


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
def kept_units(words, batch, i, j, first_key, length, N: tl.constexpr):
    """Unpack the adversary's mask for N keys: unit (i, j) is bit j % 32 of word (i, j // 32).

    A thread reads each word once and shifts it to all its keys.
    """
    n_words = tl.cdiv(length, WORD)
    words += batch * length * n_words
    first_word = first_key // WORD
    bits = tl.zeros_like(i + j)
    for word in tl.static_range(N // WORD):
        inside = (i < length) & (first_word + word < n_words)
        row = i.to(tl.int64) * n_words  # beyond 2^31 words at L 262,144
        packed = tl.load(words + row + first_word + word, mask=inside, other=0)
        bits = tl.where((j - first_key) // WORD == word, packed >> (j % WORD), bits)
    return (bits & 1) != 0


@triton.jit
def drop(tile, seed, i, j, n, dropout):
    """Dropout of the attention weights, or of their gradient; `seed` None means no dropout.

    Philox of (i, j, n), n the head among the B H, says the same wherever it is asked, so the backward pass
    asks again instead of keeping B H L L bits. One call gives four numbers, for the units (i, j), (i + 8, j),
    (i, j + 8) and (i + 8, j + 8): one thread holds all four, in a tile as in its transpose, so the compiler
    makes one call of four.
    """
    if seed is not None:
        # -9: every bit but the one of value 8. 7 rounds of Philox pass BigCrush.
        a, b, c, d = tl.philox(tl.load(seed), j & -9, i & -9, n, 0, 7)
        random = tl.where(i & 8 != 0, tl.where(j & 8 != 0, d, c), tl.where(j & 8 != 0, b, a))
        survives = random.to(tl.float32) * 2.3283064365386963e-10 >= dropout  # 2^-32: [0, 2^32) to [0, 1]
        tile = tl.where(survives, tile * (1 / (1 - dropout)), 0.0)
    return tile


INTERPRETED = tl.constexpr(isinstance(drop, InterpretedFunction))  # TRITON_INTERPRET=1: on the CPU, slowly


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """a @ b in float32; PRECISION says what float32 inputs may be rounded to."""
    if INTERPRETED:
        # Its dot multiplies the bit patterns of bfloat16 (triton issue 11584); in float32 it is exact.
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def masked_scores(a, b, kept, allowed, row_kept, scale2, PRECISION: tl.constexpr):
    """What the softmax sees, S = scale2 a b^T where kept: a, b = Q, K, or K, Q for the transposed tile.

    A row with nothing kept attends uniformly to all that it is allowed to see.
    """
    scores = product(a, tl.trans(b), PRECISION) * scale2
    return tl.where(kept, scores, tl.where((row_kept == 0) & allowed, 0.0, float("-inf")))


@triton.jit
def probability_gradient(a, b, seed, i, j, n, dropout, PRECISION: tl.constexpr):
    """dP = dropout(a b^T) of a tile of head n: a, b = dO, V, or V, dO for the transposed tile."""
    return drop(product(a, tl.trans(b), PRECISION), seed, i, j, n, dropout)
