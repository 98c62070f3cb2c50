"""What `python -m asa_classroom grade` shows: one line for each student, grades.csv, grades.html."""

import csv
import io
from pathlib import Path

import jinja2

from asa_classroom.exercises import STUBS
from asa_classroom.grading.collect import Work, plain
from asa_mini.train.files import write_text

LONGEST = 5000  # characters shown of an answer
SIGNS = {"passed": "✓", "failed": "✗", "unfinished": "○", "not run": "–"}
Steps = dict[str, list[str]]  # exercise -> its steps


def write(works: list[Work], steps: Steps, output: Path) -> None:
    """Print one line for each student; write grades.csv and grades.html to the folder `output`."""
    total = sum(map(len, steps.values()))  # of all exercises of the class: what was not handed in counts, too
    students = {work.student: [w for w in works if w.student == work.student] for work in works}
    rows = []
    for name, mine in students.items():
        passed = sum(len(having("passed", work, steps.get(work.exercise, []))) for work in mine)
        rows.append((name, passed, total, notes(mine, steps)))
    texts = {"grades.csv": table(rows, students, steps), "grades.html": page(rows, students, steps)}
    width = max(map(len, students))
    for name, passed, _, text in rows:
        print(f"{name:{width}}  {f'{passed}/{total}':>7}  {text}".rstrip())
    for name, text in texts.items():
        write_text(output / name, text)
    print(f"written to {output}: {', '.join(texts)}")


def state(work: Work | None, step: str) -> str:
    """What became of a step: a key of SIGNS."""
    found = work.outcomes.get(step, [""])[0] if work else ""
    return found if found in SIGNS else "not run"


def having(kind: str, work: Work | None, names: list[str]) -> list[str]:
    """The steps that are in the state `kind`."""
    return [step for step in names if state(work, step) == kind]


def notes(mine: list[Work], steps: Steps) -> str:
    """Everything to be said about one student in one line."""
    several = len(steps) > 1
    found = [
        f"{work.exercise}: {note}" if several and work.exercise else note
        for work in mine
        for note in work.notes
    ]
    failing = sum(len(work.errors) for work in mine)
    found += [f"{failing} {'cell' if failing == 1 else 'cells'} failed"] if failing else []
    handed_in = {work.exercise for work in mine}
    missing = [name for name in steps if name not in handed_in]
    found += [f"not handed in: {', '.join(missing)}"] if missing and several else []
    found += [f"{name} has no checks" for name in steps if name in handed_in and not steps[name]]
    return plain("; ".join(found)).replace("\n", " ")


def table(rows: list, students: dict[str, list[Work]], steps: Steps) -> str:
    """grades.csv; `5 of 7`, because a spreadsheet takes 5/7 for a day in July."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["student", "passed", "total", *steps, "notes"])
    for name, passed, total, text in rows:
        mine = {work.exercise: work for work in students[name]}
        cells = [
            f"{len(having('passed', mine[exercise], names))} of {len(names)}"
            if exercise in mine
            else "not handed in"
            for exercise, names in steps.items()
        ]
        writer.writerow([harmless(name), passed, total, *cells, harmless(text)])
    return "\ufeff" + file.getvalue()  # the mark by which Excel knows UTF-8


def harmless(text: str) -> str:
    """`text` as a spreadsheet must take it: as text, not as a formula."""
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


def page(rows: list, students: dict[str, list[Work]], steps: Steps) -> str:
    """grades.html, from the template beside this file."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)

    def count(exercise: str, step: str, kind: str) -> int:
        works = [work for mine in students.values() for work in mine if work.exercise == exercise]
        return sum(state(work, step) == kind for work in works)

    return environment.get_template("report.html").render(
        rows=rows,
        students=students,
        steps=steps,
        signs=SIGNS,
        state=state,
        having=having,
        count=count,
        longest=LONGEST,
        empty=("", STUBS["markdown"].strip()),
    )
