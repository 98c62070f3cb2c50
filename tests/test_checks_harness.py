"""What checks say when a student's code goes wrong in ways that no single check thinks of."""

import ast
import re
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from asa_classroom import checks
from asa_classroom.checks import CheckFailed, Ladder, Unfinished
from asa_classroom.checks.compare import same
from asa_classroom.checks.harness import attempt, call, gradients
from asa_mini.errors import InputError


def run_cell(source, name, **variables):
    exec(compile(source, f"<cell {name}>", "exec"), variables)
    return variables[name]


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("def broken(x):\n    y = x\n    return y / 0", "`broken`, line 3"),
        ("def broken(x):\n    return sorted([x], key=lambda y: y / 0)", "`broken`, line 2"),
        ("broken = lambda x: x / 0", "`<lambda>`, line 1"),
    ],
)
def test_an_exception_is_told_with_its_place_in_the_cell(source, place):
    """`<listcomp>` or `<lambda>` is no name that a student has given."""
    told = f"^your code stopped with ZeroDivisionError in {place} of its cell: division by zero$"
    with pytest.raises(CheckFailed, match=told):
        call(run_cell(source, "broken"), 1)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: None, "returned None: is the `return` missing"),
        (lambda x: x.unsqueeze_(0), "changed its argument in place"),
        (lambda x: torch.ones(2, 3) @ x, r"your code stopped with RuntimeError.*: mat1 and mat2 shapes"),
    ],
)
def test_other_accidents(function, message):
    with pytest.raises(CheckFailed, match=message):
        call(function, torch.zeros(2, 3))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1.0])
def test_a_change_in_place_is_seen_wherever_it_is(value):
    """One NaN must not hide it, nor a list, a dictionary or NumPy; and reading is no change."""
    x = torch.tensor([value, 2.0])
    for given in ([x.clone()], {0: x.clone()}, [x.numpy().copy()]):
        assert call(lambda x: 1, given) == 1
        with pytest.raises(CheckFailed, match="changed its argument in place"):
            call(lambda given: given[0].__setitem__(1, 3) or 1, given)


def test_only_a_bare_not_implemented_error_is_a_stub():
    with pytest.raises(Unfinished, match="Complete `stub`"):
        attempt(run_cell("def stub():\n    raise NotImplementedError()", "stub"))
    unsupported = run_cell("def unsupported():\n    raise NotImplementedError('no kernel')", "unsupported")
    with pytest.raises(CheckFailed, match=r"stopped with NotImplementedError.*no kernel") as error:
        attempt(unsupported)
    assert not isinstance(error.value, Unfinished)


def test_an_exception_in_a_given_kernel_is_told_with_the_line_that_called_it():
    """Triton's interpreter wraps it once for each kernel; the innermost has no frame of the notebook."""

    InterpreterError = type("InterpreterError", (Exception,), {})

    def interpreted(kernel):
        try:
            kernel()
        except Exception as error:
            raise InterpreterError from error

    names = {"interpreted": interpreted, "given": lambda: {}["missing"]}
    names["kernel"] = run_cell("def kernel():\n    interpreted(given)", "kernel", **names)
    with pytest.raises(CheckFailed, match=r"stopped with KeyError in `kernel`, line 2 of its cell"):
        attempt(run_cell("def launcher():\n\n    interpreted(kernel)", "launcher", **names))


def test_a_stub_that_triton_compiles_is_a_stub():
    """On a GPU the compiler meets the stub's `raise`, and says so in an error of its own."""

    told = {"node": ast.Raise(), "error_message": "raise is not supported"}
    launcher = Mock(side_effect=type("CompilationError", (Exception,), told))
    with pytest.raises(Unfinished, match="Complete"):
        attempt(launcher)


@pytest.mark.parametrize(
    ("got", "expected", "message"),
    [
        (1.0, torch.tensor(1.0), "x must be a tensor, not a float"),
        (torch.zeros(2), torch.zeros(1, 2), "x has the wrong shape"),
        (torch.zeros(2).double(), torch.zeros(2), "the right numbers but the wrong dtype"),
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, 2.0]), "x is not right, it has NaN"),
        (torch.tensor([1.0, 1 + 1e-6]).double(), torch.ones(2).double(), "x is not right"),
        ([1.0, 2.0], np.array([1.0, 2.0]), "x must be a NumPy array, not a list"),
        (None, torch.ones(2), "x is missing: is something detached"),
        (torch.ones(2), None, "x must not be there: something must be detached"),
        (torch.zeros(2, dtype=torch.complex64), torch.zeros(2), "x is not right"),
        ((1, 2), (1, 2, 3), "x is not right"),
        (1, True, "x is not right"),
    ],
)
def test_same_tells_a_difference(got, expected, message):
    with pytest.raises(CheckFailed, match=message):
        same(got, expected, "x")


def test_same_accepts_rounding_and_other_kinds_of_sequence():
    for got, expected in (
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan])),
        (1 + 1e-6, 1.0),
        ([torch.ones(2), "a"], (torch.ones(2), "a")),
        (np.ones(2), (1.0, 1.0)),
        (np.array([2.0, 1.0])[::-1], np.array([1.0, 2.0])),
        ({"a": torch.ones(1)}, {"a": torch.ones(1)}),
    ):
        same(got, expected, "x")


def test_the_hint_comes_first_then_case_expected_got_and_where():
    right = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(CheckFailed) as error:
        same(-right, right, "x", "two rows", "it is negated")
    assert str(error.value).splitlines() == [
        "it is negated",
        "  case                two rows",
        "  expected            [1, 2, 3, 4] of shape (2, 2)",
        "  got                 [-1, -2, -3, -4] of shape (2, 2)",
        "  largest difference  8 at [1, 1]: expected 4, got -4",
    ]


def step_of(**table):
    """A step that doubles a number."""

    def double(x, *, factor=2):
        return factor * x

    return Ladder().step(**{"what": "the double", "cases": [(0.0,), (3.0,)]} | table)(double)


def test_a_step_names_itself_and_leaves_the_random_state_alone(capsys):
    drawn = []
    check = step_of(mistakes={}, cases=[lambda: drawn.append(torch.rand(1).item()) or (3.0,)])
    state = torch.get_rng_state()
    check(lambda x: 2 * x)
    check(lambda y: y + y)
    assert len(set(drawn)) == 1 and torch.equal(torch.get_rng_state(), state)
    assert capsys.readouterr().out == "Step 1, double: passed (cases: 1).\n" * 2
    with pytest.raises(CheckFailed, match="the check takes your function itself: double, without brackets"):
        check(3)


MISTAKES = {
    "one more": lambda x: x + 1 if x else x,  # is right at 0, where the student is wrong
    "this is always 0": dict(factor=0),
    "this is the square": lambda x: x * x,
    "the sign is wrong": dict(factor=-2),
    "this is not a tensor": lambda x: x.double(),
}


@pytest.mark.parametrize(
    ("student", "first"),
    [
        (lambda x: -2 * x, "the sign is wrong"),  # not "always 0", which is right at 0 only by chance
        (lambda x: x * 0, "this is always 0"),
        (lambda x: x**2, "this is the square"),
        (lambda x: x.double(), "this is not a tensor"),
        (lambda x: x + 1, "the double is not right"),
    ],
)
def test_the_mistake_that_does_the_same_gives_the_hint(student, first):
    with pytest.raises(CheckFailed, match=f"^Step 1, double: {first}\n"):
        step_of(mistakes=MISTAKES)(student)


PAIRS = {"a": lambda x: (0, 9), "b": lambda x: (0, 7)}


@pytest.mark.parametrize(
    ("student", "hint"),
    [
        (PAIRS["b"], "b"),
        (lambda x: (0, 8), "a"),
        (lambda x: (0, 2), "first is not right"),  # neither "a" nor "b": its second number is right
        (lambda x: (1,), "return 2 things: first, second"),
        (
            lambda x: {"first": 1},
            r"the dictionary needs the keys \('first', 'second'\), but has \('first',\)",
        ),
    ],
)
def test_of_two_mistakes_the_one_that_is_alike_in_more_is_told(student, hint):
    check = Ladder().step(what=("first", "second"), cases=[(1,)], mistakes=PAIRS)(lambda x: (1, 2))
    with pytest.raises(CheckFailed, match=rf"^Step 1, <lambda>: {hint}\n  case      *x=1"):
        check(student)


def test_a_student_cannot_change_the_cases():
    kept = torch.ones(2)
    check = step_of(cases=[(kept,)], mistakes={})
    with pytest.raises(CheckFailed, match="changed its argument in place"):
        check(lambda x: x.mul_(2))
    assert torch.equal(kept, torch.ones(2))
    check(lambda x: 2 * x)


def test_gradients_are_compared_by_name():
    x, other = torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True)
    thrice, once, none = (gradients("y", y, x=x, an_other=other) for y in (3 * x, x.clone(), x.detach()))
    to_x, to_other = "the gradient of x from y", "the gradient of an other from y"
    assert list(thrice) == ["y", to_x, to_other]
    assert thrice[to_other] is None and none[to_x] is None
    assert torch.equal(thrice[to_x], 3 * once[to_x]) and len(set(once[to_x].tolist())) == 2


def test_a_notebook_shows_only_the_message(capsys):
    """A student sees the few lines of the message, no traceback, and no internals of the checks."""
    shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell()
    shell.run_cell("from asa_classroom.checks import gradient_reversal as check")
    shell.run_cell("def largest_rate(c):\n    raise NotImplementedError()")
    shell.run_cell("check.largest_rate(largest_rate)")
    assert re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).strip() == (
        "Step 6, largest_rate: not finished yet. "
        "Complete `largest_rate`, take its `raise` out, run its cell, then run this check again."
    )


def test_an_unknown_exercise_is_an_error():
    with pytest.raises(InputError, match="no exercise 'ex98'; there are ex00_tour"):
        checks.ladder("ex98")
