"""Checks of `ex06_gpu_attention`: kernels in Triton, compiled on a GPU, interpreted on the CPU without one.

The check of a kernel takes its launcher, which must be as it was given: `launch` calls it. References and
mistakes write to `out`, too, but compute in PyTorch, in double precision.
"""

from functools import partial

import numpy as np
import torch
from torch.nn import functional as F

from asa_classroom.checks.harness import Ladder, call
from asa_classroom.checks.launch import launch, launcher, require_triton  # noqa: F401, for the notebook

ladder = Ladder()
INF = float("inf")
BITS = [(4, 40), (2, 32), (1, 1)]  # rows and columns of masks


@ladder.step(
    what="the sum",
    cases=[(20, 8), (1, 16), (40, 8)],
    observe=lambda student, n, block: launch(student, [*torch.randn(2, n)], (n,), block=block),
    mistakes={
        "12 of 20 numbers of `out` were never written: which programs write what?": (
            lambda x, y, out, block: out[:block].copy_(x[:block] + y[:block])
        ),
        "a tl.store writes outside its tensor: look at its mask and at the addresses": (
            lambda x, y, out, block: out.as_strided((len(x) + 1,), (1,)).fill_(0)
        ),
        "the kernel writes into its inputs: store to the output alone": lambda x, y, out, block: x.add_(y),
    },
)
@launcher
def vector_add(x, y, block):
    return x + y


@ladder.step(
    what="the softmax",
    cases=[lambda: (torch.randn(3, 40),), lambda: (1000 * torch.randn(2, 32),), lambda: (torch.randn(1, 1),)],
    observe=lambda student, x: launch(student, [x], x.shape),
    mistakes={
        "places beyond the row count as e^0: load them as -inf": dict(filled=0.0),
        "every row is the softmax of row 0: where does this program's row begin?": dict(row=slice(1)),
        "the row's maximum is not subtracted before exp, and exp(1000) is infinite": dict(ruler=0),
    },
)
@launcher
def softmax_rows(x, *, filled=-INF, row=slice(None), ruler=1):
    x, columns = x[row].expand(x.shape), x.shape[1]
    x = F.pad(x, (0, 2 ** (columns - 1).bit_length() - columns), value=filled)
    e = (x - ruler * x.amax(1, True)).float().exp()
    return (e / e.sum(1, True))[:, :columns]


def _walk(x, block, v=None, *, rescaled=True, own=False, ruler=lambda top: torch.where(top > -INF, top, 0)):
    """Largest number, sum of exponentials, and sum of exponentials times v of each row, in blocks."""
    top, total, result = x.new_full((len(x), 1), -INF), 0, 0
    v = x.new_zeros(x.shape[1], 1) if v is None else v
    for s, values in zip(x.split(block, 1), v.split(block), strict=True):
        new_top = s.amax(1, True) if own else top.maximum(s.amax(1, True))
        p, factor = (s - ruler(new_top)).exp(), (top - ruler(new_top)).exp() if rescaled else 1
        total = total * factor + p.sum(1, True)
        result = result * factor + p @ values
        top = new_top
    return top, total, result


def _beginning(rows, columns, block, padding):
    """Random numbers that begin with -inf; the first row is far from 0 where it holds anything else."""
    x = 3 * torch.randn(rows, columns, dtype=torch.float64)
    x[:, :padding] = -INF
    x[0] += 1000 * (padding > 0)
    return x, block


@ladder.step(
    what=("the running maximum", "the running sum"),
    cases=[partial(_beginning, *c) for c in ((3, 40, 8, 0), (1, 1, 8, 0), (2, 40, 16, 33), (3, 20, 8, 20))],
    mistakes={
        "the sum is not rescaled when the maximum moves: multiply it by exp(old - new)": dict(rescaled=False),
        "the maximum is that of the last block: keep the larger of old and new": dict(own=True),
        "NaN: -inf - -inf is NaN; while only -inf was seen, subtract 0": dict(ruler=lambda top: top),
    },
)
def online_softmax(x, block, **wrong):
    top, total, _ = _walk(x, block, **wrong)
    return top[:, 0], total[:, 0]


@ladder.step(
    what="the softmax",
    cases=[partial(_beginning, *c) for c in ((3, 40, 16, 0), (1, 1, 16, 0), (2, 32, 16, 0), (2, 40, 8, 17))],
    observe=lambda student, x, block: launch(student, [x.float()], x.shape, block=block),
    mistakes={
        "every block is a softmax of its own: finish the first walk before you write": dict(apart=True),
        "the sum is not rescaled when the maximum moves": dict(rescaled=False),
        "NaN: -inf - -inf is NaN: what is subtracted while only -inf was seen?": dict(ruler=lambda top: top),
    },
)
@launcher
def online_softmax_rows(x, block, *, apart=False, **wrong):
    if apart:
        return torch.cat([s.softmax(1) for s in x.split(block, 1)], 1)
    top, total, _ = _walk(x, block, **wrong)
    return (x - top).exp() / total


@ladder.step(
    what="the packed mask",
    cases=BITS,
    observe=lambda student, rows, columns: call(student, torch.rand(rows, columns) < 0.6),
    mistakes={
        "a word is beyond int32: convert to torch.int32": lambda x: pack_mask.reference(x).long() % 2**32,
        "the bits are in reverse order: unit j is bit j % 32": dict(order=-1),
        "the units are dealt out in turn: unit j is in word j // 32": dict(dealt=True),
    },
)
def pack_mask(mask, *, order=1, dealt=False):
    """(R, L) boolean -> (R, words) int32, packed by NumPy; or with the bits in a wrong order."""
    bits = F.pad(mask, (0, -mask.shape[1] % 32))
    bits = bits.unflatten(1, (32, -1)).mT if dealt else bits.unflatten(1, (-1, 32))
    packed = np.packbits(bits.cpu().numpy()[:, :, ::order], 2, "little")
    return torch.from_numpy(packed.view("<i4").astype(np.int32)[..., 0])


@ladder.step(
    what="the mask",
    cases=BITS,
    observe=lambda student, *shape: call(student, pack_mask.reference(torch.rand(shape) < 0.6), shape[1]),
    mistakes={
        "the bits are in reverse order: unit j is bit j % 32": dict(place=lambda j: 31 - j % 32),
        "bit 31 is lost: with it a word is negative, so test != 0 and not > 0": dict(found=torch.gt),
        "kept and masked are swapped: a bit of 1 is True": dict(found=torch.eq),
    },
)
def unpack_mask(words, length, *, place=lambda j: j % 32, found=torch.ne):
    j = torch.arange(length, device=words.device)
    bit = torch.ones_like(words[:1, :1]) << place(j).int()  # bit 31 makes a negative number
    return found(words[:, j // 32] & bit, 0)


def _observe_mask_words(student, length, width, padding):
    q, k = torch.randint(-2, 3, (2, length, width)).float()  # whole numbers: s is exact, and often 0
    inputs = [q, k, torch.arange(length) < length - padding]
    return launch(student, inputs, (length, -(-length // 32)), torch.int32)


@ladder.step(
    what="the packed mask",
    cases=[(40, 12, 6), (1, 1, 0), (70, 20, 40)],
    observe=_observe_mask_words,
    mistakes={
        "s = 0 is kept, too: a unit is kept where s > 0": dict(kept=lambda s: s >= 0),
        "padding is kept: `(s > 0) & real`, with the parentheses, and not `and`": dict(padding=True),
        "queries and keys are swapped: rows of s belong to adversary_q": dict(kept=lambda s: s.mT > 0),
    },
)
@launcher
def mask_words(adversary_q, adversary_k, key_mask, *, kept=lambda s: s > 0, padding=False):
    return pack_mask.reference(kept(adversary_q @ adversary_k.mT) & (key_mask | padding))


LENGTHS = [(40, 12, 0, 6), (1, 1, 0, 0), (40, 8, 33, 0), (5, 8, 5, 0)]  # L, D, padding: at the start, end


def _inputs(length, dim, first, last):
    q, k, v = torch.randn(3, length, dim)
    place = torch.arange(length)
    return [2 * q, k, v, (place >= first) & (place < length - last)]


def _attend(scores, seen, v, **wrong):
    """softmax(scores) v, 32 keys at a time; keys that are not seen, or do not exist, have the score -inf."""
    more = -len(v) % 32
    scores = F.pad(torch.where(seen, scores, -INF), (0, more), value=-INF)
    _, total, result = _walk(scores, 32, F.pad(v, (0, 0, 0, more)), **wrong)
    return result / torch.where(total == 0, 1, total)


@ladder.step(
    what="the output",
    cases=[partial(_inputs, *c) for c in LENGTHS],
    observe=lambda student, q, k, v, key_mask: launch(student, [q, k, v, key_mask], q.shape),
    tolerance=2e-5,
    mistakes={
        "padding is attended to: its scores must be -inf": dict(padding=True),
        "the factor 1/sqrt(D) is missing: multiply by `scale`": dict(power=0),
        "the totals are not rescaled when the maximum moves": dict(rescaled=False),
    },
)
@launcher
def tiled_attention(q, k, v, key_mask, *, padding=False, power=0.5, **wrong):
    scores = q @ k.mT / q.shape[1] ** power
    return _attend(scores, (key_mask | padding).expand_as(scores), v, **wrong)


def _observe_masked(student, length, dim, first, last):
    *qkv, real = _inputs(length, dim, first, last)
    kept = (torch.rand(length, length) < 0.5) & real
    kept[::4] = False
    words, row_kept = pack_mask.reference(kept), kept.sum(1, dtype=torch.int32)
    return launch(student, [*qkv, real, words, row_kept], (length, dim))


@ladder.step(
    what="the output",
    cases=LENGTHS,
    observe=_observe_masked,
    tolerance=2e-5,
    mistakes={
        "a row with nothing kept attends to padding: real keys alone": dict(uniform=torch.ones_like),
        "a row with nothing kept gives zeros: let it attend to real keys": dict(uniform=torch.zeros_like),
        "only the first tile is right: a bit's place is j % 32": dict(place=lambda j: j.clamp(max=31)),
    },
)
@launcher
def masked_attention(q, k, v, key_mask, words, row_kept, *, uniform=torch.clone, **wrong):
    scores, nothing = q @ k.mT / q.shape[1] ** 0.5, row_kept[:, None] == 0
    kept = unpack_mask.reference(words, len(q), **wrong)
    return _attend(torch.where(kept, scores, 0), kept | nothing & uniform(key_mask), v)
