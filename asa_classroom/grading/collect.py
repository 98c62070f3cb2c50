"""Find students' notebooks and read them: what is to be graded, and what cannot be.

The folder holds notebooks, `student.ipynb`, or a folder for each student with notebooks at any depth, as
nbgrader and Moodle deliver them. A notebook names its exercise in `metadata.asa_mini.exercise`; a file name
that holds the exercise's name will do.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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

    A student's newest notebook (by modification time) counts where there are several for one exercise.

    Raises:
        DataFileError: there is no such folder, or no notebook in it.
    """
    if not folder.is_dir():
        raise DataFileError(f"no folder {folder}: give the one that holds the students' notebooks")
    found: dict[tuple[str, str | None], list[tuple[float, Work]]] = {}
    students = {path.name for path in folder.iterdir() if path.is_dir() and not _hidden(path.name)}
    for path in sorted(folder.rglob("*.ipynb")):
        parts = path.relative_to(folder).parts
        if any(map(_hidden, parts)) or not path.is_file():
            continue
        work = read(path, parts[0] if len(parts) > 1 else "")
        found.setdefault((work.student, work.exercise), []).append((path.stat().st_mtime, work))
    if not found:
        raise DataFileError(f"no notebook (*.ipynb) in {folder}")
    works = []
    for (_, exercise), several in found.items():
        if exercise is None:
            works += [work for _, work in several]
            continue
        *older, newest = [work for _, work in sorted(several, key=lambda pair: pair[0])]
        if older:
            names = ", ".join(work.file for work in older)
            newest.notes.append(
                f"{len(several)} notebooks for {exercise}: {newest.file} is the newest; not {names}"
            )
        works.append(newest)
    handed_in = {work.student for work in works}
    works += [Work(name, notes=["no notebook"]) for name in map(plain, students) if name not in handed_in]
    return sorted(works, key=lambda work: (work.student.lower(), work.student, work.exercise or ""))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"  # .ipynb_checkpoints; what macOS adds to a zip file


def plain(text: Any) -> str:
    """`text` without what could upset a terminal or a file: control characters, halves of characters."""
    whole = str(text).encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() or c == "\n" else " " for c in whole)


def read(path: Path, student: str) -> Work:
    """Return a notebook as work to do; without a `student`, the file's name says who it is."""
    from asa_classroom.checks import LADDERS

    named = next((name for name in LADDERS if name in path.stem), None)
    rest = path.stem.replace(named or "", "").strip(" _-")
    work = Work(plain(student or rest or path.stem), plain(path.name), named)
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
    import nbformat

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
