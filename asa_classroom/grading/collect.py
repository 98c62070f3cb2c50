"""Find students' notebooks and read them: what is to be graded, and what cannot be.

The folder holds notebooks, `student.ipynb`, or a folder for each student with notebooks at any depth, as
nbgrader and Moodle deliver them. A notebook names its exercise in `metadata.asa_mini.exercise`; a file name
that holds the exercise's name will do.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import nbformat

from asa_classroom.checks import LADDERS
from asa_classroom.exercises import WHY
from asa_classroom.stored import one_line
from asa_mini.errors import DataFileError, InputError

CALL = re.compile(r"^check\..*$", re.M)
LARGEST = 64  # MiB of a notebook file


@dataclass
class Work:
    """One notebook of a student, or the lack of one, and what came of it.

    Attributes:
        exercise: one of `asa_classroom.checks.LADDERS`; None where it is not known.
        cells: (number, source, step) of the code cells, without calls of the checks, which are ours to run;
            numbers count all cells from 1. A check's cell names its step, and runs once that has passed.
        answers: (step, question, answer) of the why-questions.
        outcomes: step -> (passed, failed, unfinished or not run; message).
        errors: one line for each cell that failed.
    """

    student: str
    file: str = ""
    exercise: str | None = None
    notes: list[str] = field(default_factory=list)
    cells: list[tuple[int, str, str]] = field(default_factory=list)
    answers: list[tuple[str, str, str]] = field(default_factory=list)
    outcomes: dict[str, tuple[str, str]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    modified: float = 0.0
    seconds: float = 0.0


def collect(folder: Path) -> list[Work]:
    """Return the notebooks to grade, sorted by student; one that cannot be read is there, too, with a note.

    A student's newest notebook (by modification time) counts where there are several for one exercise. Links
    are not followed, and named in a note: one could lead to a solution, or to another student's work.

    Raises:
        DataFileError: there is no such folder, or no notebook in it.
    """
    if not folder.is_dir():
        raise DataFileError(f"no folder {folder}: give the one that holds the students' notebooks")
    found: dict[str, tuple[dict[str, list[Work]], list[str]]] = {}  # student -> by exercise or file; links
    for path in sorted(folder.rglob("*")):  # goes into no link
        top, *nested = parts = path.relative_to(folder).parts
        if any(part.startswith(".") or part == "__MACOSX" for part in parts):
            continue  # .ipynb_checkpoints; what macOS adds to a zip file
        if not (nested or path.is_dir() or path.suffix == ".ipynb"):
            continue  # the teacher's own
        owner = path.stem.replace(exercise_in(path) or "", "").strip(" _-") or path.stem
        student = plain(top if (folder / top).is_dir() else owner)
        mine, links = found.setdefault(student, ({}, []))
        if path.is_symlink():
            links.append(plain("/".join(parts)))
        elif path.suffix == ".ipynb" and path.is_file():
            work = read(path, student)
            mine.setdefault(work.exercise or work.file, []).append(work)
    works = []
    for student, (mine, links) in found.items():
        for several in mine.values():
            *older, newest = sorted(several, key=lambda work: work.modified)
            names = ", ".join(work.file for work in older)
            newest.notes += [f"{newest.file} is the newest; not run: {names}"] if older else []
            works.append(newest)
        works += [] if mine else [Work(student, notes=["no notebook"])]
        works[-1].notes += [f"a link, not followed: {', '.join(links)}"] if links else []
    if not any(mine or links for mine, links in found.values()):
        raise DataFileError(f"no notebook (*.ipynb) in {folder}")
    return sorted(works, key=lambda work: (work.student.lower(), work.student, work.exercise or ""))


def plain(text: object) -> str:
    """`text` without what could upset a terminal or a file: control characters, halves of characters."""
    whole = str(text).encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() or c == "\n" else " " for c in whole)


def exercise_in(path: Path) -> str | None:
    return next((name for name in LADDERS if name in path.stem), None)


def read(path: Path, student: str) -> Work:
    """Return a notebook as work to do; one that cannot be read has no cells, and a note."""
    work = Work(student, plain(path.name), exercise_in(path), modified=path.stat().st_mtime)
    try:
        parse(path, work)
    except Exception as error:  # as many kinds as a file can be damaged in
        work.cells = []
        work.notes.append(f"{work.file} cannot be read, ask for it again: {plain(one_line(error, 120))}")
    else:
        what = "is none of the exercises: neither its metadata nor its name says which"
        work.notes += [] if work.exercise else [f"{work.file} {what}"]
    return work


def parse(path: Path, work: Work) -> None:
    """Fill in the exercise, the code cells and the answers of the notebook at `path`, or raise something."""
    if path.stat().st_size > LARGEST * 2**20:
        raise InputError(f"more than {LARGEST} MiB; the outputs should be cleared")
    notebook = nbformat.reader.reads(path.read_text(encoding="utf-8-sig"))
    notebook = nbformat.convert(notebook, 4)  # no validation: it refuses what can be graded
    named = notebook.metadata.get("asa_mini", {}).get("exercise")
    work.exercise = named if named in LADDERS else work.exercise
    question = ""
    for number, cell in enumerate(notebook.cells, start=1):
        name = plain(cell.metadata.get("nbgrader", {}).get("grade_id", cell.get("id", "")))
        if cell.cell_type == "code":
            step = name.removesuffix("-check") if name.endswith("-check") else ""
            work.cells.append((number, CALL.sub("", cell.source), step))
        elif cell.cell_type == "markdown":
            if name.endswith("-answer"):
                work.answers.append((name.removesuffix("-answer"), question, plain(cell.source).strip()))
            why = WHY.search(cell.source)
            question = plain(" ".join(why[1].split())) if why else ""
