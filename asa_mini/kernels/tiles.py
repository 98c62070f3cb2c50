"""The small steps that all kernels share. A tile is a block of attention units, held by one program.

Index tensors come expanded, so that every step serves a tile and its transpose alike: i (M, 1) and j (1, N),
or i (1, M) and j (N, 1). What lies beyond the edges of a tensor is read as zero and never written.
"""

import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

WORD = tl.constexpr(32)  # attention units per word of the packed mask
SIDE = tl.constexpr(128)  # the longest side of a tile; what only kernels read is padded to it


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
def first_word(batch, first, length):
    """Where a sequence's words from position `first` on begin, in a packed mask (B, words of a line, L)."""
    return batch * (tl.cdiv(length, SIDE) * (SIDE // WORD)) + first // WORD


@triton.jit
def add_bits(words, bits, batch, lines, first, length):
    """Pack a tile of zeros and ones into words: position p of a line is bit p % 32 of its word p // 32.

    The tile's rows are the lines, its columns the positions `first` and on. Words of one place lie together.
    """
    R: tl.constexpr = bits.shape[0]
    W: tl.constexpr = bits.shape[1] // WORD
    packed = tl.sum(tl.reshape(bits, (R, W, WORD)) << tl.arange(0, WORD)[None, None, :], 2)
    word = first_word(batch, first, length) + tl.arange(0, W)
    target, inside = words + word[None, :] * length + lines[:, None], (lines < length)[:, None]
    tl.store(target, tl.load(target, mask=inside, other=0) | packed, mask=inside)


@triton.jit
def attended(scores, words, batch, lines, first, length):
    """Scores where the packed mask has a 1, else -inf; rows and columns as in `add_bits`."""
    column = tl.arange(0, scores.shape[1])[None, :]
    word = first_word(batch, first, length)
    packed = load_numbers(words, word, lines, length, 0)[:, None]
    for w in tl.static_range(1, scores.shape[1] // WORD):
        next_word = load_numbers(words, word + w, lines, length, 0)[:, None]
        packed = tl.where(column // WORD < w, packed, next_word)
    return tl.where(packed & (1 << column % WORD) != 0, scores, float("-inf"))


@triton.jit
def drop(tile, seed, i, j, n, drop_below):
    """Zero the attention weights, or their gradients, that are dropped; `seed` None means no dropout.

    Philox of (i, j, n), n the head among the B H, says the same wherever it is asked, so the backward pass
    asks again instead of keeping B H L L bits. One call gives four numbers, for the units (i, j), (i + 8, j),
    (i, j + 8) and (i + 8, j + 8): one thread holds all four, in a tile as in its transpose, so the compiler
    makes one call of four.
    """
    if seed is not None:
        # -9: every bit but the one of value 8. 7 rounds of Philox pass BigCrush.
        a, b, c, d = tl.philox(seed, j & -9, i & -9, n, 0, 7)
        random = tl.where(i & 8 != 0, tl.where(j & 8 != 0, d, c), tl.where(j & 8 != 0, b, a))
        tile = tl.where(random.to(tl.int32, bitcast=True) >= drop_below, tile, 0.0)
    return tile


INTERPRETED = tl.constexpr(isinstance(drop, InterpretedFunction))  # TRITON_INTERPRET=1: on the CPU, slowly


@triton.jit
def product(a, b, PRECISION: tl.constexpr, total=None):
    """total + a @ b in float32; PRECISION says what float32 inputs may be rounded to."""
    if INTERPRETED:
        # Its dot multiplies the bit patterns of bfloat16 (triton issue 11584); in float32 it is exact.
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)
