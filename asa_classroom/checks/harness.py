"""What every check is made of: a ladder of steps, each a table of cases and mistakes around a reference.

`slopes` in `gradient_reversal` is a small one: the decorated function is the reference and becomes the check,
and `slopes(student)` passes or raises CheckFailed. A mistake is a wrong implementation, named by the hint for
a student whose code does the same.
"""

import ast
import copy
import inspect
import itertools
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from asa_classroom.checks.compare import CheckFailed, equal, numbers, require, same


class Unfinished(CheckFailed):
    """The stub, or a part of it, is still there."""


def call(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """Return `function(*args, **kwargs)`, the student's code, and turn what can go wrong into a CheckFailed.

    That is: a stub that is still there (Unfinished), any other exception (told with the line of the student's
    cell), a result of None, and a tensor or array among the arguments that was changed in place. What is
    called of a torch.autograd.Function is its `apply`.
    """
    name = getattr(function, "__name__", type(function).__name__)
    is_function = isinstance(function, type) and issubclass(function, torch.autograd.Function)
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, (Tensor, np.ndarray))]
    before = [(x, numbers(x).clone(), _requires_grad(x)) for x in given if numbers(x) is not None]
    result = attempt(function.apply if is_function else function, *args, **kwargs)
    require(result is not None, f"{name} returned None: is the `return` missing?")
    for x, then, required in before:
        kept = equal(x, then, 0) and _requires_grad(x) == required  # NaN equals NaN
        require(kept, f"{name} changed its argument in place: work on a new tensor")
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
            raise CheckFailed(_stopped(error), f"{type(error).__name__}: {error}") from None
        place = _where(error) or "the cell above"
        text = f"Complete {place}, take its `raise` out, run its cell, then run this check again."
        raise Unfinished(text) from None


def gradients(what: str, result: Any, **leaves: Tensor) -> dict[str, Any]:
    """Return what is to be seen: the result, and the gradient that it sends to each leaf, or None.

    Args:
        result: the student's tensor, called `what`; weighted at random before it is differentiated.
        leaves: tensors that require gradients, by name; `_` in a name is shown as a blank.
    """
    found = [None] * len(leaves)
    if leaves and _requires_grad(result):
        generator = torch.Generator().manual_seed(0)  # not the global one, which the student may have used
        weight = torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result.dtype)
        options = {"retain_graph": True, "allow_unused": True}
        found = attempt(torch.autograd.grad, result, [*leaves.values()], weight, **options)
    names = [f"the gradient of {name.replace('_', ' ')} from {what}" for name in leaves]
    return {what: result} | dict(zip(names, found, strict=True))


def parts(got: Any, *names: str) -> dict[str, Any]:
    """Return {name: part} of a dictionary, tuple or list; CheckFailed unless these are its parts."""
    if isinstance(got, dict):
        require(got.keys() == set(names), f"the dictionary needs the keys {names}, but has {tuple(got)}")
        return {f"the entry {name!r}": got[name] for name in names}
    fits = isinstance(got, (tuple, list)) and len(got) == len(names)
    require(fits, f"return {len(names)} things: {', '.join(names)}")
    return dict(zip(names, got, strict=True))


def function_class(name: str, forward: Callable, backward: Callable) -> type:
    """Return a torch.autograd.Function made of forward(*args) and backward(gradient, *args)."""

    def run(ctx: Any, *args: Any) -> Any:
        ctx.args = args
        return forward(*args)

    methods = {"forward": run, "backward": lambda ctx, gradient: backward(gradient, *ctx.args)}
    return type(name, (torch.autograd.Function,), {k: staticmethod(method) for k, method in methods.items()})


@dataclass
class Step:
    """One step of an exercise; called with what the student wrote, it prints one line or raises CheckFailed.

    Attributes:
        reference: does it right; its name is that of the step, and of what the student writes.
        cases: tuples of arguments, or functions that make one; random numbers in it are seeded.
        mistakes: {hint: wrong implementation}, or the keywords that make the reference one. The hint is shown
            to a student whose code gives the same wrong value, or stops with the same exception.
        observe: `observe(function, *case)` runs the reference, the student's code and the mistakes alike.
        what: the name, in a student's terms, of what `observe` returns, or a tuple of the names of its
            parts. It is compared, and so are the gradients that it sends to those tensors of the case that
            require one. Without `what`, `observe` returns all that is compared, {name: value}.
        tolerance: see `same`.
    """

    number: int
    reference: Callable
    cases: Sequence[tuple | Callable[[], Sequence]]
    mistakes: Mapping[str, Callable | Mapping[str, Any]]
    observe: Callable[..., Any] = call
    what: str | tuple[str, ...] = ""
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        wrong = self.mistakes.items()
        self.mistakes = {h: w if callable(w) else partial(self.reference, **w) for h, w in wrong}
        function = self.reference if self.observe is call else partial(self.observe, None)
        self.arguments = [*inspect.signature(function).parameters]

    def __call__(self, student: Any) -> None:
        """Check `student`; torch is seeded, and the global random state is left as it was."""
        name = self.reference.__name__
        title = f"Step {self.number}, {name}:"
        try:
            require(callable(student), f"the check takes your function itself: {name}, without brackets")
            with torch.random.fork_rng(devices=[]):
                for number in range(len(self.cases)):
                    self._compare(student, number)
        except Unfinished as error:
            raise Unfinished(f"{title} not finished yet. {error}") from None
        except CheckFailed as error:
            raise CheckFailed(f"{title} {error}") from None
        print(f"{title} passed (cases: {len(self.cases)}).")

    def _compare(self, student: Callable, number: int) -> None:
        """Raise CheckFailed unless the student's code does in one case what the reference does."""
        expected, got = self._see(self.reference, number), self._see(student, number)
        words = ", ".join(_words(*pair) for pair in zip(self.arguments, self._case(number), strict=False))
        assert "" not in expected, f"the reference fails: {expected['']}"
        if error := got.get(""):
            hint = self._hint(got, number, "") if error.cause else ""
            if isinstance(error, Unfinished):
                raise error
            raise CheckFailed((hint and f"{hint}\n  ") + f"{error}\n  case      {words}")
        for what, right in expected.items():
            hint = "" if equal(got.get(what), right, self.tolerance) else self._hint(got, number, what)
            same(got.get(what), right, what, words, hint, self.tolerance)

    def _case(self, number: int) -> tuple:
        torch.manual_seed(number)
        case = self.cases[number]
        return case() if callable(case) else copy.deepcopy(case)

    def _see(self, function: Callable, number: int) -> dict[str, Any]:
        """What is to be seen of a function in one case, by name; {"": error} if that ends it."""
        case = self._case(number)
        leaves = {name: x for name, x in zip(self.arguments, case, strict=False) if _requires_grad(x)}
        try:
            with np.errstate(all="ignore"):  # what NumPy would warn of comes out as NaN
                seen = self.observe(function, *case)
            if not self.what:
                return seen
            seen = {self.what: seen} if isinstance(self.what, str) else parts(seen, *self.what)
            found = [gradients(what, part, **leaves).items() for what, part in seen.items()]
            return dict(itertools.chain.from_iterable(found))
        except CheckFailed as error:
            return {"": error}

    def _alike(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> set[str]:
        """The names of what two functions did alike in one case; errors are alike if their cause is."""
        pairs = {what: (one[what], other[what]) for what in one.keys() & other.keys()}
        if errors := pairs.get(""):
            pairs[""] = [error.cause for error in errors]
        return {what for what, pair in pairs.items() if equal(*pair, self.tolerance)}

    def _hint(self, got: dict[str, Any], number: int, what: str) -> str:
        """The mistake most like the student's code: alike in `what`, and right wherever that is right."""
        needed = {what} | self._alike(self._see(self.reference, number), got)
        alike = {h: self._alike(got, self._see(wrong, number)) for h, wrong in self.mistakes.items()}
        fitting = [hint for hint in alike if needed <= alike[hint]]
        return max(fitting, key=lambda hint: len(alike[hint]), default="")


class Ladder:
    """The steps of one exercise notebook, in order."""

    def __init__(self):
        self.steps: dict[str, Step] = {}

    def step(self, **table: Any) -> Callable[[Callable], Step]:
        """Decorator of a reference, which makes a check of it; the table's keys are those of `Step`."""

        def add(reference: Callable) -> Step:
            step = Step(len(self.steps) + 1, reference, **table)
            return self.steps.setdefault(reference.__name__, step)

        return add


def _words(name: str, value: Any) -> str:
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim:
        return f"{name} of shape {tuple(value.shape)}"
    plain = all(x is None or isinstance(x, (str, int, float)) for x in tree_leaves(value))
    return f"{name}={value}" if plain else name


def _requires_grad(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def _cause(error: BaseException) -> BaseException:
    """What a Triton kernel itself raised. The names are compared, because triton exists for Linux alone."""
    while inner := error.__cause__:  # one for each kernel in a kernel
        kind = type(error).__name__
        if kind != "InterpreterError" and (kind != "CompilationError" or error.error_message):
            break
        if not _student_frames(inner):  # in a given kernel: the line that called it is the student's
            inner = inner.with_traceback(error.__traceback__)
        error = inner
    if isinstance(getattr(error, "node", None), ast.Raise):  # a kernel cannot raise: it is the stub's
        return NotImplementedError().with_traceback(error.__traceback__)
    return error


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
