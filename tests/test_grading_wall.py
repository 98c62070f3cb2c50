"""The wall around a student's notebook, and the guard where there is none."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from hand_ins import FOR_EVER, accidents, homework

from asa_classroom import cli
from asa_classroom.grading import sandbox

NO_WALL = sandbox.missing_wall()


@pytest.mark.skipif(bool(NO_WALL), reason=NO_WALL)
def test_wall_hides_a_folder_inside_one_that_is_seen(tmp_path, monkeypatch):
    seen, hidden, home = tmp_path / "seen", tmp_path / "seen" / "in", tmp_path / "home"
    for folder in (hidden, home):
        folder.mkdir(parents=True)
        (folder / "file").write_text("", encoding="utf-8")
    monkeypatch.setattr(sandbox, "SYSTEM", (*sandbox.SYSTEM, str(seen)))
    code = f"""import os
print(os.listdir({str(seen)!r}), os.listdir({str(hidden)!r}), os.listdir())
for place in ("/", "/dev/shm/", {str(seen)!r} + "/", {str(hidden)!r} + "/", {str(home)!r} + "/"):
    try: open(place + "new", "w")
    except OSError as error: print(error.strerror)"""
    output = subprocess.check_output([*sandbox.wall(home, [hidden]), sys.executable, "-c", code], text=True)
    assert output.splitlines() == ["['in'] [] ['file']"] + 4 * ["Read-only file system"]
    assert sorted(path.name for path in home.iterdir()) == ["file", "new"]


def test_bubblewrap_that_is_not_allowed_to_work(tmp_path, monkeypatch):
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions' >&2\nexit 1\n", encoding="utf-8")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sandbox.missing_wall() == "bubblewrap does not work here: bwrap: No permissions"


def test_without_a_wall_accidents_are_stopped_and_ctrl_c_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    victim, temporary, output = tmp_path / "victim", tmp_path / "tmp", tmp_path / "out"
    victim.mkdir()
    temporary.mkdir()
    (victim / "kept.txt").write_text("kept", encoding="utf-8")
    bad = accidents(victim, 1)
    figure = "from asa_mini.look import plots\nplots.show_figure(plots.plt.figure(), 'a', 'a figure')"
    last = "import pathlib; assert not list(pathlib.Path().rglob('a.png')), 'the figure is here'"
    homework(tmp_path / "in" / "a.ipynb", after=[("slopes", *bad, figure, last, FOR_EVER)])
    monkeypatch.setattr(sandbox, "DISK", 50)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    told, workers = [], []

    def terminate():
        deadline = time.monotonic() + 240
        while "(import time)" not in "".join(told) and time.monotonic() < deadline:
            time.sleep(0.1)
            told[:] = [path.read_text(encoding="utf-8") for path in temporary.rglob("*.jsonl")]
        children = psutil.Process().children(recursive=True)
        workers.extend(child for child in children if "asa_classroom.grading" in "".join(child.cmdline()))
        os.kill(os.getpid(), signal.SIGTERM)

    killer = threading.Thread(target=terminate)
    killer.start()
    assert cli.main(["grade", str(tmp_path / "in"), "--output", str(output), "--timeout", "300"]) == 143
    killer.join()
    warning, *rest = capsys.readouterr().err.splitlines()
    assert warning.startswith("no wall around the notebooks, only a guard against accidents: bubblewrap")
    assert rest == ["asa_mini: terminated"]
    assert workers and not any(worker.is_running() for worker in workers)
    assert list(temporary.iterdir()) == list(output.iterdir()) == []
    assert [path.read_text(encoding="utf-8") for path in victim.iterdir()] == ["kept"]
    errors = [line for line in "".join(told).splitlines() if '{"error"' in line]
    for line, error in zip(errors, [*bad.values(), "the figure is here"], strict=True):
        assert error in line
