"""The former harness, for the checks that still name mistakes in their own code."""

import ast
import functools
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from asa_classroom.checks.compare import CheckFailed
from asa_classroom.checks.harness import Unfinished

SEED = 0
SHOWN = 12  # numbers of a tensor in a message


class Ladder:
    """The steps of one exercise notebook, in order.

    Args:
        notebook: stem of the file in `notebooks/exercises`.
    """

    def __init__(self, notebook: str):
        self.notebook = notebook
        self.steps: dict[str, Callable[[Any], None]] = {}

    def step(self, check: Callable[[Any], str]) -> Callable[[Any], None]:
        """Decorator of a check: `check(student)` returns a few words about what was tried, or raises.

        The decorated check seeds torch, leaves the global random state as it was, prints one line when the
        student's code passes, and otherwise raises CheckFailed.
        """
        name = check.__name__
        number = len(self.steps) + 1

        @functools.wraps(check)
        def run(student: Any) -> None:
            try:
                if not callable(student):
                    fail(f"the check takes your function itself: {name}, without brackets")
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(SEED)
                    tried = check(student)
            except Unfinished as error:
                raise Unfinished(f"Step {number}, {name}: not finished yet. {error}") from None
            except CheckFailed as error:
                raise CheckFailed(f"Step {number}, {name}: {error}") from None
            print(f"Step {number}, {name}: passed ({tried}).")

        self.steps[name] = run
        return run


def fail(message: str) -> NoReturn:
    """Raise CheckFailed."""
    raise CheckFailed(message)


def require(condition: Any, message: str) -> None:
    """Raise CheckFailed with `message` unless `condition` is true."""
    if not condition:
        fail(message)


def call(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """Return `function(*args, **kwargs)`, the student's code, and turn what can go wrong into a CheckFailed.

    That is: a stub that is still there (Unfinished), any other exception (told with the line of the student's
    cell), a result of None, and a tensor among the arguments that was changed in place.
    """
    before = [(x, x.detach().clone()) for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
    result = attempt(function, *args, **kwargs)
    if result is None:
        fail(f"{_name(function)} returned None: is the `return` missing?")
    for x, copy in before:
        if not torch.equal(x.detach(), copy) and not (x.isnan() & copy.isnan()).any():
            fail(f"{_name(function)} changed its argument in place: work on a new tensor")
    return result


def attempt(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """`call` for code that may return None, such as `loss.backward`."""
    try:
        return function(*args, **kwargs)
    except Exception as raised:
        error = _cause(raised)
        if isinstance(error, CheckFailed):
            raise error from None
        if not isinstance(error, NotImplementedError) or str(error):  # torch raises this, too, with a text
            fail(_stopped(error))
        place = _where(error) or "the cell above"
        text = f"Complete {place}, take its `raise` out, run its cell, then run this check again."
        raise Unfinished(text) from None


def _cause(error: BaseException) -> BaseException:
    """What a Triton kernel itself raised. The names are compared, because triton exists for Linux alone."""
    while error.__cause__ and type(error).__name__ == "InterpreterError":  # one for each kernel in a kernel
        inner = error.__cause__
        if not _student_frames(inner):  # in a given kernel: the line that called it is the student's
            inner = inner.with_traceback(error.__traceback__)
        error = inner
    while error.__cause__ and type(error).__name__ == "CompilationError" and not error.error_message:
        error = error.__cause__
    if isinstance(getattr(error, "node", None), ast.Raise):  # a kernel cannot raise: it is the stub's
        return NotImplementedError().with_traceback(error.__traceback__)
    return error


def _name(function: Callable) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _student_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Frames of code that is not part of an installed module: a notebook's cells."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f for f in frames if "ipykernel" in f.filename or f.filename.startswith("<")]


def _where(error: BaseException) -> str:
    frames = _student_frames(error)
    named = [f.name for f in frames if not f.name.startswith("<")]  # not <listcomp>, which Python 3.12 drops
    return f"`{(named or [frames[-1].name])[-1]}`" if frames else ""


def _stopped(error: BaseException) -> str:
    frames = _student_frames(error)
    place = f" in {_where(error)}, line {frames[-1].lineno} of its cell" if frames else ""
    line = f"\n  the line  {frames[-1].line}" if frames and frames[-1].line else ""
    text = str(error)
    if isinstance(getattr(error, "node", None), ast.AST) and error.src:  # Triton's compiler: text has pages
        text = str(error.error_message)
        line = f"\n  the line  {error.src.splitlines()[error.node.lineno - 1].strip()}"
    text = " ".join(text.split())
    text = text[:300] + " ..." * (len(text) > 300)
    return f"your code stopped with {type(error).__name__}{place}: {text}{line}"


def same(
    got: Any,
    expected: Any,
    what: str,
    case: str = "",
    known: Mapping[str, Any] | None = None,
    tolerance: float = 1e-5,
) -> None:
    """Raise CheckFailed unless `got` is what was expected; the first line says what is wrong.

    Args:
        got: the student's result.
        expected: tensor, number, boolean, string, None, or a list or tuple of these.
        what: the quantity's name in a student's terms, such as "the gradient of x".
        case: the input, in words.
        known: {hint: the wrong result that a known mistake gives}; the first that fits is the first line.
            Mistakes that cannot be told from the right answer on this input are passed over.
        tolerance: absolute, and relative to the expected number; NaN equals NaN.
    """
    if isinstance(expected, Tensor) and not isinstance(got, Tensor):
        fail(f"{what} must be a tensor, but is of type {type(got).__name__}{case and f' ({case})'}")
    rows = {"case": case, "expected": _short(expected), "got": _short(got)}
    hint = f"{what} is not right"
    if _equal(got, expected, tolerance):
        if not isinstance(expected, Tensor) or got.dtype == expected.dtype:
            return
        hint = f"{what} has the right numbers but the wrong dtype"
        rows |= {"expected": str(expected.dtype), "got": str(got.dtype)}
    elif isinstance(expected, Tensor) and got.shape != expected.shape:
        hint = f"{what} has the wrong shape"
        rows |= {"expected": str(tuple(expected.shape)), "got": str(tuple(got.shape))}
    elif isinstance(expected, Tensor) and expected.ndim and not got.is_complex():
        difference = (got.detach().cpu().double() - expected.detach().cpu().double()).abs()
        difference = difference.nan_to_num(torch.inf)
        index = tuple(int(i) for i in np.unravel_index(int(difference.argmax()), difference.shape))
        numbers = f"expected {expected[index]:.4g}, got {got[index]:.4g}"  # the rows above may look alike
        rows["largest difference"] = f"{difference.max():.3g} at {list(index)}: {numbers}"
    for message, wrong in (known or {}).items():
        if _equal(got, wrong, tolerance) and not _equal(wrong, expected, tolerance):
            hint = message
            break
    width = max(map(len, rows))
    fail("\n".join([hint, *[f"  {name:{width}}  {text}" for name, text in rows.items() if text]]))


def _equal(got: Any, expected: Any, tolerance: float) -> bool:
    """False, too, for what cannot be compared."""
    if isinstance(expected, (list, tuple)):
        fits = isinstance(got, (list, tuple)) and len(got) == len(expected)
        return fits and all(_equal(g, e, tolerance) for g, e in zip(got, expected, strict=True))
    if expected is None or isinstance(expected, (str, bool)):
        return type(got) is type(expected) and got == expected
    try:
        a, b = (
            x.detach().cpu() if isinstance(x, Tensor) else torch.as_tensor(x, dtype=torch.float64)
            for x in (got, expected)
        )
    except (TypeError, ValueError, RuntimeError):
        return False
    if a.is_complex() or a.shape != b.shape:  # no answer is complex; a negative number ** 0.5 is
        return False
    return torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance, equal_nan=True)


def _short(value: Any) -> str:
    if not isinstance(value, Tensor):
        text = repr(value)
        return text if len(text) <= 200 else text[:200] + " ..."
    flat = value.detach().flatten()
    digits = ".4g" if flat.is_floating_point() or flat.is_complex() else "d"
    numbers = ", ".join(f"{number:{digits}}" for number in flat[:SHOWN].tolist())
    rest = f", ... ({flat.numel()} numbers)" if flat.numel() > SHOWN else ""
    return f"[{numbers}{rest}] of shape {tuple(value.shape)}"


def hinted(hints: Mapping[str, str], run: Callable, *args: Any) -> Any:
    """Return `run(*args)`; where that raises CheckFailed, put a hint in front of its text.

    Args:
        hints: {part of the text: the first line to show}.
        run: `call` or `attempt`, with the student's function as its first argument.
    """
    try:
        return run(*args)
    except CheckFailed as error:
        for part, hint in hints.items():
            if part in str(error):
                fail(f"{hint}\n  {error}")
        raise


def compare(
    got: Any,
    right: Tensor,
    leaves: Mapping[str, Tensor],
    what: str,
    case: str,
    known: Mapping[str, Tensor],
    visible: Tensor | float = 1.0,
) -> None:
    """Compare a result, then the gradients that it sends to `leaves`; raise CheckFailed with a hint.

    Args:
        got: the student's result.
        right: the expected one, float64 for a tight comparison.
        leaves: {name: tensor that both were made from}; no gradient may arrive where `right` has none.
        what: the result's name in a student's terms; messages about a gradient say that it came from there.
        case: the input, in words.
        known: {hint: wrong result} made from `leaves`, so that its gradient is known as well.
        visible: factor that hides cells whose gradient nobody asked for.
    """
    tolerance = 1e-7 if right.dtype == torch.float64 else 1e-2  # 10000 times float32 rounding
    same(got, right, what, case, known, tolerance)
    require(got.requires_grad, f"{what} has no gradient: is it detached, or made by a comparison?")

    def gradients(y: Tensor, weight: Tensor) -> tuple[Tensor | None, ...]:
        y, asked = (y * weight).sum(), [*leaves.values()]
        return attempt(torch.autograd.grad, y, asked, retain_graph=True, allow_unused=True)

    probe = torch.randn_like(right) * visible
    invisible = [(h, y) for h, y in known.items() if y.requires_grad and _equal(y, right, tolerance)]
    wrong = {hint: gradients(y, probe) for hint, y in invisible}  # mistakes that the values do not show
    wrong["the arriving gradient is not used: multiply by it"] = gradients(right, torch.ones_like(right))
    rows = zip(leaves, gradients(got, probe), gradients(right, probe), strict=True)
    for n, (name, mine, true) in enumerate(rows):
        way = f"{name} from {what}"
        if true is None:
            require(mine is None, f"a gradient reaches {way}: it must be detached")
            continue
        require(mine is not None, f"no gradient reaches {way}: a detach or where() cuts it off")
        require(not mine.isnan().any(), f"the gradient of {way} is NaN: -inf or an overflow is on the way")
        hints = {hint: grads[n] for hint, grads in wrong.items() if grads[n] is not None}
        same(mine, true, f"the gradient of {way}", f"{case}; gradient of {way}", hints, tolerance)
