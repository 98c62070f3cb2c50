"""Grading: whatever one student's notebook does costs that student alone."""

import contextlib
import csv
import html
import io
import os
import re
import socket
import sys
from pathlib import Path

import pytest
from hand_ins import ALLOWED, FOR_EVER, FORGERY, NAME, ROOT, STEPS, accidents, attacks, homework

from asa_classroom import cli, grading
from asa_classroom.grading import report as grading_report
from asa_classroom.grading import sandbox
from asa_classroom.grading.collect import Work, collect
from asa_mini.errors import DataFileError

TIMEOUT = 24  # seconds: a cell may take a third of it, on a machine that stands still now and then
NO_WALL = sandbox.missing_wall()
FORMULA, INJECTION = "=HYPERLINK(0)", "<script>alert(1)</script> & more"


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """A class run once: the lines printed, rows of the CSV by student, the HTML, and who must be unharmed."""
    base = tmp_path_factory.mktemp("class")
    students, victim, output, temporary = (base / name for name in ("in", "victim", "out", "tmp"))
    for folder in (students / "empty", students / "__MACOSX", victim, temporary):
        folder.mkdir(parents=True)
    (victim / "kept.txt").write_text("kept", encoding="utf-8")
    server = socket.create_server(("127.0.0.1", 0))
    server.setblocking(False)
    other = students / "leave" / "assignment" / f"{NAME}.ipynb"
    bad = accidents(victim, server.getsockname()[1]) | ({} if NO_WALL else attacks(victim, other))
    bad["while True: print('x' * 10**7)"] = f"TimeoutError: no result after {TIMEOUT / 3:g} s"
    more = "check.slopes(slopes)\nlater = 1"  # such a cell may define what a later one needs
    after = [("slopes", *bad, *ALLOWED), ("slopes-answer", "assert later == 1")]
    homework(students / "bad" / "homework.ipynb", change=[("slopes-check", more)], after=after)
    homework(students / "bad" / ".ipynb_checkpoints" / f"{NAME}-checkpoint.ipynb", steps=[])
    homework(other, after=[("Reversal", FORGERY)])
    (students / "linked.ipynb").symlink_to(other)
    memory = FOR_EVER.replace("time\n", "time; x = []\n", 1)
    memory = memory.replace("time.sleep", "x.append(b'x' * 10**7); time.sleep")
    homework(students / "memory.ipynb", after=[("slopes", memory)])
    files = f"for i in range(12): open(str(i), 'wb').write(bytes(10**7))\n{FOR_EVER}"
    homework(students / "disk.ipynb", after=[("largest_rate", files)])
    change = [
        ("largest_rate", "def largest_rate(c):\n    import time; time.sleep(600)"),
        ("play-answer", INJECTION),
    ]
    change += [("slopes", "def slopes(theta, eta, c):\n    return 0.0, 0.0")]
    change += [("slopes-check", "check.slopes(slopes)\n1 / 0")]  # the check would have stopped it
    last = [("play-answer", FOR_EVER)]
    homework(students / FORMULA / "a.ipynb", steps=["Reversal"], change=change, after=last)
    (students / f"damaged_{NAME}.ipynb").write_text('{"cells": [', encoding="utf-8")
    empty = '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
    (students / "stranger.ipynb").write_text(empty, encoding="utf-8")
    (students / "list.txt").write_text("", encoding="utf-8")
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sandbox, "DISK", 50)
        patch.setenv("TMPDIR", str(temporary))
        patch.setattr("tempfile.tempdir", str(temporary))
        options = ["--output", str(output), "--timeout", str(TIMEOUT), "--memory", "1024", "--jobs", "5"]
        assert cli.main(["grade", str(students), *options]) == 0
    with pytest.raises(BlockingIOError):
        server.accept()  # nobody has called
    server.close()
    assert list(temporary.iterdir()) == []
    assert [path.read_text(encoding="utf-8") for path in victim.iterdir()] == ["kept"]
    assert sorted(path.name for path in output.iterdir()) == ["grades.csv", "grades.html"]
    page = (output / "grades.html").read_text(encoding="utf-8")
    with open(output / "grades.csv", encoding="utf-8-sig", newline="") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    return printed.getvalue().splitlines(), rows, page, bad


def passed(graded, student):
    return int(graded[1][student]["passed"]), graded[1][student]["notes"]


def failed_cells(page):
    return re.search("Cells that failed</h4><pre>(.*?)</pre>", page, re.S)[1].splitlines()


def section(graded, student):
    return re.search(rf"<h3>{re.escape(student)}: .*?</section>", graded[2], re.S)[0]


def test_a_cell_that_must_not_do_what_it_tries_fails_alone(graded):
    _, rows, _, bad = graded
    notes = f"{len(bad)} cells failed"
    row = {"student": "bad", "passed": "7", "total": "7", NAME: "7 of 7", "notes": notes}
    assert rows["bad"] == row, section(graded, "bad")
    told = failed_cells(section(graded, "bad"))
    for line, (source, error) in zip(told, bad.items(), strict=True):
        assert error in line and source.splitlines()[0][:60] in html.unescape(line)
    if NO_WALL:
        pytest.skip(f"only accidents were tried, no attacks: {NO_WALL}")


@pytest.mark.parametrize(
    ("student", "points", "note"),
    [
        (f"'{FORMULA}", 1, rf"stopped in cell \d+ \(import time\): .* {TIMEOUT} s are used up: .*"),
        ("leave", 3, r"its process ended in cell \d+ \(import contextlib, os\): exit code 0"),
        ("linked", 0, "no notebook; a link, not followed: linked.ipynb"),
        ("memory", 1, r"stopped in cell \d+ \(import time; .*\): more than 1024 MiB of memory"),
        ("disk", 6, r"stopped in .*: more than 50 MiB written to disk"),
        ("damaged", 0, rf"damaged_{NAME}\.ipynb cannot be read, ask for it again: Notebook does not .*"),
        ("stranger", 0, r"stranger\.ipynb is none of the exercises: .*"),
        ("empty", 0, "no notebook"),
    ],
)
def test_each_costs_itself_alone(student, points, note, graded):
    got, text = passed(graded, student)
    assert got == points and re.fullmatch(note, text)


def test_one_line_for_each_student(graded):
    lines, rows, _, _ = graded
    assert len(rows) == 9 and len(lines) == 11
    names = [row["student"].removeprefix("'") for row in rows.values()]
    assert [line[:15].rstrip() for line in lines[:9]] == names == sorted(names)
    assert len({line.index("/7") for line in lines[:9]}) == 1  # aligned
    assert lines[-1] == "not notebooks, so not looked at: list.txt"


def test_page_shows_the_failed_checks_and_the_answers(graded):
    page, about = graded[2], section(graded, FORMULA)
    assert "Step 1, slopes: the pair of slopes is not right\n" in about
    assert "Step 6, largest_rate: your code stopped with TimeoutError in `largest_rate`, line 2" in about
    assert "Unfinished: simultaneous_step, reverse_by_detach, players_loss, play" in about
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in about and "No answer: slopes, simul" in about
    assert "Autograd never differentiates anything." in about
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
    row = re.search(r">5 players_loss</td>((<td>\d*</td>)+)", page)[1]  # 3 died, 1 is a stub, 1 damaged
    assert re.findall(r"<td>(\d*)</td>", row) == ["2", "", "1", "3"]


def test_the_newest_of_several_counts(tmp_path):
    old, new = tmp_path / "ann" / "b.ipynb", tmp_path / "ann" / "deep" / "a.ipynb"
    homework(old)
    homework(new, steps=[])
    os.utime(old, (1, 1))
    (work,) = collect(tmp_path)
    assert (work.student, work.file) == ("ann", "a.ipynb")
    assert work.notes == ["a.ipynb is the newest; not run: b.ipynb"]
    checks = {step: source for _, source, step in work.cells if step}
    assert list(checks) == STEPS and "check" not in "".join(checks.values())  # the checks are ours to run


def test_links_are_not_followed(tmp_path):
    solutions = ROOT / "notebooks" / "solutions"
    homework(tmp_path / "ann" / "a.ipynb")
    for link in ("ann/deep", "ann/b.ipynb", "ann/data.csv", "bob", f"cid_{NAME}.ipynb", "notes.txt"):
        (tmp_path / link).symlink_to(solutions / f"{NAME}.ipynb" if "." in link else solutions)
    notes = {work.student: (work.file, *work.notes) for work in collect(tmp_path)}
    assert notes == {
        "ann": ("a.ipynb", "a link, not followed: ann/b.ipynb, ann/data.csv, ann/deep"),
        "bob": ("", "no notebook", "a link, not followed: bob"),
        "cid": ("", "no notebook", f"a link, not followed: cid_{NAME}.ipynb"),
    }


def test_names_and_texts_that_no_file_can_hold(tmp_path):
    """A mark at the start, half a character, control characters: none may stop the class."""
    path = tmp_path / f"Zoë\x1b[31m_{NAME}.ipynb"
    homework(path, change=[("play-answer", "half \ud800 of it")])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (work,) = collect(tmp_path)
    assert work.student == "Zoë [31m" and work.notes == [] and work.exercise == NAME
    assert work.answers[-1][2] == "half ? of it"
    grading_report.write([work], {NAME: STEPS}, tmp_path)
    assert "half ? of it" in (tmp_path / "grades.html").read_text(encoding="utf-8")


def test_what_was_not_handed_in_counts_as_zero(tmp_path, capsys):
    works = [
        Work("ann", "x.ipynb", "a", outcomes={"x": ("passed", ""), "y": ("failed", "why")}),
        Work("ann", "x.ipynb", "b", outcomes={"z": ("passed", "")}, notes=["slow"]),
        Work("bob", "x.ipynb", "b", outcomes={"z": ("unfinished", "")}),
    ]
    grading_report.write(works, {"a": ["x", "y"], "b": ["z"]}, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["ann      2/3  b: slow", "bob      0/3  not handed in: a"]
    rows = (tmp_path / "grades.csv").read_text(encoding="utf-8-sig").splitlines()
    assert rows == [
        "student,passed,total,a,b,notes",
        "ann,2,3,1 of 2,1 of 1,b: slow",
        "bob,0,3,not handed in,0 of 1,not handed in: a",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("nowhere",), "no folder"),
        (("in",), "no notebook"),
        (("in", "--timeout", "nan"), "--timeout must be at least 1"),
        (("in", "--memory", "100"), "--memory must be at least 1024"),
        (("in", "--jobs", "0"), "--jobs must be at least 1"),
        (("in", "--output", "in/out"), "--output lies in the students' folder"),
    ],
)
def test_wrong_arguments(options, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    assert cli.main(["grade", *options]) == 2
    assert message in capsys.readouterr().err
    with pytest.raises(DataFileError):
        collect(Path("in"))


def test_missing_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.delitem(sys.modules, "asa_classroom.grading.sandbox")
    monkeypatch.delattr(grading, "sandbox")
    assert cli.main(["grade", str(tmp_path)]) == 2
    assert "this needs psutil: pip install 'asa_mini[classroom]'" in capsys.readouterr().err
