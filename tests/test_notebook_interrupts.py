"""A run that is interrupted or terminated: no half-written file, no kernel left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tiny_notebook import command_line, write_notebook

SLEEP = "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(600)"


def wait_for_pid(folder, seconds=120):
    """Return the id of the kernel process, once the cell `SLEEP` has written it."""
    deadline = time.monotonic() + seconds
    while not ((folder / "pid").exists() and (folder / "pid").read_text(encoding="utf-8")):
        assert time.monotonic() < deadline, "the kernel never reached its cell"
        time.sleep(0.05)
    return int((folder / "pid").read_text(encoding="utf-8"))


def assert_gone(pid, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail(f"kernel {pid} is still running")


def test_ctrl_c_in_a_terminal(tmp_path):
    """A process of its own: exit code 130, no half-written file, no kernel left behind."""
    path = write_notebook(tmp_path / "in" / "a.ipynb", SLEEP)
    code = (
        "import signal, sys\nfrom asa_classroom.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it\n"
        "sys.exit(main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "notebooks", str(path), "--output", str(tmp_path / "out")],
        cwd=Path(__file__).parents[1],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    pid = wait_for_pid(path.parent)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err == "asa_mini: interrupted\n"
    assert list((tmp_path / "out").iterdir()) == []
    assert_gone(pid)


def test_termination_keeps_the_earlier_output(tmp_path):
    path = write_notebook(tmp_path / "in" / "a.ipynb", SLEEP)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.ipynb").write_text("of an earlier run", encoding="utf-8")
    pids = []

    def terminate():
        pids.append(wait_for_pid(path.parent))
        os.kill(os.getpid(), signal.SIGTERM)

    killer = threading.Thread(target=terminate)
    killer.start()
    before = signal.getsignal(signal.SIGTERM)
    assert command_line(path, "--output", tmp_path / "out") == 143
    killer.join()
    assert signal.getsignal(signal.SIGTERM) is before
    assert [file.read_text(encoding="utf-8") for file in (tmp_path / "out").iterdir()] == [
        "of an earlier run"
    ]
    assert_gone(pids[0])
