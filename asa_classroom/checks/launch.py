"""Running a student's kernels.

Every tensor lies in the middle of a larger one, so that a forgotten mask reaches neither another tensor nor
the interpreter; `out` comes filled with a number that no answer has.
"""

import functools
import importlib.util
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from asa_classroom.checks.compare import CheckFailed, require
from asa_classroom.checks.harness import attempt

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
UNWRITTEN = -7777
ROOM = 4096  # numbers on either side of a tensor
AROUND = {torch.float32: float("nan"), torch.bool: True, torch.int32: UNWRITTEN}
UNDEFINED = 7  # in the second run, where a tl.load has no `other` and its mask is False; else 0
OUTSIDE = "a tl.{} outside its tensor: look at its mask and at the addresses"
INSTEAD = {  # what Triton's interpreter says to PyTorch's habits -> what to write in a kernel
    r"TypeError.*\n  the line .*\w\[(?!:|None)": "a tensor is an address here: read with tl.load(x + i), "
    "write with tl.store(out + i, ...)",
    r"'NoneType' object has no attribute 'to_tensor'": "in a kernel write tl.exp(s), not s.exp()",
}


def require_triton() -> None:
    """Raise CheckFailed, one line, where there is no triton."""
    found = importlib.util.find_spec("triton") is not None
    require(found, "these exercises need triton, which exists for Linux: use Linux, WSL or Google Colab")


def launcher(compute: Callable) -> Callable:
    """Decorator: make of `compute`, inputs -> output, a launcher, which writes to its last argument."""

    @functools.wraps(compute)
    def launch(*tensors: Tensor, **options) -> None:
        *inputs, out = tensors
        out.copy_(compute(*[x.double() if x.is_floating_point() else x for x in inputs], **options))

    return launch


def launch(student: Callable, inputs: list[Tensor], shape: tuple, dtype=torch.float32, **options) -> Tensor:
    """Return what the student's launcher writes into an `out` of the given shape.

    Raises:
        CheckFailed: it is the kernel itself, it stops, it touches what it should not, or leaves numbers
            unwritten; or the result depends on what a tl.load without `other` leaves open.
    """
    kernel = hasattr(student, "__getitem__")
    require(not kernel, "the check takes the launcher, the second function of the cell, not the kernel")

    def run(undefined: int) -> Tensor:
        given = [_placed(x, AROUND[x.dtype]) for x in inputs]
        out = _placed(torch.full(shape, UNWRITTEN, dtype=dtype), UNWRITTEN)
        try:
            with _watched(*given, out, undefined=undefined):
                attempt(student, *given, out, **options)
        except CheckFailed as error:
            advice = [ours for theirs, ours in INSTEAD.items() if re.search(theirs, str(error))]
            raise type(error)("\n  ".join([*advice, str(error)]), error.cause) from None
        unchanged = all(torch.equal(x.cpu(), copy) for x, copy in zip(given, inputs, strict=True))
        require(unchanged, "the kernel writes into its inputs: store to the output alone")
        for at in (0, ROOM + out.numel()):
            require((out.as_strided((ROOM,), (1,), at) == UNWRITTEN).all(), OUTSIDE.format("store writes"))
        return out.cpu()

    out = run(undefined=0)
    lost = f"{(out == UNWRITTEN).sum()} of {out.numel()} numbers of `out` were never written"
    require((out != UNWRITTEN).all(), f"{lost}: which programs write what?")
    if DEVICE == "cpu":
        with redirect_stdout(None):  # what a kernel prints was seen once
            alike = torch.allclose(out.double(), run(UNDEFINED).double(), atol=1e-5, equal_nan=True)
        require(alike, "the result uses places that a tl.load's mask leaves out: give it an `other`")
    return out


def _placed(x: Tensor, around: float) -> Tensor:
    """A copy of x on the device, with room on both sides."""
    room = torch.full((x.numel() + 2 * ROOM,), around, dtype=x.dtype, device=DEVICE)
    return room[ROOM : ROOM + x.numel()].view(x.shape).copy_(x)


@contextmanager
def _watched(*tensors: Tensor, undefined: int) -> Iterator[None]:
    """An interpreted kernel that touches anything but `tensors` fails; nobody can watch a compiled one.

    `undefined` is put where a tl.load's mask is False and it has no `other`.
    """
    if DEVICE != "cpu":
        yield
        return
    from triton.runtime.interpreter import interpreter_builder as builder

    ends = [(x.data_ptr(), x.data_ptr() + x.numel() * x.element_size()) for x in tensors]

    def watch(access: Callable, mask_at: int, verb: str) -> Callable:
        def watching(pointers, *others):
            mask = np.broadcast_to(others[mask_at].data, pointers.data.shape)
            touched = pointers.data[mask.astype(bool)]  # & makes integers of booleans
            inside = [(first <= touched) & (touched < end) for first, end in ends]
            require(np.any(inside, axis=0).all(), OUTSIDE.format(verb))
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
        yield
