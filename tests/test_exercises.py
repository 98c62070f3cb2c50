"""Students' notebooks follow from the solutions; every notebook starts with a badge and a set-up cell."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

from asa_classroom import cli, publishing
from asa_classroom.exercises import GUIDE_END, GUIDE_START, generate, student_version
from asa_classroom.publishing import badge_source, install_source, publish
from asa_classroom.stored import NotebookError, read_notebook, sources_digest
from asa_mini.errors import DataFileError, InputError

nbformat = pytest.importorskip("nbformat", reason="needs the notebooks extra")
v4 = nbformat.v4

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SOLUTIONS, EXERCISES = NOTEBOOKS / "solutions", NOTEBOOKS / "exercises"
SOURCE = """\
class Both:
    def one(self):
        ### BEGIN SOLUTION
        secret = 1
        return secret
        ### END SOLUTION

    def two(self):
        ### BEGIN SOLUTION
        return "secret"
        ### END SOLUTION"""
STUB = """\
class Both:
    def one(self):
        # YOUR CODE HERE
        raise NotImplementedError()

    def two(self):
        # YOUR CODE HERE
        raise NotImplementedError()"""


def graded(grade_id, **roles):
    return {"nbgrader": {"grade_id": grade_id, "solution": False, "grade": False, **roles}}


def solution_notebook():
    printed = v4.new_output("stream", name="stdout", text="secret\n")
    cells = [
        v4.new_markdown_cell("# Title", id="title"),
        v4.new_code_cell("seed = 0  # one", id="parameters", metadata={"tags": ["parameters"]}),
        v4.new_code_cell(SOURCE, id="Both", execution_count=2, metadata=graded("Both", solution=True)),
        v4.new_code_cell("x = 1", id="between", execution_count=3, outputs=[printed]),
        v4.new_code_cell("check.Both(Both)", id="Both-check", metadata=graded("Both-check", grade=True)),
        v4.new_markdown_cell("See this.\n\n**Why?** Because\nof what?", id="Both-why"),
        v4.new_markdown_cell(
            "### BEGIN SOLUTION\nThe secret.\n### END SOLUTION",
            id="Both-answer",
            metadata=graded("Both-answer", solution=True, grade=True),
        ),
    ]
    kernel = {"name": "python3", "display_name": "Python 3"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "asa_mini": {"sources_sha256": "0"}})


@pytest.fixture
def published(monkeypatch):
    monkeypatch.setattr(publishing, "REPOSITORY", "somebody/somewhere")


@pytest.fixture
def folder(tmp_path, published):
    """A small `notebooks` folder: a lesson, a solution, the guide."""
    (tmp_path / "solutions").mkdir()
    lesson = v4.new_notebook(cells=solution_notebook().cells[:2], metadata=solution_notebook().metadata)
    nbformat.write(lesson, tmp_path / "00_lesson.ipynb")
    nbformat.write(solution_notebook(), tmp_path / "solutions" / "ex00.ipynb")
    (tmp_path / "INSTRUCTORS.md").write_text(
        f"# Guide\n\n{GUIDE_START}\nold\n{GUIDE_END}\n\nThe end.\n", encoding="utf-8"
    )
    return tmp_path


def test_what_is_stored_follows_from_the_solutions():
    texts = generate(SOLUTIONS, EXERCISES)
    stale = [path.name for path, text in texts.items() if path.read_text(encoding="utf-8") != text]
    assert not stale, f"run: python -m asa_classroom exercises ({', '.join(stale)})"
    assert {path.name for path in EXERCISES.iterdir()} == {path.name for path in SOLUTIONS.glob("*.ipynb")}


def test_the_student_gets_stubs_and_folded_solutions():
    given = solution_notebook()
    student = student_version(given, "ex00")
    assert given == solution_notebook()
    cells = {cell.id: cell for cell in student.cells}
    assert list(cells) == [c.id for c in given.cells[:5]] + ["Both-solution", "Both-why", "Both-answer"]
    assert cells["Both"].source == STUB
    assert cells["Both-answer"].source == "*Write your answer here.*"
    assert all(not c.outputs and c.execution_count is None for c in student.cells if c.cell_type == "code")
    folded = cells["Both-solution"].source
    assert folded.startswith("<details>") and "        secret = 1" in folded and "SOLUTION" not in folded
    assert student.metadata.asa_mini == {"exercise": "ex00"}
    nbformat.validate(student)


def test_without_solutions_nothing_is_given_away():
    text = nbformat.writes(student_version(solution_notebook(), "ex00", show_solutions=False))
    assert "secret" not in text and "SOLUTION" not in text


def damage(cell_id, source=None, **roles):
    def change(notebook):
        cell = next(cell for cell in notebook.cells if cell.id == cell_id)
        cell.source = cell.source if source is None else source
        cell.metadata.get("nbgrader", {}).update(roles)

    return change


@pytest.mark.parametrize(
    "change",
    [
        damage("Both", SOURCE.replace("### END SOLUTION", "", 1)),
        damage("Both", SOURCE.replace("### BEGIN SOLUTION", "# BEGIN SOLUTION", 1)),
        damage("Both", SOURCE.replace("### END", "###  END")),
        damage("Both", STUB),
        damage("Both", solution=False),
        damage("title", "### BEGIN SOLUTION\nx\n### END SOLUTION"),
    ],
)
def test_marks_that_would_give_a_solution_away_or_lose_it(change):
    notebook = solution_notebook()
    change(notebook)
    with pytest.raises(NotebookError, match=r"^ex00, cell (Both|title): every solution cell .* must hold"):
        student_version(notebook, "ex00")


def test_the_command_writes_all_that_follows_and_only_what_changed(folder, capsys):
    command = ["exercises", "--source", str(folder / "solutions"), "--output", str(folder / "exercises")]
    assert cli.main(command) == 0
    assert capsys.readouterr().out.endswith("4 of 4 files changed\n")
    guide = (folder / "INSTRUCTORS.md").read_text(encoding="utf-8")
    assert "**`Both`** Because of what?\n\n> The secret." in guide
    assert "old" not in guide and guide.startswith("# Guide") and guide.endswith("The end.\n")
    for name in ("00_lesson", "solutions/ex00", "exercises/ex00"):
        cells = read_notebook(folder / f"{name}.ipynb").cells
        assert [cell.id for cell in cells[:4]] == ["title", "badge", "install", "parameters"]
        assert cells[1].source == badge_source(f"notebooks/{name}.ipynb")
    assert cli.main(command) == 0
    assert capsys.readouterr().out == "0 of 4 files changed\n"


@pytest.mark.parametrize("name", ["handout", "../class"])
def test_graded_copies_have_no_badge_and_are_all_that_is_written(folder, name):
    output = folder / name
    texts = generate(folder / "solutions", output, show_solutions=False)
    assert set(texts) == {output / "ex00.ipynb"}  # and nothing in the repository changes
    student = nbformat.reads(texts[output / "ex00.ipynb"], as_version=4)
    assert [cell.id for cell in student.cells[:3]] == ["title", "install", "parameters"]


def test_errors_leave_everything_as_it_was(folder, capsys):
    (folder / "INSTRUCTORS.md").write_text("no marks", encoding="utf-8")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    command = ["exercises", "--source", str(folder / "solutions"), "--output", str(folder / "exercises")]
    assert cli.main(command) == 2
    assert "guide needs the lines" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    with pytest.raises(InputError, match="holds the originals"):
        generate(folder / "solutions", folder / "solutions")
    with pytest.raises(InputError, match="holds the originals"):
        generate(folder / "solutions", folder)
    with pytest.raises(InputError, match="published with folded solutions: choose another --output"):
        generate(folder / "solutions", folder / "exercises", show_solutions=False)
    with pytest.raises(DataFileError, match="no notebook in"):
        generate(folder / "nowhere", folder / "exercises")


def test_an_answer_needs_its_question(folder):
    notebook = solution_notebook()
    damage("Both-why", "See this.")(notebook)
    nbformat.write(notebook, folder / "solutions" / "ex00.ipynb")
    with pytest.raises(NotebookError, match=r"ex00, cell Both-why: no \*\*Why\?\*\*"):
        generate(folder / "solutions", folder / "exercises")


def test_a_new_address_reaches_every_notebook_and_makes_none_stale(monkeypatch):
    old = [read_notebook(path) for path in sorted(NOTEBOOKS.glob("*.ipynb"))]
    monkeypatch.setattr(publishing, "REPOSITORY", "somebody/else")
    texts = {path: text for path, text in generate(SOLUTIONS, EXERCISES).items() if path.suffix == ".ipynb"}
    assert len(texts) > 10
    for text in texts.values():
        assert "'somebody/else'" in text
    new = [nbformat.reads(texts[path], as_version=4) for path in sorted(NOTEBOOKS.glob("*.ipynb"))]
    assert list(map(sources_digest, old)) == list(map(sources_digest, new))


def test_without_an_address_there_is_no_badge_and_nothing_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "REPOSITORY", None)
    notebook = publish(publish(solution_notebook(), "notebooks/a.ipynb"), "notebooks/a.ipynb")
    assert [cell.id for cell in notebook.cells].count("install") == 1
    assert "badge" not in [cell.id for cell in notebook.cells]
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("it started a process"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match=r"names no repository .*as its README\.md says"):
        exec(install_source(), {})


def test_publishing_twice_is_publishing_once_and_keeps_outputs(published):
    once = publish(solution_notebook(), "notebooks/a.ipynb")
    once.cells[2].execution_count = 1
    twice = publish(copy.deepcopy(once), "notebooks/a.ipynb")
    assert twice == once and len(once.cells) == 9
    assert (
        NOTEBOOKS / "exercises" / badge_source("notebooks/exercises/a.ipynb")[18:].partition(")")[0]
    ).exists()


PRELUDE = """
import json, pathlib, subprocess, sys
calls = []
def run(command, check):
    assert check
    calls.append([str(part) for part in command])
    if command[0] == "git":
        folder = pathlib.Path(command[-1], "asa_mini")
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
        (folder / "model.py").write_text("")
subprocess.run = run
sys.path[:] = [entry for entry in sys.path if "asa_mini" not in entry]
sys.path.insert(0, str(pathlib.Path.cwd()))
"""
EPILOGUE = """
import asa_mini.model
print(json.dumps([calls, asa_mini.model.__file__]))
"""


def run_set_up(cwd, source):
    """Run the set-up cell in a Python without site-packages; return its commands, and asa_mini's file."""
    python = [sys.executable, "-I", "-S", "-c"]
    done = subprocess.run([*python, PRELUDE + source + EPILOGUE], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    calls, file = json.loads(done.stdout)
    return calls, Path(file)


def test_the_set_up_cell_fetches_installs_and_may_run_twice(tmp_path, published):
    (tmp_path / "asa_mini").mkdir()  # a mere folder of that name is no package
    calls, file = run_set_up(tmp_path, install_source() + "\n" + install_source())
    clone = tmp_path / "asa_mini_clone"
    address = f"https://github.com/{publishing.REPOSITORY}"
    assert calls[0] == ["git", "clone", "--depth", "1", address, str(clone)]
    assert calls[1][1:6] == ["-m", "pip", "install", "-q", "-e"] and calls[1][6] == f"{clone}[notebooks]"
    assert len(calls) == 2 and file == clone / "asa_mini" / "model.py"
    again, _ = run_set_up(tmp_path, install_source())  # a new session: the copy is there already
    assert [call[0] for call in again] == [sys.executable]


@pytest.mark.parametrize(
    "error", [FileNotFoundError("no git"), subprocess.CalledProcessError(128, "git clone")]
)
def test_the_set_up_cell_says_what_it_takes(tmp_path, monkeypatch, published, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    with pytest.raises(RuntimeError, match=rf"{publishing.REPOSITORY}: .*git.*takes git, pip and a network"):
        exec(install_source(), {})
    assert sys.path == before


def test_the_set_up_cell_uses_the_copy_it_stands_in(tmp_path):
    notebooks = tmp_path / "notebooks" / "exercises"
    notebooks.mkdir(parents=True)
    (tmp_path / "asa_mini").mkdir()
    for name in ("__init__.py", "model.py"):
        (tmp_path / "asa_mini" / name).write_text("", encoding="utf-8")
    calls, file = run_set_up(notebooks, install_source())
    assert [call[6] for call in calls] == [f"{tmp_path}[notebooks]"] and file.parent.parent == tmp_path


def test_the_set_up_cell_does_nothing_in_a_prepared_environment(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("it started a process")

    monkeypatch.setattr(subprocess, "run", refuse)
    before = list(sys.path)
    exec(install_source(), {})
    exec(install_source(), {})
    assert sys.path == before
