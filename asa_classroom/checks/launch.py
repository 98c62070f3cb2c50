"""Running a student's kernels, and the arithmetic they are compared with.

Every tensor lies in the middle of a larger one, so that a forgotten mask reaches neither another tensor nor
the interpreter; `out` comes filled with a number that no answer has.
"""

import importlib.util
import re
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from asa_classroom.checks.old_harness import CheckFailed, attempt, fail, require, same

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
UNWRITTEN = -7777
ROOM = 4096  # numbers on either side of a tensor
AROUND = {torch.float32: float("nan"), torch.bool: True, torch.int32: UNWRITTEN}
UNDEFINED = 7  # in the second run, where a tl.load has no `other` and its mask is False; else 0
OUTSIDE = "a tl.{} outside its tensor: look at its mask and at the addresses"
INSTEAD = {  # what Triton's interpreter says to PyTorch's habits -> what to write in a kernel
    r"TypeError.*\n  the line .*\w\[(?!:|None)": (
        "a tensor is an address here: read with tl.load(x + i), write with tl.store(out + i, ...)"
    ),
    r"'NoneType' object has no attribute 'to_tensor'": "in a kernel write tl.exp(s), not s.exp()",
}


def require_triton() -> None:
    """Raise CheckFailed, one line, where there is no triton."""
    found = importlib.util.find_spec("triton") is not None
    require(found, "these exercises need triton, which exists for Linux: use Linux, WSL or Google Colab")


def launch(student: Callable, inputs: list[Tensor], shape: tuple, dtype=torch.float32, **options) -> Tensor:
    """Return what the student's launcher writes into an `out` of the given shape; options as of `_launched`.

    Raises:
        CheckFailed: it is the kernel itself, it stops, or it touches what it should not; or the result
            depends on what a tl.load without `other` leaves open.
    """
    function = isinstance(student, types.FunctionType)
    require(function, "the check takes the launcher, the second function of the cell, not the kernel")
    out = _launched(student, inputs, shape, dtype, **options)
    if DEVICE == "cpu":
        with redirect_stdout(None):  # what a kernel prints was seen once
            again = _launched(student, inputs, shape, dtype, undefined=UNDEFINED, **options)
        alike = torch.allclose(out.double(), again.double(), atol=1e-5, equal_nan=True)
        require(alike, "the result uses places that a tl.load's mask leaves out: give it an `other`")
    return out


def _launched(
    student: Callable,
    inputs: list[Tensor],
    shape: tuple,
    dtype: torch.dtype,
    alone: bool = False,
    at_once: int | None = None,
    undefined: int = 0,
    **options,
) -> Tensor:
    """One run. With `alone`, no two programs write the same number; `at_once`: so many are read at a time."""
    inputs = [_placed(x, AROUND[x.dtype]) for x in inputs]
    out = _placed(torch.full(shape, UNWRITTEN, dtype=dtype), UNWRITTEN)
    before = [x.clone() for x in inputs]
    with _watched(*inputs, out, at_once=at_once, undefined=undefined) as stored, np.errstate(all="ignore"):
        _run(student, *inputs, out, **options)
    unchanged = all(torch.equal(x, copy) for x, copy in zip(inputs, before, strict=True))
    require(unchanged, "the kernel writes into its inputs: store to the output alone")
    before, after = (out.as_strided((ROOM,), (1,), at) for at in (0, ROOM + out.numel()))
    require((before == UNWRITTEN).all() and (after == UNWRITTEN).all(), OUTSIDE.format("store writes"))
    once = sum(map(len, stored.values())) == len(set().union(*stored.values()))
    require(once or not alone, "numbers are written by several programs: each does only its own block")
    return out.cpu()


def _run(student: Callable, *args, **options) -> None:
    """`attempt`, with a message of the interpreter put into words."""
    try:
        attempt(student, *args, **options)
    except CheckFailed as error:
        for theirs, ours in INSTEAD.items():
            if re.search(theirs, str(error)):
                fail(f"{ours}\n  {error}")
        raise


def written(
    out: Tensor, expected: Tensor, what: str, case: str, known: dict, nan: str = "NaN", name: str = "out"
) -> None:
    """`same`, for what a kernel wrote into `name`; `nan` says where a NaN may come from."""
    lost = int(((out == UNWRITTEN) & (expected != UNWRITTEN)).sum())
    message = f"{lost} of {out.numel()} numbers of `{name}` were never written: which programs write what?"
    known = {nan: out if out.isnan().any() else expected} | known | {message: out if lost else expected}
    same(out, expected, what, case, known, tolerance=2e-5 if out.is_floating_point() else 0)


def _placed(x: Tensor, around: float) -> Tensor:
    """A copy of x on the device, with room on both sides."""
    room = torch.full((x.numel() + 2 * ROOM,), around, dtype=x.dtype, device=DEVICE)
    return room[ROOM : ROOM + x.numel()].view(x.shape).copy_(x)


@contextmanager
def _watched(*tensors: Tensor, at_once: int | None = None, undefined: int = 0) -> Iterator[dict[tuple, set]]:
    """An interpreted kernel that touches anything but `tensors` fails; nobody can watch a compiled one.

    So does one that touches more than `at_once` places at a time. `undefined` is put where a tl.load's mask
    is False and it has no `other`. Yields the addresses that each program has stored to.
    """
    stored: dict[tuple, set] = {}
    if DEVICE != "cpu":
        yield stored
        return
    from triton.runtime.interpreter import interpreter_builder as builder

    ends = [(x.data_ptr(), x.data_ptr() + x.numel() * x.element_size()) for x in tensors]

    def watch(access: Callable, mask_at: int, verb: str) -> Callable:
        def watching(pointers, *others):
            mask = np.broadcast_to(others[mask_at].data, pointers.data.shape)
            touched = pointers.data[mask.astype(bool)]  # & makes integers of booleans
            inside = [(first <= touched) & (touched < end) for first, end in ends]
            require(np.any(inside, axis=0).all(), OUTSIDE.format(verb))
            wide = at_once is not None and mask.size > at_once
            require(not wide, "too many places at once: load and store BLOCK of them at a time")
            if access is store:
                stored.setdefault(builder.grid_idx, set()).update(touched.ravel().tolist())
            result = access(pointers, *others)
            if access is load and others[1] is None:
                result.data[~mask.astype(bool)] = undefined
            return result

        return watching

    load, store = builder.create_masked_load, builder.create_masked_store
    with (
        patch.object(builder, "create_masked_load", watch(load, 0, "load reads")),
        patch.object(builder, "create_masked_store", watch(store, 1, "store writes")),
    ):
        yield stored


class InBlocks(TorchFunctionMode):
    """While it is entered, an exponential or a maximum over more than `block` columns raises CheckFailed."""

    def __init__(self, block: int):
        super().__init__()
        self.block = block

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in ("exp", "max", "amax", "logsumexp"):
            wide = any(max(x.shape, default=0) > self.block for x in args[:1] if isinstance(x, Tensor))
            require(not wide, "too many columns at once: take `block` of them at a time")
        return function(*args, **(kwargs or {}))


def real_tokens(length: int, first: int = 0, last: int = 0) -> Tensor:
    """(L,) boolean, False for the first and last tokens."""
    at = torch.arange(length)
    return (at >= first) & (at < length - last)


def whole_words(mask: Tensor, value: bool = False) -> Tensor:
    """(R, L) boolean -> (R, words, 32), filled up with `value`."""
    return F.pad(mask, (0, -mask.shape[1] % 32), value=value).unflatten(1, (-1, 32))


def words_of(mask: Tensor) -> Tensor:
    """(R, L) boolean -> (R, words) int32, packed by NumPy."""
    packed = np.packbits(whole_words(mask).flatten(1).numpy(), 1, "little")
    return torch.from_numpy(packed.view("<i4").astype(np.int32))


def reversed_words(mask: Tensor) -> Tensor:
    """(R, L) boolean -> (R, 32 * words): every word's bits the other way round."""
    return whole_words(mask).flip(2).flatten(1)


def sums_of_exponentials(x: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """(R,) each: the wrong ones of a walk in blocks. Never rescaled; each block's own maximum; no maximum."""
    top, stale, own = torch.full(x.shape[:1], -torch.inf, dtype=x.dtype), 0, 0
    for s in x.split(block, 1):
        top = top.maximum(s.amax(1))
        stale = stale + (s - top[:, None]).exp().sum(1).nan_to_num(0)
        own = own + (s - s.amax(1, keepdim=True)).exp().sum(1).nan_to_num(0)
    return stale, own, x.exp().sum(1)


def attention(scores: Tensor, v: Tensor) -> Tensor:
    """softmax(scores) v as float32; zeros for a row of nothing but -inf. Rows of v may be missing: zeros."""
    v = F.pad(v, (0, 0, 0, scores.shape[1] - len(v)))
    return (scores.softmax(1).nan_to_num(0) @ v).float()


def last_tile(scores: Tensor) -> Tensor:
    """The scores of the last tile of 32 keys; before it all are -inf."""
    last = scores.split(32, 1)[-1]
    return F.pad(last, (scores.shape[1] - last.shape[1], 0), value=-torch.inf)


def attention_in_tiles(scores: Tensor, v: Tensor, rescaled: str = "", own: bool = False) -> Tensor:
    """The wrong ones: "total", "result" or nothing is rescaled; or each tile of 32 has its own maximum."""
    top, total, result = torch.full((len(v), 1), -torch.inf).double(), 0, 0
    for s, values in zip(scores.split(32, 1), v.split(32), strict=True):
        old, top = top, s.amax(1, True) if own else top.maximum(s.amax(1, True))
        p, rescale = (s - top).exp().nan_to_num(0), (old - top).exp().nan_to_num(0)
        total = total * (rescale if rescaled == "total" else 1) + p.sum(1, True)
        result = result * (rescale if rescaled == "result" else 1) + p @ values
    return (result / total).float()
