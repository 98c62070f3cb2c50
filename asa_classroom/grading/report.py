"""What `python -m asa_classroom grade` shows: one line for each student, grades.csv, grades.html."""

import csv
import io
from collections import Counter
from pathlib import Path

import jinja2

from asa_classroom.exercises import STUBS
from asa_classroom.grading.collect import Work
from asa_mini.train.files import write_text

LONGEST = 5000  # characters shown of an answer
SIGNS = {"passed": "✓", "failed": "✗", "unfinished": "○", "not run": "–"}


def write(works: list[Work], steps: dict[str, list[str]], output: Path) -> None:
    """Print one line for each student; write grades.csv and grades.html to the folder `output`.

    Args:
        steps: exercise -> its steps, of all exercises of the class: what was not handed in counts, too.
    """
    students: dict[str, list[Work]] = {}
    for work in works:
        students.setdefault(work.student, []).append(work)
    rows, counts = [], {(exercise, step): Counter() for exercise in steps for step in steps[exercise]}
    several = len(steps) > 1
    for student, mine in students.items():
        lacking = [name for name in steps if all(work.exercise != name for work in mine)]
        mine += [Work(student, exercise=name) for name in lacking]
        cells, notes = dict.fromkeys(steps, "not handed in"), []
        for work in mine:
            names = steps.get(work.exercise, [])
            work.outcomes = {step: work.outcomes.get(step, ("not run", "")) for step in names}
            notes += [f"{work.exercise}: {n}" if several and work.exercise else n for n in work.notes]
            if work.file and work.exercise:
                cells[work.exercise] = f"{passed([work])} of {len(names)}"  # 5/7 is a day in July
                for step, (state, _) in work.outcomes.items():
                    counts[work.exercise, step][state] += 1
        failing = sum(len(work.errors) for work in mine)
        notes += [f"{failing} {'cell' if failing == 1 else 'cells'} failed"] if failing else []
        notes += [f"not handed in: {', '.join(lacking)}"] if several and lacking else []
        row = {"student": student, "passed": passed(mine), "total": len(counts)}
        rows.append(row | cells | {"notes": "; ".join(notes)})
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: harmless(value) for name, value in row.items()} for row in rows)
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    about = {"rows": rows, "students": students, "steps": steps, "counts": counts, "signs": SIGNS}
    about |= {"longest": LONGEST, "unanswered": ("", STUBS["markdown"].strip())}
    page = environment.get_template("report.html").render(about)
    write_text(output / "grades.csv", "\ufeff" + file.getvalue())  # the mark by which Excel knows UTF-8
    write_text(output / "grades.html", page)
    width = max(map(len, students))
    for row in rows:
        points = f"{row['passed']}/{row['total']}"
        print(f"{row['student']:{width}}  {points:>7}  {row['notes']}".rstrip())
    print(f"written to {output}: grades.csv, grades.html")


def passed(works: list[Work]) -> int:
    return sum(state == "passed" for work in works for state, _ in work.outcomes.values())


def harmless(value: object) -> str:
    """A cell as a spreadsheet must take it: as text, not as a formula."""
    return f"'{value}" if str(value).lstrip().startswith(("=", "+", "-", "@")) else str(value)
