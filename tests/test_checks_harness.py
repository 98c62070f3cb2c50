"""What checks say when a student's code goes wrong in ways that no single check thinks of."""

import ast
import io
import re
from contextlib import redirect_stdout

import pytest
import torch

from asa_classroom import checks
from asa_classroom.checks import CheckFailed, Ladder, Unfinished
from asa_classroom.checks.harness import attempt, call, require, same
from asa_mini.errors import InputError


def first_line(error):
    return str(error.value).splitlines()[0]


def test_an_exception_is_told_with_its_place_in_the_cell():
    variables = {}
    exec(compile("def broken(x):\n    y = x\n    return y / 0", "<cell broken>", "exec"), variables)
    with pytest.raises(CheckFailed) as error:
        call(variables["broken"], 1)
    assert first_line(error) == (
        "your code stopped with ZeroDivisionError in `broken`, line 3 of its cell: division by zero"
    )


def test_an_exception_in_a_comprehension_is_told_with_its_function():
    """`<listcomp>` or `<lambda>` is no name that a student has given."""
    variables = {}
    exec(compile("def broken(x):\n    return sorted([x], key=lambda y: y / 0)", "<cell>", "exec"), variables)
    exec(compile("unnamed = lambda x: x / 0", "<cell>", "exec"), variables)
    with pytest.raises(CheckFailed, match=r"ZeroDivisionError in `broken`, line 2 of its cell"):
        call(variables["broken"], 1)
    with pytest.raises(CheckFailed, match=r"ZeroDivisionError in `<lambda>`, line 1 of its cell"):
        call(variables["unnamed"], 1)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: None, "returned None: is the `return` missing"),
        (lambda x: x.add_(1), "changed its argument in place"),
        (lambda x: torch.ones(2, 3) @ x, r"your code stopped with RuntimeError.*: mat1 and mat2 shapes"),
    ],
)
def test_other_accidents(function, message):
    with pytest.raises(CheckFailed, match=message):
        call(function, torch.zeros(2, 3))


def test_reading_a_tensor_with_nan_is_no_change():
    assert call(lambda x: 1, torch.tensor([1.0, torch.nan])) == 1


def test_only_a_bare_not_implemented_error_is_a_stub():
    def stub():
        raise NotImplementedError()

    def unsupported():
        raise NotImplementedError("no kernel for this")

    with pytest.raises(Unfinished, match="Complete"):
        attempt(stub)
    with pytest.raises(CheckFailed, match=r"stopped with NotImplementedError.*no kernel") as error:
        attempt(unsupported)
    assert not isinstance(error.value, Unfinished)


def test_an_exception_in_a_given_kernel_is_told_with_the_line_that_called_it():
    """Triton's interpreter wraps it once for each kernel; the innermost has no frame of the notebook."""

    class InterpreterError(Exception):
        pass

    def interpreted(kernel):
        try:
            kernel()
        except Exception as error:
            raise InterpreterError from error

    def given():
        raise TypeError("one argument is missing")

    variables = {"interpreted": interpreted, "given": given}
    exec(compile("def kernel():\n    interpreted(given)", "<cell kernel>", "exec"), variables)
    exec(compile("def launcher():\n\n    interpreted(kernel)", "<cell launcher>", "exec"), variables)
    with pytest.raises(CheckFailed) as error:
        attempt(variables["launcher"])
    assert first_line(error) == (
        "your code stopped with TypeError in `kernel`, line 2 of its cell: one argument is missing"
    )


def test_a_stub_that_triton_compiles_is_a_stub():
    """On a GPU the compiler meets the stub's `raise`, and says so in an error of its own."""

    class CompilationError(Exception):
        node, error_message = ast.Raise(), "raise is not supported"

    def launcher():
        raise CompilationError

    with pytest.raises(Unfinished, match="Complete"):
        attempt(launcher)


@pytest.mark.parametrize(
    ("got", "expected", "message"),
    [
        (1.0, torch.tensor(1.0), "x must be a tensor, but is of type float"),
        (torch.zeros(2), torch.zeros(1, 2), "x has the wrong shape"),
        (torch.zeros(2).double(), torch.zeros(2), "the right numbers but the wrong dtype"),
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, 2.0]), "x is not right"),
        (torch.zeros(2, dtype=torch.complex64), torch.zeros(2), "x is not right"),
        ((1, 2), (2, 1), "x is not right"),
        ((1, 2), (1, 2, 3), "x is not right"),
        (1, True, "x is not right"),
        ("a", "b", "x is not right"),
        ("a", 1.0, "x is not right"),
        (None, 1.0, "x is not right"),
        ({"a": 1}, [torch.ones(1)], "x is not right"),
    ],
)
def test_same_tells_a_difference(got, expected, message):
    with pytest.raises(CheckFailed, match=message):
        same(got, expected, "x")


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan])),
        (1, 1.0),
        (torch.tensor(2.0), 2.0),
        ([torch.ones(2), "a"], (torch.ones(2), "a")),
        (torch.zeros(0, 3), torch.zeros(0, 3)),
        (True, True),
        (None, None),
    ],
)
def test_same_accepts(got, expected):
    same(got, expected, "x")


def test_the_hint_comes_first_then_case_expected_got_and_where():
    right = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(CheckFailed) as error:
        same(-right, right, "x", "two rows", {"never": right, "it is negated": -right, "later": -right})
    assert str(error.value).splitlines() == [
        "it is negated",
        "  case                two rows",
        "  expected            [1, 2, 3, 4] of shape (2, 2)",
        "  got                 [-1, -2, -3, -4] of shape (2, 2)",
        "  largest difference  8 at [1, 1]: expected 4, got -4",
    ]


def test_a_step_names_itself_seeds_and_leaves_the_random_state_alone():
    ladder = Ladder("ex99")
    drawn = []

    @ladder.step
    def first(student):
        drawn.append(torch.rand(1).item())
        require(call(student, 1) == 1, "not the identity")
        return "one number"

    state = torch.get_rng_state()
    printed = io.StringIO()
    with redirect_stdout(printed):
        ladder.steps["first"](lambda x: x)
        first(lambda x: x)
    assert drawn[0] == drawn[1]
    assert torch.equal(torch.get_rng_state(), state)
    assert printed.getvalue() == "Step 1, first: passed (one number).\n" * 2
    with pytest.raises(CheckFailed, match=r"^Step 1, first: not the identity$"):
        first(lambda x: 2)
    with pytest.raises(CheckFailed, match="the check takes your function itself: first, without brackets"):
        first(3)


def test_a_notebook_shows_only_the_message():
    """A student sees the few lines of the message, no traceback, and no internals of the checks."""
    shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell()
    shell.run_cell("from asa_classroom.checks import gradient_reversal as check")
    shell.run_cell("def largest_rate(c):\n    raise NotImplementedError()")
    printed = io.StringIO()
    with redirect_stdout(printed):
        shell.run_cell("check.largest_rate(largest_rate)")
    lines = re.sub(r"\x1b\[[\d;]*m", "", printed.getvalue()).strip().splitlines()
    assert lines == [
        "Step 6, largest_rate: not finished yet. "
        "Complete `largest_rate`, take its `raise` out, run its cell, then run this check again."
    ]


def test_an_unknown_exercise_is_an_error():
    with pytest.raises(InputError, match="no exercise 'ex98'; there are ex00_tour"):
        checks.ladder("ex98")
