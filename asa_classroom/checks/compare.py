"""Expected and got: whether a student's result is the right one, and in which words it is told if not."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

SHOWN = 12  # numbers of a tensor in a message
KINDS = {Tensor: "a tensor", np.ndarray: "a NumPy array"}
DOUBLE = 1e-7  # tolerance in float64: a forgotten detach changes some gradients by a part in 10000 only


class CheckFailed(AssertionError):
    """A student's answer is not right yet; the text is for the student, and all that a notebook shows.

    Attributes:
        cause: "Type: text" of the exception that stopped the student's code, or "".
    """

    def __init__(self, message: str, cause: str = ""):
        super().__init__(message)
        self.cause = cause

    def _render_traceback_(self) -> list[str]:  # IPython asks for the lines to print
        return str(self).splitlines()


def require(condition: Any, message: str) -> None:
    """Raise CheckFailed with `message` unless `condition` is true."""
    if not condition:
        raise CheckFailed(message)


def same(got: Any, expected: Any, what: str, case: str = "", hint: str = "", tolerance: float = 1e-5) -> None:
    """Raise CheckFailed unless `got` is what was expected; the first line says what is wrong.

    Args:
        got: the student's result.
        expected: tensor, array, number, boolean, string, None, or a list, tuple or dictionary of these.
        what: the quantity's name in a student's terms, such as "the gradient of x".
        case: the input, in words.
        hint: the first line, where it is known better than "... is not right".
        tolerance: absolute, and relative to the expected number; at most 1e-7 in float64. NaN equals NaN.
    """
    right, kind = equal(got, expected, tolerance), type(expected)
    array = kind in (Tensor, np.ndarray)
    if right and (not array or (isinstance(got, kind) and got.dtype == expected.dtype)):
        return
    rows = {"case": case, "expected": short(expected), "got": short(got)}
    told = f"{what} is not right"
    if array and got is None:
        told = f"{what} is missing: is something detached, or cut off by a comparison or where()?"
    elif expected is None and isinstance(got, Tensor):
        told = f"{what} must not be there: something must be detached"
    elif array and not isinstance(got, kind):
        told = f"{what} must be {KINDS[kind]}, not a {type(got).__name__}"
    elif right:
        told = f"{what} has the right numbers but the wrong dtype"
        rows |= {"expected": str(expected.dtype), "got": str(got.dtype)}
    elif array and got.shape != expected.shape:
        told = f"{what} has the wrong shape"
    elif array and expected.ndim and (a := numbers(got)) is not None:
        b = numbers(expected)
        if (a.isnan() & ~b.isnan()).any():
            told += ", it has NaN: an inf, an overflow or 0 / 0 is on the way"
        difference = (a - b).abs().nan_to_num(torch.inf)
        index = tuple(int(i) for i in np.unravel_index(int(difference.argmax()), difference.shape))
        pair = f"expected {b[index]:.4g}, got {a[index]:.4g}"  # the rows above may look alike
        rows["largest difference"] = f"{difference.max():.3g} at {list(index)}: {pair}"
    width = max(map(len, rows))
    lines = [f"  {name:{width}}  {text}" for name, text in rows.items() if text]
    raise CheckFailed("\n".join([hint or told, *lines]))


def equal(got: Any, expected: Any, tolerance: float) -> bool:
    """Whether both are the same but for rounding and dtype; False, too, for what cannot be compared."""
    if isinstance(expected, dict):
        fits = isinstance(got, dict) and got.keys() == expected.keys()
        return fits and all(equal(got[key], expected[key], tolerance) for key in expected)
    if isinstance(expected, (list, tuple)):
        if isinstance(got, (Tensor, np.ndarray)) and got.ndim:  # a pair may come as an array, too
            got = list(got)
        fits = isinstance(got, (list, tuple)) and len(got) == len(expected)
        return fits and all(equal(g, e, tolerance) for g, e in zip(got, expected, strict=True))
    if expected is None or isinstance(expected, (str, bool)):
        return type(got) is type(expected) and got == expected
    a, b = numbers(got), numbers(expected)
    if a is None or b is None or a.shape != b.shape:
        return False
    if str(getattr(expected, "dtype", "")).endswith("float64"):  # None == np.dtype("float64") is True
        tolerance = min(tolerance, DOUBLE)
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def numbers(value: Any) -> Tensor | None:
    """`value` as a float64 tensor, or None if it is no real number: a negative number ** 0.5 is none."""
    try:
        value = value.copy() if isinstance(value, np.ndarray) else value  # torch takes no view like a[::-1]
        dtype = None if isinstance(value, (Tensor, np.ndarray)) else torch.float64
        tensor = torch.as_tensor(value, dtype=dtype).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        return None
    return None if tensor.is_complex() else tensor.double()


def short(value: Any) -> str:
    """`value` in a message: its first numbers and its shape, or its first 200 characters."""
    if isinstance(value, np.ndarray) and numbers(value) is not None:
        value = torch.from_numpy(value.copy())
    if not isinstance(value, Tensor):
        text = repr(value)
        return text if len(text) <= 200 else text[:200] + " ..."
    flat = value.detach().flatten()
    digits = ".4g" if flat.is_floating_point() or flat.is_complex() else "d"
    shown = ", ".join(f"{number:{digits}}" for number in flat[:SHOWN].tolist())
    rest = f", ... ({flat.numel()} numbers)" if flat.numel() > SHOWN else ""
    return f"[{shown}{rest}] of shape {tuple(value.shape)}"
