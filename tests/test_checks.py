"""Every check of the exercises, both ways: the solution passes; the stub and each mistake of its table fail.

A mistake must fail with its own hint in the first line: a check that fails for another reason teaches the
wrong thing.
"""

import contextlib
import io
import linecache
import re
from functools import cache
from pathlib import Path

import interpreted  # noqa: F401
import pytest

from asa_classroom.checks import LADDERS, CheckFailed, Unfinished, ladder
from asa_classroom.exercises import student_version

nbformat = pytest.importorskip("nbformat", reason="needs the notebooks extra")

SOLUTIONS = Path(__file__).parents[1] / "notebooks" / "solutions"
FEWER = {  # of what a solution's experiments repeat; its lesson is seen in the stored notebook
    "ex04_training": {"temperatures": [0.0, 2.0], "experiment_seeds": [0]},
    "ex05_attention_analysis": {"adversaries": 3},
}
STEPS = [(name, step) for name in LADDERS for step in ladder(name).steps]


@cache
def read(name):
    return nbformat.read(SOLUTIONS / f"{name}.ipynb", as_version=4)


@cache
def solved(name):
    """The variables after all cells of a solution notebook were run; its checks are among the cells."""
    variables = {"__name__": "__main__"}
    with contextlib.redirect_stdout(io.StringIO()):
        for cell in read(name).cells:
            if cell.cell_type == "code":
                if "import triton" in cell.source:
                    pytest.importorskip("triton", reason="it exists for Linux alone")
                execute(cell.source, cell.id, variables)
                if "parameters" in cell.metadata.get("tags", []):
                    variables |= FEWER.get(name, {})
    return variables


def execute(source, cell_id, variables):
    file = f"<cell {cell_id}>"
    linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file  # triton.jit reads it
    exec(compile(source, file, "exec"), variables)


def source_of(notebook, cell_id):
    return next(cell.source for cell in notebook.cells if cell.id == cell_id)


@pytest.mark.parametrize(("name", "step"), STEPS)
def test_a_step(name, step, capsys):
    check, variables = ladder(name).steps[step], dict(solved(name))
    title = f"Step {check.number}, {step}:"
    check(variables[step])
    assert re.fullmatch(rf"{title} passed \(cases: \d\)\.\n", capsys.readouterr().out)

    assert 3 <= len(check.mistakes) <= 4
    for hint, mistake in check.mistakes.items():
        with pytest.raises(CheckFailed) as told:
            check(mistake)
        assert str(told.value).splitlines()[0].startswith(f"{title} {hint}"), str(told.value)

    execute(source_of(student_version(read(name), name), step), step, variables)
    with pytest.raises(Unfinished) as told:
        check(variables[step])
    assert re.fullmatch(rf"{title} not finished yet\. Complete .*\.", str(told.value))


@pytest.mark.parametrize("name", LADDERS)
def test_ladders_have_their_notebook_in_order(name):
    """Six to ten steps; the notebook asks for the same, in the same order, and calls each check itself."""
    assert 6 <= len(ladder(name).steps) <= 10
    ids = [cell.id for cell in read(name).cells]
    parts = ("-task", "", "-check", "-why", "-answer")
    wanted = [step + part for step in ladder(name).steps for part in parts]
    assert [cell_id for cell_id in ids if cell_id in wanted] == wanted
    for step in ladder(name).steps:
        assert source_of(read(name), f"{step}-check").startswith(f"check.{step}({step})")
