"""Checks of `ex06_gpu_attention`: kernels in Triton, compiled on a GPU, interpreted on the CPU without one.

The check of a kernel takes its launcher, which must be as it was given: `launch` calls it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from asa_classroom.checks.launch import (
    UNWRITTEN,
    InBlocks,
    attention,
    attention_in_tiles,
    last_tile,
    launch,
    real_tokens,
    require_triton,
    reversed_words,
    sums_of_exponentials,
    whole_words,
    words_of,
    written,
)
from asa_classroom.checks.old_harness import Ladder, call, require, same
from asa_mini.adversary import keep_mask

__all__ = ["ladder", "require_triton"]

ladder = Ladder("ex06_gpu_attention")
INF = float("inf")
SHAPES = ((3, 40), (2, 33), (4, 5), (1, 1), (2, 32))  # of the softmax steps, rows and columns
BITS = ((4, 40), (3, 33), (2, 32), (5, 5), (1, 1), (2, 100))  # of masks
# Length, D, padding at the start, padding at the end.
LENGTHS = (
    (70, 24, 0, 3), (40, 12, 0, 6), (33, 16, 0, 0), (5, 4, 1, 0), (1, 1, 0, 0), (40, 8, 33, 0), (5, 8, 5, 0),
)  # fmt: skip


@ladder.step
def vector_add(student):
    for n, block in ((20, 8), (1, 16), (5, 2), (33, 32), (40, 8)):
        x, y = torch.randn(2, n)
        first = torch.where(torch.arange(n) < block, x + y, UNWRITTEN)
        known = {
            "only the first block is written: tl.program_id(0) says which one a program has": first,
            "this is x alone: add what tl.load finds at y": x,
            "this is x - y": x - y,
            "this is x * y": x * y,
        }
        out = launch(student, [x, y], (n,), block=block)
        written(out, x + y, "the sum", f"{n} numbers in blocks of {block}", known)
        launch(student, [x, y], (n,), alone=True, block=block)
    return "five lengths, two of them whole blocks"


@ladder.step
def softmax_rows(student):
    for shape in SHAPES:
        for scale in (1, 1000):
            x = scale * torch.randn(shape)
            case = f"{shape[0]} rows of {shape[1]} numbers" + (" with a spread of 1000" if scale > 1 else "")
            p, e = x.softmax(1), (x - x.amax(1, True)).exp()
            filled = torch.cat([x, torch.zeros(shape[0], 2 ** (shape[1] - 1).bit_length() - shape[1])], 1)
            first = p[:1].expand(shape)
            known = {
                "places beyond the row count as e^0: load them as -inf": filled.softmax(1)[:, : shape[1]],
                "the exponentials are not divided by their sum": e,
                "every row is the softmax of row 0: where does this program's row begin?": first,
                "this is the logarithm of the softmax": x.log_softmax(1),
            }
            nan = "NaN: is the row's maximum subtracted before exp? exp(1000) is infinite"
            written(launch(student, [x], shape), p, "the softmax", case, known, nan)
    return "five shapes, with scores of a spread of 1 and of 1000"


@ladder.step
def online_softmax(student):
    cases = [(shape, 8, 0) for shape in SHAPES] + [((2, 40), 16, 33), ((3, 20), 8, 20), ((2, 5), 8, 0)]
    for shape, block, padding in cases:
        x = 3 * torch.randn(shape, dtype=torch.float64)
        x[:, :padding] = -INF
        x[0] += 1000 * (padding > 0 and shape[1] > padding)
        top = x.amax(1)
        total = (x - top[:, None].nan_to_num(neginf=0)).exp().sum(1)
        stale, own, plain = sums_of_exponentials(x, block)
        last = x.split(block, 1)[-1]
        case = f"x of shape {shape} in blocks of {block}" + (f", {padding} times -inf" if padding else "")
        with InBlocks(block):
            got = call(student, x, block)
        require(isinstance(got, tuple) and len(got) == 2, "return two tensors, the maximum and the sum")
        known = {
            "this is the maximum of the last block: keep the larger of old and new": last.amax(1),
            "the two are in the wrong order: the maximum comes first": total,
            "the maximum stays -inf: is `top = new_top` at the end of the loop?": top.new_full(
                top.shape, -INF
            ),
        }
        same(got[0], top, "the running maximum", case, known)
        broken = isinstance(got[1], Tensor) and got[1].isnan().any()
        known = {
            "NaN: -inf - -inf is NaN; while only -inf was seen, subtract 0": got[1] if broken else total,
            "the sum is not rescaled when the maximum moves: multiply it by exp(old - new)": stale,
            "every block has its own ruler: subtract the largest so far, and rescale the sum": own,
            "no maximum is subtracted": plain,
            "these are the exponentials of the last block alone": (last - top[:, None]).exp().sum(1),
        }
        same(got[1], total, "the running sum", case, known)
    return "eight shapes, among them rows that begin with -inf and rows of nothing else"


@ladder.step
def online_softmax_rows(student):
    cases = [(shape, 16, 0) for shape in SHAPES] + [((2, 40), 8, 17), ((1, 1100), 512, 0)]
    for shape, block, padding in cases:
        x = 3 * torch.randn(shape)
        x[:, :padding] = -INF
        x[0] += 1000 * (padding > 0)
        p, e = x.softmax(1), (x - x.amax(1, True)).exp()
        stale, own, _ = sums_of_exponentials(x, block)
        apart = torch.cat([s.softmax(1) for s in x.split(block, 1)], 1)
        last = x - x.split(block, 1)[-1].logsumexp(1, keepdim=True)
        carried = "is `top = new_top` at the end of the loop?"
        known = {
            "every block is a softmax of its own: finish the first walk before you write": apart,
            "the sum is not rescaled when the maximum moves": e / stale[:, None],
            "every block is summed with its own ruler: subtract the largest so far": e / own[:, None],
            "the exponentials are not divided by the sum": e,
            f"the maximum is not carried along: {carried}": p.new_full(p.shape, INF),
            f"only the last block is in the sum: {carried}": last.exp(),
        }
        case = f"{shape[0]} rows of {shape[1]} numbers in blocks of {block}"
        case += f", the first {padding} of a row are -inf" if padding else ""
        nan = "NaN: -inf - -inf is NaN, and exp of a large number is infinite: what is subtracted?"
        out = launch(student, [x], shape, at_once=block, block=block)
        written(out, p, "the softmax", case, known, nan)
    return "seven shapes and blocks, one with a first block of -inf"


@ladder.step
def pack_mask(student):
    for shape in BITS:
        mask = torch.rand(shape) < 0.6
        words = words_of(mask)
        dealt = whole_words(mask).flatten(1).unflatten(1, (32, -1)).mT.flatten(1)
        ones = whole_words(mask, True).flatten(1)
        known = {
            "a word is beyond int32: bit 31 is its sign, convert the sum to torch.int32": words.long()
            % 2**32,
            "the bits are in reverse order: unit j is bit j % 32": words_of(reversed_words(mask)),
            "the units are dealt out in turn: unit j is in word j // 32": words_of(dealt),
            "the bits beyond the last unit are 1: fill up with False": words_of(ones),
            "kept and masked are swapped: True is a bit of 1": words_of(~mask),
        }
        same(call(student, mask), words, "the packed mask", f"a mask of shape {shape}", known, tolerance=0)
    return "six shapes, whole and broken words"


@ladder.step
def unpack_mask(student):
    for shape in BITS:
        mask, (_, length) = torch.rand(shape) < 0.6, shape
        words, bit = words_of(mask), torch.arange(length) % 32
        shifted = words.repeat_interleave(32, 1)[:, :length] >> bit
        dealt = whole_words(mask).mT.flatten(1)[:, :length]
        known = {
            "higher bits are still there: after the shift keep the lowest one, & 1": shifted != 0,
            "the bits are in reverse order: unit j is bit j % 32": reversed_words(mask)[:, :length],
            "bit 31 is lost: with it a word is negative, so test != 0 and not > 0": mask & (bit < 31),
            "the units are dealt out in turn: unit j is in word j // 32": dealt,
            "kept and masked are swapped: a bit of 1 is True": ~mask,
        }
        case = f"{words.shape[1]} words for each of {shape[0]} rows, length {length}"
        same(call(student, words, length), mask, "the mask", case, known)
    return "six shapes, negative words among them"


@ladder.step
def mask_words(student):
    for length, width, last in ((40, 12, 6), (33, 16, 0), (5, 3, 1), (1, 1, 0), (70, 20, 40)):
        q, k = torch.randint(-2, 3, (2, length, width)).float()  # whole numbers: s is exact, and often 0
        key_mask = real_tokens(length, last=last)
        s, keep = q @ k.mT, keep_mask(q[None], k[None])[0].bool()
        kept = keep & key_mask
        words, units = words_of(kept), whole_words(kept)
        known = {
            "s = 0 is kept, too: a unit is kept where s > 0": words_of((s >= 0) & key_mask),
            "padding is kept: `(s > 0) & real`, with the parentheses, and not `and`": words_of(keep),
            "every real key is kept: is the score tested, and is it `&`, not `and`?": words_of(
                key_mask.expand_as(keep)
            ),
            "only the first word is right: a bit's place is j % 32, 0 to 31 in every word": words
            * (torch.arange(words.shape[1]) == 0).int(),
            "queries and keys are swapped: rows of s belong to adversary_q": words_of(keep.mT & key_mask),
            "key_mask is read the wrong way round: True is a real token": words_of(keep & ~key_mask),
            "padding is looked up by query: key_mask belongs to the keys": words_of(keep & key_mask[:, None]),
            "kept and masked are swapped: a kept unit is a bit of 1": words_of(~keep & key_mask),
            "the bits are in reverse order: key j is bit j % 32": words_of(reversed_words(kept)),
            "all units share the lowest bit: shift each to its own, j % 32": units.any(2).int(),
            "this is the number of kept units: shift each to its own bit first": units.sum(2).int(),
        }
        case = f"L {length}, E {width}" + (f", the last {last} keys are padding" if last else "")
        out = launch(student, [q, k, key_mask], tuple(words.shape), torch.int32)
        written(out, words, "the packed mask", case, known, name="words")
    return "five lengths, with padding and with s of exactly 0"


def _cases():
    """The inputs of an attention step: case, q, k, v and scores in double precision, which keys are real."""
    for length, dim, first, last in LENGTHS:
        q, k, v = (torch.randn(3, length, dim) * torch.tensor([2, 1, 1])[:, None, None]).double()
        case = f"L {length}, D {dim}" + (f", the first {first} keys are padding" if first else "")
        case += f", the last {last} keys are padding" if last else ""
        yield case, q, k, v, q @ k.mT / dim**0.5, real_tokens(length, first, last)


@ladder.step
def tiled_attention(student):
    for case, q, k, v, plain, real in _cases():
        scores = plain.masked_fill(~real, -INF)
        beyond = plain.new_zeros(len(q), -len(q) % 32)  # the scores of keys that do not exist
        zeros, all_keys = torch.cat([plain * real, beyond], 1), torch.cat([plain, beyond], 1)
        raw = (scores - scores.amax(1, True)).exp() @ v
        known = {
            "no key is masked: padding, and what lies beyond the length, needs -inf": attention(all_keys, v),
            "padding is attended to: its scores must be -inf": attention(plain, v),
            "keys beyond the length are attended to: load key_mask with other=0": attention(
                torch.cat([scores, beyond], 1), v
            ),
            "the factor 1/sqrt(D) is missing: multiply by `scale`": attention(scores * q.shape[1] ** 0.5, v),
            "masked scores are 0, and e^0 counts: they must be -inf": attention(zeros, v),
            "key_mask is read the wrong way round": attention(plain.masked_fill(real, -INF), v),
            "`top` stays -inf, so only the last tile counts: is `top = new_top` in the loop?": attention(
                last_tile(scores), v
            ),
            "`result` is not rescaled when the maximum moves": attention_in_tiles(scores, v, "total"),
            "`total` is not rescaled when the maximum moves": attention_in_tiles(scores, v, "result"),
            "nothing is rescaled when the maximum moves": attention_in_tiles(scores, v),
            "every tile has its own ruler: subtract the largest so far": attention_in_tiles(
                scores, v, own=True
            ),
            "the result is not divided by the sum of exponentials": raw.float(),
        }
        nan = "NaN: a tile, or a row, may have no real key, and -inf - -inf, 0 / 0 and 0 * inf are NaN"
        out = launch(student, [q.float(), k.float(), v.float(), real], q.shape)
        if not real.any():
            known = {"without a real key the output is zeros": out}
        written(out, attention(scores, v), "the output", case, known, nan)
    return "seven lengths and widths, a whole tile of padding and no real key among them"


@ladder.step
def masked_attention(student):
    for case, q, k, v, plain, real in _cases():
        kept = torch.rand(plain.shape) < 0.5
        kept[::4] = False
        kept &= real
        words, row_kept = words_of(kept), kept.sum(1, dtype=torch.int32)
        inputs = [q.float(), k.float(), v.float(), real, words, row_kept]
        out = launch(student, inputs, q.shape)

        # From here on with the keys beyond the length that fill up the last word.
        exists, nothing = whole_words(real[None] | True).flatten(), row_kept[:, None] == 0
        plain, kept, real = (F.pad(x, (0, -len(q) % 32)) for x in (plain, kept, real))

        def attend(kept, seen=real, score=0, plain=plain, v=v, nothing=nothing):
            """Rows with nothing kept see the keys `seen`, each with the same score."""
            return attention(torch.where(kept, plain, torch.where(nothing & seen, score, -INF)), v)

        every, keys = words.repeat_interleave(32, 1), torch.arange(len(real))
        shifted, first = every >> keys % 32, (every >> keys.clamp(max=31)) & 1 != 0
        tile = last_tile(torch.where(kept, plain, torch.where(nothing & real, 0, -INF)))
        zeros = (plain * kept).masked_fill(~real, -INF)
        known = {
            "the bit mask is ignored: masked units need -inf": attention(plain.masked_fill(~real, -INF), v),
            "a row with nothing kept attends to padding: real keys alone": attend(kept, exists),
            "a row with nothing kept sees every key: `(n == 0) & real`, parentheses, no `and`": attend(
                kept, real | True
            ),
            "a row with nothing kept attends to keys beyond the length: other=0": attend(
                kept, real | ~exists
            ),
            "a row with nothing kept gives zeros: let it attend to real keys": attend(kept, real & False),
            "a row with nothing kept attends unevenly: give equal scores": attend(kept, score=plain),
            "masked units score 0 in rows that keep some, not -inf: is it `&`, not `and`?": attention(
                zeros, v
            ),
            "kept and masked are swapped: a bit of 1 is kept": attend(~kept & real),
            "the bits are in reverse order: key j is bit j % 32": attend(reversed_words(kept)),
            "higher bits are still there: after the shift keep the lowest, & 1": attend(shifted != 0),
            "only the first tile is right: a bit's place is j % 32, 0 to 31 in every word": attend(first),
            "`top` stays -inf, so only the last tile counts: is `top = new_top` in the loop?": attention(
                tile, v
            ),
        }
        if not real.any():
            known = {"without a real key the output is zeros": out}
        nan = "NaN: a tile, or a row, may hold nothing but -inf: -inf - -inf, 0 / 0 and 0 * inf are NaN"
        written(out, attend(kept), "the output", f"{case}; every fourth row keeps nothing", known, nan)
    return "seven lengths and widths, with rows that keep nothing and with no real key"
