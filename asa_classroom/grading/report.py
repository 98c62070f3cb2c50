"""What `python -m asa_classroom grade` shows: one line for each student, grades.csv, grades.html."""

import csv
import io
from html import escape
from pathlib import Path

from asa_classroom.exercises import STUBS
from asa_classroom.grading.collect import Work, plain
from asa_mini.train.files import write_text

LONGEST = 5000  # characters shown of an answer
EMPTY = STUBS["markdown"].strip()
SIGNS = {"passed": "✓", "failed": "✗", "unfinished": "○", "not run": "–"}
Steps = dict[str, list[str]]  # exercise -> its steps

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Grades</title>
<style>
  :root { --page: #fff; --ink: #1b1b1b; --soft: #595959; --rule: #d0d0d0; --box: #f4f4f4;
          --passed: #00588f; --failed: #a63c00; --unfinished: #595959; --notrun: #595959; }
  @media (prefers-color-scheme: dark) {
    :root { --page: #161616; --ink: #e8e8e8; --soft: #a8a8a8; --rule: #444; --box: #222;
            --passed: #6db8ee; --failed: #ff9b5e; --unfinished: #a8a8a8; --notrun: #a8a8a8; } }
  * { box-sizing: border-box; }
  body { margin: 0 auto; padding: 16px; max-width: 1000px; background: var(--page); color: var(--ink);
         font: 16px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
  h1 { font-size: 1.5rem; margin: 0 0 8px; } h2 { font-size: 1.2rem; margin: 32px 0 8px; }
  h3 { font-size: 1.05rem; margin: 0 0 4px; } h4 { font-size: .95rem; margin: 16px 0 4px; }
  p { margin: 4px 0; } .soft { color: var(--soft); font-size: .9rem; }
  a { color: inherit; } a:focus-visible { outline: 3px solid var(--passed); }
  .wide { overflow-x: auto; }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
  th, td { padding: 4px 10px; border-bottom: 1px solid var(--rule); text-align: center;
           overflow-wrap: normal; }
  th:first-child, td.name { text-align: left; position: sticky; left: 0; background: var(--page);
                            min-width: 7rem; max-width: 15rem; overflow-wrap: anywhere; }
  td.note { text-align: left; min-width: 14rem; font-size: .9rem; color: var(--soft); }
  .passed { color: var(--passed); } .failed { color: var(--failed); font-weight: 700; }
  .unfinished { color: var(--unfinished); } .notrun { color: var(--notrun); }
  section { border-top: 2px solid var(--rule); padding: 14px 0; margin-top: 14px; }
  pre { margin: 4px 0 10px; padding: 8px 10px; background: var(--box); border-left: 4px solid var(--failed);
        white-space: pre-wrap; font: .85rem/1.45 ui-monospace, Consolas, monospace; }
  blockquote { margin: 2px 0 12px; padding: 4px 10px; border-left: 4px solid var(--rule);
               white-space: pre-wrap; }
</style>
</head>
<body>
"""


def write(works: list[Work], steps: Steps, output: Path) -> None:
    """Print one line for each student; write grades.csv and grades.html to the folder `output`."""
    students = {work.student: [w for w in works if w.student == work.student] for work in works}
    rows = [(name, *score(mine, steps), notes(mine, steps)) for name, mine in students.items()]
    texts = {"grades.csv": table(rows, students, steps), "grades.html": page(rows, students, steps)}
    width = max(len(name) for name in students)
    for name, passed, total, text in rows:
        print(f"{name:{width}}  {f'{passed}/{total}':>7}  {text}".rstrip())
    for name, text in texts.items():
        write_text(output / name, text)
    print(f"written to {output}: {', '.join(texts)}")


def state(work: Work, step: str) -> str:
    """What became of a step: a key of SIGNS."""
    found = work.outcomes.get(step, ("not run", ""))[0]
    return found if found in SIGNS else "not run"


def score(mine: list[Work], steps: Steps) -> tuple[int, int]:
    """Steps passed, and the steps of all exercises of the class: what was not handed in counts, too."""
    passed = sum(state(work, step) == "passed" for work in mine for step in steps.get(work.exercise, ()))
    return passed, sum(map(len, steps.values()))


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
        exercises = {work.exercise: work for work in students[name]}
        cells = [
            "{} of {}".format(*score([exercises[exercise]], {exercise: steps[exercise]}))
            if exercise in exercises
            else "not handed in"
            for exercise in steps
        ]
        writer.writerow([harmless(name), passed, total, *cells, harmless(text)])
    return "\ufeff" + file.getvalue()  # the mark by which Excel knows UTF-8


def harmless(text: str) -> str:
    """`text` as a spreadsheet must take it: as text, not as a formula."""
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


def page(rows: list, students: dict[str, list[Work]], steps: Steps) -> str:
    """grades.html."""
    legend = ", ".join(f"{sign} {name}" for name, sign in SIGNS.items())
    parts = [f'{PAGE}<h1>Grades</h1>\n<p class="soft">{len(students)} students. {legend}.</p>']
    anchors = {name: f"s{number}" for number, name in enumerate(students)}
    for exercise, names in steps.items():
        parts += [f"<h2>{escape(exercise)}</h2>", class_table(exercise, names, students, anchors)]
        parts.append(statistics(exercise, names, [work for mine in students.values() for work in mine]))
    parts.append("<h2>Student by student</h2>")
    for name, passed, total, text in rows:
        parts.append(f'<section id="{anchors[name]}"><h3>{escape(name)}: {passed} of {total}</h3>')
        parts.append(f'<p class="soft">{escape(text)}</p>' if text else "")
        parts += [details(work, steps[work.exercise]) for work in students[name] if work.exercise]
        parts.append("</section>")
    return "\n".join([*filter(None, parts), "</body>\n</html>\n"])


def class_table(exercise: str, names: list[str], students: dict[str, list[Work]], anchors: dict) -> str:
    """One row for each student, one column for each step."""
    heads = "".join(f'<th scope="col" title="{escape(n)}">{i}</th>' for i, n in enumerate(names, start=1))
    heads = f'<th scope="col">Student</th>{heads}<th scope="col">Passed</th><th scope="col">Notes</th>'
    lines = [f'<div class="wide"><table><tr>{heads}</tr>']
    for student, mine in students.items():
        # a notebook that belongs to no exercise may well have been meant for this one
        said = [note for work in mine for note in work.notes if work.exercise in (exercise, None)]
        work = next((work for work in mine if work.exercise == exercise), None)
        if work is None:
            said.insert(0, "not handed in")
        cells = [mark(state(work, step) if work else "not run") for step in names]
        passed = score([work] if work else [], {exercise: names})[0]
        name = f'<td class="name"><a href="#{anchors[student]}">{escape(student)}</a></td>'
        note = f'<td class="note">{escape("; ".join(said))}</td>'
        lines.append(f"<tr>{name}{''.join(cells)}<td>{passed}</td>{note}</tr>")
    return "\n".join([*lines, "</table></div>"])


def mark(found: str) -> str:
    """A cell of the table of a class: symbol, colour, and the word for who cannot see them."""
    name = found.replace(" ", "")
    return f'<td class="{name}" title="{found}" aria-label="{found}">{SIGNS[found]}</td>'


def statistics(exercise: str, names: list[str], works: list[Work]) -> str:
    """How the class did, step by step."""
    graded = [work for work in works if work.exercise == exercise]
    heads = "".join(f'<th scope="col" title="{name}">{sign}</th>' for name, sign in SIGNS.items())
    lines = [
        f'<h4>The class, step by step</h4><div class="wide"><table><tr><th scope="col">Step</th>{heads}</tr>'
    ]
    for number, step in enumerate(names, start=1):
        found = [state(work, step) for work in graded]
        cells = "".join(f"<td>{found.count(name) or ''}</td>" for name in SIGNS)
        lines.append(f'<tr><td class="name">{number} {escape(step)}</td>{cells}</tr>')
    return "\n".join([*lines, "</table></div>"])


def details(work: Work, names: list[str]) -> str:
    """Failed checks, failed cells and written answers of one notebook."""
    parts = [f"<h4>{escape(work.exercise)}</h4>"]
    parts.append(f'<p class="soft">{escape(work.file)}, {work.seconds:.0f} s</p>')
    for kind in ("failed", "unfinished", "not run"):
        listed = [step for step in names if state(work, step) == kind]
        if kind == "failed":  # only these have a message that says more than the kind
            parts += [f"<pre>{SIGNS[kind]} {escape(work.outcomes[step][1])}</pre>" for step in listed]
        elif listed:
            parts.append(f"<p>{SIGNS[kind]} {kind.capitalize()}: {escape(', '.join(listed))}</p>")
    if work.errors:
        lines = "\n".join(f"{work.cell(number)}: {error}" for number, error in work.errors)
        parts.append(f"<h4>Cells that failed</h4><pre>{escape(lines)}</pre>")
    given = [(step, asked, text) for step, asked, text in work.answers if text not in ("", EMPTY)]
    parts.append("<h4>Answers</h4>" if work.answers else "")
    for step, question, answer in given:
        cut = f"{answer[:LONGEST]} [...]" if len(answer) > LONGEST else answer
        parts.append(f'<p><b>{escape(step)}</b> <span class="soft">{escape(question)}</span></p>')
        parts.append(f"<blockquote>{escape(cut)}</blockquote>")
    silent = [step for step, _, _ in work.answers if step not in [step for step, _, _ in given]]
    parts.append(f"<p>{SIGNS['not run']} No answer: {escape(', '.join(silent))}</p>" if silent else "")
    return "\n".join(filter(None, parts))
