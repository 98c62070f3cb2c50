"""Make the students' notebooks from the solutions: `python -m asa_classroom exercises`.

`notebooks/solutions` is the source of truth. What a student must write stands between the marks of SOLUTION;
the cells carry nbgrader's metadata (`solution`, `grade`, `grade_id`), so a teacher can give the same files to
nbgrader. The why-questions and their answers are copied to the instructor's guide.
"""

import argparse
import copy
import re
from pathlib import Path
from textwrap import indent
from typing import Any

from asa_classroom.publishing import publish
from asa_classroom.stored import NotebookError, read_notebook
from asa_mini.errors import DataFileError, InputError
from asa_mini.train.files import write_text

SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n(.*?)^ *### END SOLUTION(?:\n|\Z)", re.M | re.S)
MARK = re.compile(r"### (?:BEGIN|END) SOLUTION")
STUBS = {"code": "# YOUR CODE HERE\nraise NotImplementedError()\n", "markdown": "*Write your answer here.*\n"}
WHY = re.compile(r"\*\*Why\?\*\*\s+(.+)", re.S)
GUIDE_START = "<!-- answers: python -m asa_classroom exercises -->"
GUIDE_END = "<!-- end of answers -->"


def student_version(solution: Any, name: str, show_solutions: bool = True) -> Any:
    """Return the student's notebook for a solution notebook: stubs in place of solutions, no outputs.

    Args:
        solution: nbformat node; left as it is.
        name: stem of its file; kept in `metadata.asa_mini.exercise`, so that grading knows a renamed file.
        show_solutions: put each solution, folded away, after its check.

    Raises:
        NotebookError: BEGIN and END marks do not pair up, stand in a cell that nbgrader's metadata does not
            call a solution, or are missing in one that it does.
    """
    import nbformat

    student = copy.deepcopy(solution)
    student.metadata["asa_mini"] = {"exercise": name}
    student.cells, folded = [], None
    for cell in copy.deepcopy(solution.cells):
        full = SOLUTION.sub(r"\2", cell.source)
        found, roles = full != cell.source, cell.metadata.get("nbgrader", {})
        stub = STUBS.get(cell.cell_type, "")
        cell.source = SOLUTION.sub(lambda region, stub=stub: indent(stub, region[1]), cell.source).rstrip()
        if MARK.search(full) or found != roles.get("solution", False):
            raise NotebookError(
                f"{name}, cell {cell.id}: every solution cell (nbgrader metadata), and no other, must hold "
                "### BEGIN SOLUTION and ### END SOLUTION, each on a line of its own"
            )
        student.cells.append(cell)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            if found:
                text = f"<summary>Solution</summary>\n\n```python\n{full.rstrip()}\n```\n"
                text = f"<details>\n{text}\n</details>"
                folded = nbformat.v4.new_markdown_cell(text, id=f"{cell.id}-solution")
            elif folded and roles.get("grade"):
                student.cells += [folded] if show_solutions else []
                folded = None
    return student


def generate(source: Path, output: Path, show_solutions: bool = True) -> dict[Path, str]:
    """Return what follows from the solutions, ready to be written: {path: text}.

    That is the students' notebooks in `output`. If that is the folder `exercises` beside `source`, then also
    lessons and solutions with their badge and set-up cell up to date, and the answers in `INSTRUCTORS.md`.

    Raises:
        DataFileError: `source` holds no notebook.
        InputError: `output` holds the originals, or is published with solutions though `show_solutions` is
            False, or the guide lacks its marks.
        NotebookError: see `student_version`, `fill_guide` and `read_notebook`.
    """
    import nbformat

    folder, place = source.parent, output.resolve()
    published = place == (folder / "exercises").resolve()
    if published and not show_solutions:
        raise InputError(f"{output} is published with folded solutions: choose another --output")
    if place in (source.resolve(), folder.resolve()):
        raise InputError(f"{output} holds the originals: choose another --output")
    solutions = {path: read_notebook(path) for path in sorted(source.glob("*.ipynb"))}
    if not solutions:
        raise DataFileError(f"no notebook in {source}")
    notebooks = {
        output / path.name: student_version(solution, path.stem, show_solutions)
        for path, solution in solutions.items()
    }
    guide, texts = folder / "INSTRUCTORS.md", {}
    if published:
        notebooks |= {path: read_notebook(path) for path in sorted(folder.glob("*.ipynb"))} | solutions
        if guide.exists():
            texts[guide] = fill_guide(guide.read_text(encoding="utf-8"), solutions)
    for path, notebook in notebooks.items():
        inside = path.resolve().relative_to(folder.resolve()).as_posix() if published else None
        texts[path] = nbformat.writes(publish(notebook, inside and f"notebooks/{inside}")) + "\n"
    return texts


def fill_guide(guide: str, solutions: dict[Path, Any]) -> str:
    """Return the instructor's guide with the why-questions and their answers between its two marks.

    Raises:
        InputError: the marks are missing.
        NotebookError: the cell before an answer asks no `**Why?**`.
    """
    head, start, rest = guide.partition(GUIDE_START)
    _, end, tail = rest.partition(GUIDE_END)
    if not (start and end):
        raise InputError(f"the instructor's guide needs the lines {GUIDE_START} and {GUIDE_END}")
    texts = [head + start]
    for path, solution in solutions.items():
        texts.append(f"### {path.stem}")
        for question, cell in zip(solution.cells, solution.cells[1:], strict=False):
            answer = SOLUTION.search(cell.source) if cell.cell_type == "markdown" else None
            why = WHY.search(question.source)
            if answer and not why:
                raise NotebookError(f"{path.stem}, cell {question.id}: no **Why?** before {cell.id}")
            if answer:
                texts.append(f"**`{cell.id.removesuffix('-answer')}`** {' '.join(why[1].split())}")
                texts.append(indent(answer[2].strip(), "> "))
    return "\n\n".join([*texts, end + tail])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m asa_classroom exercises` to `parser`."""
    parser.add_argument("--source", type=Path, default="notebooks/solutions", help="folder of the solutions")
    parser.add_argument("--output", type=Path, default="notebooks/exercises", help="folder to write to")
    help_text = "leave the folded solutions out, for graded work"
    parser.add_argument("--no-solutions", action="store_true", help=help_text)


def main(args: argparse.Namespace) -> None:
    """Write what `generate` returns, where it differs from what is there; nothing if that raises."""
    texts = generate(args.source, args.output, not args.no_solutions)
    args.output.mkdir(parents=True, exist_ok=True)
    changed = [path for path, text in texts.items() if not path.exists() or path.read_text("utf-8") != text]
    for path in changed:
        write_text(path, texts[path])
        print(path)
    print(f"{len(changed)} of {len(texts)} files changed")
