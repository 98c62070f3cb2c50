"""Every check of the exercises, both ways: the solution passes, the stub and planted mistakes fail.

A mistake is the solution with one text replaced (`bugs/`), and must fail with the message meant for it in the
first line: a check that fails for another reason teaches the wrong thing.
"""

import contextlib
import importlib
import io
import linecache
import re
from functools import cache
from pathlib import Path

import pytest

from asa_classroom.checks import LADDERS as ALL
from asa_classroom.checks import CheckFailed, Unfinished, ladder
from asa_classroom.exercises import student_version

nbformat = pytest.importorskip("nbformat", reason="needs the notebooks extra")

SOLUTIONS = Path(__file__).parents[1] / "notebooks" / "solutions"
LADDERS = {n: m for n, m in ALL.items() if (Path(__file__).parent / "bugs" / f"{m}.py").exists()}
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
    return variables


def execute(source, cell_id, variables):
    file = f"<cell {cell_id}>"
    linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file  # triton.jit reads it
    exec(compile(source, file, "exec"), variables)


def check_source(name, step, source):
    """Run the check of a step on what `source` defines, every other step being solved."""
    variables = dict(solved(name))
    execute(source, step, variables)
    ladder(name).steps[step](variables[step])


def source_of(notebook, cell_id):
    return next(cell.source for cell in notebook.cells if cell.id == cell_id)


def bugs(name):
    return importlib.import_module(f"bugs.{LADDERS[name]}").BUGS


@pytest.mark.parametrize("name", LADDERS)
def test_all_solutions_pass(name, capsys):
    variables = solved(name)
    for step, check in ladder(name).steps.items():
        check(variables[step])
        assert re.fullmatch(rf"Step \d+, {step}: passed \(.{{8,}}\)\.\n", capsys.readouterr().out)


@pytest.mark.parametrize(("name", "step"), STEPS)
def test_the_stub_is_told_calmly(name, step):
    stub = source_of(student_version(read(name), name), step)
    with pytest.raises(Unfinished, match=rf"^Step \d+, {step}: not finished yet\. Complete ") as told:
        check_source(name, step, stub)
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "step", "old", "new", "message"),
    [(name, step, *bug) for name in LADDERS for step, listed in bugs(name).items() for bug in listed],
)
def test_a_planted_mistake_is_diagnosed(name, step, old, new, message):
    source = source_of(read(name), step)
    assert old in source, "the mistake no longer fits the solution"
    with pytest.raises(CheckFailed) as told:
        check_source(name, step, source.replace(old, new))
    first = str(told.value).splitlines()[0]
    assert re.search(message, first), str(told.value)
    assert not isinstance(told.value, Unfinished)


@pytest.mark.parametrize(("name", "step"), STEPS)
def test_every_step_has_three_mistakes(name, step):
    messages = {message for _, _, message in bugs(name)[step]}
    assert len(messages) >= 3
