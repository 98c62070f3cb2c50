"""Find students' notebooks and read them: what is to be graded, and what cannot be.

The folder holds notebooks, `student.ipynb`, or a folder for each student with notebooks at any depth, as
nbgrader and Moodle deliver them. A notebook names its exercise in `metadata.asa_mini.exercise`; a file name
that holds the exercise's name will do.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat

from asa_classroom.checks import LADDERS
from asa_classroom.exercises import WHY, nbgrader
from asa_mini.errors import DataFileError, InputError

CALL = re.compile(r"^check\..*$", re.M)
LARGEST = 64  # MiB of a notebook file


@dataclass
class Work:
    """One notebook of a student, or the lack of one, and what came of it.

    Attributes:
        exercise: a key of `asa_classroom.checks.LADDERS`; None where it is not known.
        cells: (number, source, step) of the code cells; numbers count all cells from 1. A check's cell names
            its step and has lost its call of the check: the rest of it runs if our own check has passed.
        answers: (step, question, answer) of the why-questions.
        outcomes: step -> (passed, failed or unfinished; message); a step without an entry did not run.
        errors: (number of the cell, one line).
    """

    student: str
    file: str = ""
    exercise: str | None = None
    notes: list[str] = field(default_factory=list)
    cells: list[tuple[int, str, str]] = field(default_factory=list)
    answers: list[tuple[str, str, str]] = field(default_factory=list)
    outcomes: dict[str, tuple[str, str]] = field(default_factory=dict)
    errors: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0

    def cell(self, number: int) -> str:
        """A cell's number and first line, to find it by."""
        lines = next((source for n, source, _ in self.cells if n == number), "").strip().splitlines()
        return f"cell {number} ({plain(lines[0])[:60]})" if lines else f"cell {number}"


def collect(folder: Path) -> list[Work]:
    """Return the notebooks to grade, sorted by student; one that cannot be read is there, too, with a note.

    A student's newest notebook (by modification time) counts where there are several for one exercise. Links
    are not followed, and named in a note: one could lead to a solution, or to another student's work.

    Raises:
        DataFileError: there is no such folder, or no notebook in it.
    """
    if not folder.is_dir():
        raise DataFileError(f"no folder {folder}: give the one that holds the students' notebooks")
    students: dict[str, list[str]] = {}  # student -> links
    found: dict[tuple, list[tuple[float, Work]]] = {}  # (student, exercise) -> (when, what)
    for path in sorted(folder.rglob("*")):  # goes into no link
        parts = path.relative_to(folder).parts
        if any(part.startswith(".") or part == "__MACOSX" for part in parts):
            continue  # .ipynb_checkpoints; what macOS adds to a zip file
        notebook, nested = path.suffix == ".ipynb", len(parts) > 1
        student = plain(parts[0]) if nested or not notebook else owner(path)
        if path.is_symlink() and (nested or notebook or path.is_dir()):
            students.setdefault(student, []).append(plain("/".join(parts)))
        elif path.is_dir() and not nested:
            students.setdefault(student, [])
        elif notebook and path.is_file():
            work = read(path, student)
            students.setdefault(student, [])
            found.setdefault((student, work.exercise or path), []).append((path.stat().st_mtime, work))
    if not found and not any(students.values()):
        raise DataFileError(f"no notebook (*.ipynb) in {folder}")
    works = []
    for (_, exercise), several in found.items():
        *older, newest = [work for _, work in sorted(several, key=lambda pair: pair[0])]
        if older:
            note = f"{len(several)} notebooks for {exercise}: {newest.file} is the newest; not "
            newest.notes.append(note + ", ".join(work.file for work in older))
        works.append(newest)
    for student, links in students.items():
        mine = [work for work in works if work.student == student] or [Work(student, notes=["no notebook"])]
        mine[0].notes += [f"a link, not followed: {', '.join(links)}"] if links else []
        works += mine if mine[0] not in works else []
    return sorted(works, key=lambda work: (work.student.lower(), work.student, work.exercise or ""))


def plain(text: Any) -> str:
    """`text` without what could upset a terminal or a file: control characters, halves of characters."""
    whole = str(text).encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() or c == "\n" else " " for c in whole)


def owner(path: Path) -> str:
    """The student that a notebook's file name names, perhaps beside the exercise."""
    return plain(path.stem.replace(exercise_in(path) or "", "").strip(" _-") or path.stem)


def exercise_in(path: Path) -> str | None:
    return next((name for name in LADDERS if name in path.stem), None)


def read(path: Path, student: str) -> Work:
    """Return a notebook as work to do."""
    work = Work(student, plain(path.name), exercise_in(path))
    try:
        size = path.stat().st_size / 2**20
        if size > LARGEST:
            raise InputError(f"it has {size:.0f} MiB, more than {LARGEST}; clear its outputs")
        cells, exercise = parse(path.read_text(encoding="utf-8-sig"))
    except Exception as error:  # as many kinds as a file can be damaged in
        work.notes.append(f"{work.file} cannot be read: {plain(' '.join(str(error).split()))[:120]}")
        return work
    if exercise in LADDERS:
        work.exercise = exercise
    if work.exercise is None:
        work.notes.append(
            f"{work.file} is none of the exercises: neither its metadata nor its name says which"
        )
    question = ""
    for number, cell in enumerate(cells, start=1):
        graded, solution = nbgrader(cell, "grade"), nbgrader(cell, "solution")
        name = str(cell["metadata"].get("nbgrader", {}).get("grade_id", cell.get("id", "")))
        if cell["cell_type"] == "code":
            checks = (graded and not solution) or name.endswith("-check")
            source = CALL.sub("", cell["source"]) if checks else cell["source"]
            work.cells.append((number, source, name.removesuffix("-check") if checks else ""))
        elif cell["cell_type"] == "markdown":
            if solution or name.endswith("-answer"):
                answer = plain(cell["source"]).strip()
                work.answers.append((plain(name).removesuffix("-answer"), question, answer))
            why = WHY.search(cell["source"])
            question = plain(" ".join(why[1].split())) if why else ""
    return work


def parse(text: str) -> tuple[list[Any], str]:
    """Return the cells of a notebook of any format, and the exercise that its metadata names ("" if none).

    Raises:
        Exception: of some kind, if `text` is not a notebook.
    """
    try:
        notebook = nbformat.reader.reads(text)
    except nbformat.reader.NotJSONError:  # its own message shows the beginning, which looks well
        raise ValueError("cut off or damaged; ask for it again") from None
    notebook = nbformat.convert(notebook, 4)  # no validation: it refuses what can be graded
    for cell in notebook.cells:
        if not isinstance(cell.source, str):
            raise ValueError("a cell without text")
        nbgrader(cell, "grade")
    return notebook.cells, str(notebook.metadata.get("asa_mini", {}).get("exercise", ""))
