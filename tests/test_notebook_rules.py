"""What the notebook runner refuses before anything runs, and how it reads its command line."""

import sys

import pytest
from tiny_notebook import command_line, nbformat, write_notebook

from asa_classroom import notebooks, stored
from asa_classroom.stored import NotebookError
from asa_mini.errors import InputError


@pytest.mark.parametrize(
    ("layout", "given", "message"),
    [
        ({"tags": ()}, {}, "exactly one cell tagged 'parameters', not 0"),
        ({"tags": ("parameters",) * 2}, {}, "exactly one cell tagged 'parameters', not 2"),
        ({"kernel": "my-env"}, {}, "bad.ipynb asks for the kernel 'my-env'; every"),
        ({}, {"stepz": 1}, "no parameter 'stepz'; it has: steps, name, rate"),
        ({}, {"steps": 1.5}, "'steps' takes int, not 1.5"),
        ({}, {"steps": True}, "'steps' takes int, not True"),
        ({}, {"rate": "fast"}, "'rate' takes float, not 'fast'"),
    ],
)
def test_rules_are_checked_before_anything_runs(layout, given, message, tmp_path):
    write_notebook(tmp_path / "in" / "a.ipynb", "open('ran', 'w')")
    write_notebook(tmp_path / "in" / "bad.ipynb", "pass", **layout)
    if given:  # the first notebook would refuse them just as well
        (tmp_path / "in" / "a.ipynb").unlink()
    with pytest.raises(NotebookError) as caught:
        notebooks.run_notebooks([tmp_path / "in"], tmp_path / "out", parameters=given)
    assert message in str(caught.value)
    assert not (tmp_path / "in" / "ran").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", ["x = f()", "import os", "a, b = 1, 2", "x =", "print(1)", "x: int"])
def test_parameters_must_be_literals(source, tmp_path):
    path = write_notebook(tmp_path / "a.ipynb", "pass")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source = source
    nbformat.write(notebook, path)
    with pytest.raises(NotebookError, match=r"^a\.ipynb: the parameters cell may only hold `name = literal`"):
        stored.read_notebook(path)


@pytest.mark.parametrize("text", ["not json", "{}", '{"cells": 3, "nbformat": 4, "nbformat_minor": 5}', "[]"])
def test_invalid_file(text, tmp_path):
    path = tmp_path / "a.ipynb"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(NotebookError, match=r"a\.ipynb"):
        notebooks.run_notebook(path, tmp_path / "out" / "a.ipynb")


def test_wrong_arguments(tmp_path, capsys):
    path = write_notebook(tmp_path / "in" / "a.ipynb", "pass")
    twin = write_notebook(tmp_path / "twin" / "a.ipynb", "pass")
    (tmp_path / "empty").mkdir()
    for arguments, message in {
        (tmp_path / "nowhere",): "no notebook at",
        (tmp_path / "empty",): "no notebook at",
        (path, "--timeout", 0): "--timeout must be at least 1",
        (path, "--in-place", "-p", "steps", 1): "leave -p out",
        (path, twin): "two notebooks have the same file name",
        (path, "--output", tmp_path / "in"): "would replace a.ipynb itself",
    }.items():
        assert command_line(*arguments) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(InputError, match="default parameters"):
        notebooks.run_notebook(path, tmp_path / "a.ipynb", {"steps": 1}, write_back=True)


def test_missing_extra(tmp_path, capsys, monkeypatch):
    path = write_notebook(tmp_path / "a.ipynb", "pass")
    monkeypatch.setitem(sys.modules, "papermill", None)
    assert command_line(path, "--output", tmp_path / "out") == 2
    assert "this needs papermill: pip install 'asa_mini[classroom]'" in capsys.readouterr().err


def test_parameters_of_the_command_line_are_literals_or_text(monkeypatch):
    calls = []
    monkeypatch.setattr(notebooks, "run_notebooks", lambda *arguments: calls.append(arguments))
    given = {"n": "3", "rates": "[0.1, 1e-3]", "name": "bert-base", "digit": "'1'", "rate": "-1e-5"}
    assert command_line(*[word for pair in given.items() for word in ("-p", *pair)]) == 0
    parameters = {"n": 3, "rates": [0.1, 1e-3], "name": "bert-base", "digit": "1", "rate": -1e-5}
    assert calls == [(["notebooks"], "build/notebooks", 600, parameters, False)]
