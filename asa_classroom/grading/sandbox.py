"""A notebook in a process of its own: what it may see and change, and the limits that end it.

The wall is bubblewrap (Linux): other processes, the network and all files that Python does not need are out
of sight, and nothing but the own folder can be written. Without it only the audit hook of `worker` is left.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import matplotlib.font_manager  # writes the list of fonts
import psutil
from tqdm import tqdm

from asa_classroom.grading.collect import Work, plain

DISK = 1024  # MiB that a notebook may write
POLL = 0.1  # seconds between two looks at the processes
STARTUP = 300  # seconds until the worker has imported everything
ROOT = Path(__file__).resolve().parents[2]
SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")
OURS = ("asa_mini", "asa_classroom", "data/shortcut", "results")
KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT")
FIXED = {"PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "agg", "HF_HUB_OFFLINE": "1", "USER": "student"}
FIXED |= {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1", "TOKENIZERS_PARALLELISM": "false"}
# Our own packages are the last to be searched, behind what is installed.
START = f"import sys; sys.path[0] = {str(ROOT)!r}; sys.path.append(sys.path.pop(0)); "
START += "from asa_classroom.grading.worker import main; main()"


def wall(home: Path, hidden: Iterable[Path] = ()) -> list[str]:
    """Return bubblewrap's part of a command line; what is `hidden` stays so inside a folder that is seen."""
    seen = [*SYSTEM, sys.prefix, sys.base_prefix, site.getusersitepackages(), *site.getsitepackages()]
    mounts: dict[Path, str] = {}
    for path in map(Path, [*seen, *(ROOT / name for name in OURS)]):
        if path.exists():
            mounts |= dict.fromkeys((path, path.resolve()), "--ro-bind")
    inside = [path for path in map(Path.resolve, hidden) if not mounts.keys().isdisjoint(path.parents)]
    mounts |= dict.fromkeys(filter(Path.exists, inside), "--tmpfs")
    mounts[home] = "--bind"
    command = ["bwrap", "--unshare-all", "--cap-drop", "ALL", "--die-with-parent", "--proc", "/proc"]
    command += ["--dev", "/dev"]
    for path in sorted(mounts, key=lambda path: len(path.parts)):  # a folder before what lies in it
        command += [mounts[path], *[str(path)] * (1 if mounts[path] == "--tmpfs" else 2)]
    for path in ("/", "/dev", *(path for path, kind in mounts.items() if kind == "--tmpfs")):
        command += ["--remount-ro", str(path)]  # these are memory, which no limit would count
    return [*command, "--chdir", str(home)]


def missing_wall() -> str:
    """Why there is no wall; an empty text where bubblewrap is there and allowed to work."""
    if shutil.which("bwrap") is None:
        return "bubblewrap (Linux) is not installed: apt install bubblewrap"
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder).resolve()
        command = [*wall(home), sys.executable, "-c", ""]
        done = subprocess.run(command, env=variables(home), capture_output=True, text=True)
    return f"bubblewrap does not work here: {plain(done.stderr)[-200:].strip()}" if done.returncode else ""


def variables(home: Path) -> dict[str, str]:
    """Environment variables of a worker: few of ours, everything private in `home`, no GPU, no hub."""
    places = ("HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP", "MPLCONFIGDIR")
    user = {"PYTHONUSERBASE": site.getuserbase()}  # of `pip install --user`; follows HOME otherwise
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return kept | FIXED | user | dict.fromkeys(places, str(home))


def run_notebooks(works: list[Work], hidden: list[Path] | None, limits: dict[str, float]) -> None:
    """Run the notebooks and fill in `works`; `hidden` and `limits` as `Sandbox` takes them."""
    waiting = [work for work in works if work.exercise and work.cells]
    with (
        tempfile.TemporaryDirectory(prefix="asa_mini-grade-", ignore_cleanup_errors=True) as root,
        tqdm(total=len(waiting), unit="notebook", disable=None) as bar,
    ):
        running: list[Sandbox] = []
        try:
            while waiting or running:
                while waiting and len(running) < limits["jobs"]:
                    running.append(Sandbox(waiting.pop(0), Path(root).resolve(), hidden, **limits))
                for sandbox in [sandbox for sandbox in running if sandbox.poll()]:
                    sandbox.finish()
                    running.remove(sandbox)
                    bar.update()
                time.sleep(POLL)
        finally:
            for sandbox in running:  # after Ctrl-C
                sandbox.kill()


class Sandbox:
    """The process of one notebook, with a folder in `root`.

    Args:
        hidden: what the wall hides, see `wall`; None for no wall.
        timeout: seconds for the notebook.
        memory: MiB for the process and all that it starts.
        jobs: notebooks that run at a time; they share the cores.
    """

    def __init__(
        self, work: Work, root: Path, hidden: list[Path] | None, timeout: float, memory: int, jobs: int
    ):
        self.work, self.timeout, self.memory = work, timeout, memory
        self.home = Path(tempfile.mkdtemp(dir=root))
        # listing the fonts takes seconds; a list for all would let one student spoil it for the next
        for fonts in Path(matplotlib.get_cachedir()).glob("fontlist-*.json"):
            shutil.copy(fonts, self.home)
        self.results = self.home.with_suffix(".jsonl")  # no name leads there from behind the wall
        self.token = secrets.token_hex()  # begins each line that the worker itself has written
        job = {"exercise": work.exercise, "cells": work.cells, "seconds": timeout / 3}
        job |= {"disk": DISK * 2**20, "token": self.token}
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // jobs))
        before = [] if hidden is None else wall(self.home, hidden)
        with tempfile.TemporaryFile(dir=root) as stdin, open(self.results, "wb") as stdout:
            stdin.write(json.dumps(job).encode())
            stdin.seek(0)
            self.process = psutil.Popen(
                [*before, sys.executable, "-c", START],
                cwd=self.home,
                env=variables(self.home) | {"OMP_NUM_THREADS": threads},
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.born = self.started = time.monotonic()
        self.ready, self.polls, self.stopped = False, 0, ""

    def poll(self) -> bool:
        """Whether the process has ended, or has to be stopped because it is over a limit."""
        if self.process.poll() is not None:
            return True
        if not self.ready and self.results.stat().st_size:
            self.started, self.ready = time.monotonic(), True  # importing torch is not the student's time
        self.polls += 1
        with contextlib.suppress(psutil.Error, OSError):  # it ended just now
            if sum(process.memory_info().rss for process in self.family()) > self.memory * 2**20:
                self.stopped = f"more than {self.memory} MiB of memory"
            if self.polls % 10 == 0 and folder_size(self.home) > DISK * 2**20:
                self.stopped = f"more than {DISK} MiB written to disk"
        seconds = time.monotonic() - self.started
        if self.ready and seconds > self.timeout:
            self.stopped = f"the notebook's {self.timeout:g} s are used up: the rest was not run (--timeout)"
        elif not self.ready and seconds > STARTUP:
            self.stopped = f"the imports took more than {STARTUP} s"
        return bool(self.stopped)

    def family(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def kill(self) -> None:
        """End the process with all that it has started, and remove its folder."""
        family = [self.process]
        with contextlib.suppress(psutil.NoSuchProcess):
            family = self.family()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        with contextlib.suppress(AttributeError, OSError):  # Windows; none is left
            os.killpg(self.process.pid, signal.SIGKILL)  # children whose parent has gone
        psutil.wait_procs(family, timeout=60)
        try:
            shutil.rmtree(self.home, ignore_errors=True)
        except RecursionError:  # nested deeper than Python can walk
            subprocess.run(["rm", "-rf", self.home])

    def finish(self) -> None:
        """Move the results to `work`, and clean up."""
        work, place, code = self.work, "", self.process.poll()
        self.kill()
        work.seconds = time.monotonic() - self.born
        with open(self.results, encoding="utf-8", errors="replace") as file:
            lines = file.read(2**22).splitlines()
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError):  # cut off, or a student's after all
                if line.startswith(self.token):
                    place = record(work, json.loads(line.removeprefix(self.token))) or place
        if self.stopped and place != "end":
            work.notes.append(f"stopped in {place or 'the start'}: {self.stopped}")
        elif place != "end":
            where = f"its process ended in {place}" if place else "the grading process did not start"
            work.notes.append(f"{where}: {ending(code)}")
        self.results.unlink()


def ending(code: int) -> str:
    """An exit code in words; bubblewrap adds 128 to a signal, as a shell does."""
    number = -code if code < 0 else code - 128
    known = number in signal.valid_signals()
    return f"signal {number}, {signal.strsignal(number)}" if known else f"exit code {code}"


def record(work: Work, result: dict) -> str:
    """Note one result of the worker in `work`; returns the place that it has reached, or an empty text."""
    if "step" in result:
        work.outcomes[str(result["step"])] = str(result["state"]), plain(result["message"])
    elif "cell" in result:
        work.errors.append((int(result["cell"]), plain(result["error"])))
    else:
        place = str(result["at"])
        return work.cell(int(place[5:])) if place.startswith("cell ") else place
    return ""


def folder_size(folder: Path) -> int:
    """Bytes in all files of a folder, without recursion: a student may nest as deep as they like."""
    size, folders = 0, [str(folder)]
    while folders:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    size += entry.stat(follow_symlinks=False).st_size
    return size
