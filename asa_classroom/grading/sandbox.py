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
POLL = 0.2  # seconds between two looks at the processes
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


def run_notebooks(
    works: list[Work], hidden: list[Path] | None, timeout: float, memory: int, jobs: int
) -> None:
    """Run the notebooks and fill in `works`.

    Args:
        hidden: what the wall hides, see `wall`; None for no wall.
        timeout: seconds for a notebook.
        memory: MiB for its process and all that it starts.
        jobs: notebooks that run at a time; they share the cores.
    """
    waiting, running = [work for work in works if work.exercise and work.cells], []
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // jobs))
    with (
        tempfile.TemporaryDirectory(prefix="asa_mini-grade-", ignore_cleanup_errors=True) as root,
        tqdm(total=len(waiting), unit="notebook", disable=None) as bar,
    ):
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(Sandbox(waiting.pop(0), Path(root).resolve(), hidden, timeout, threads))
                for sandbox in [sandbox for sandbox in running if sandbox.over(timeout, memory)]:
                    sandbox.finish()
                    running.remove(sandbox)
                    bar.update()
                time.sleep(POLL)
        finally:
            for sandbox in running:  # after Ctrl-C
                sandbox.kill()


class Sandbox:
    """The process of one notebook, with a folder in `root`; `threads` goes to OMP_NUM_THREADS."""

    def __init__(self, work: Work, root: Path, hidden: list[Path] | None, timeout: float, threads: str):
        self.work, self.stopped = work, ""
        self.home = Path(tempfile.mkdtemp(dir=root))
        # listing the fonts takes seconds; a list for all would let one student spoil it for the next
        for fonts in Path(matplotlib.get_cachedir()).glob("fontlist-*.json"):
            shutil.copy(fonts, self.home)
        self.results = self.home.with_suffix(".jsonl")  # no name leads there from behind the wall
        self.token = secrets.token_hex()  # begins each line that the worker itself has written
        job = {"exercise": work.exercise, "cells": work.cells, "seconds": timeout / 3}
        job |= {"disk": DISK * 2**20, "token": self.token}
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
        self.family, self.born, self.ready = [self.process], time.monotonic(), 0.0

    def over(self, timeout: float, memory: int) -> bool:
        """Whether the process has ended, or has to be stopped because it is over a limit."""
        if self.process.poll() is not None:
            return True
        if not self.ready and self.results.stat().st_size:
            self.ready = time.monotonic()  # importing torch is not the student's time
        used = 0
        with contextlib.suppress(psutil.Error):  # one has ended just now
            self.family = [self.process, *self.process.children(recursive=True)]
            used = sum(process.memory_info().rss for process in self.family)
        if used > memory * 2**20:
            self.stopped = f"more than {memory} MiB of memory"
        elif folder_size(self.home) > DISK * 2**20:
            self.stopped = f"more than {DISK} MiB written to disk"
        elif time.monotonic() > (self.ready + timeout if self.ready else self.born + STARTUP):
            self.stopped = f"the notebook's {timeout:g} s are used up: the rest was not run (--timeout)"
        return bool(self.stopped)

    def kill(self) -> None:
        """End the process with all that it has started, and remove its folder."""
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):  # it has ended
            if hasattr(os, "killpg"):  # not on Windows
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()
        psutil.wait_procs(self.family, timeout=60)
        try:
            shutil.rmtree(self.home, ignore_errors=True)
        except RecursionError:  # nested deeper than Python can walk
            subprocess.run(["rm", "-rf", self.home])

    def finish(self) -> None:
        """Move the results to `work`, and clean up."""
        work, place = self.work, ""
        code = self.process.poll()  # bubblewrap adds 128 to a signal, as a shell does
        self.kill()
        work.seconds = time.monotonic() - self.born
        with open(self.results, encoding="utf-8", errors="replace") as file:
            lines = [line for line in file.read(2**22).splitlines() if line.startswith(self.token)]
        self.results.unlink()
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):  # cut off, or forged
                result = json.loads(line.removeprefix(self.token))
                place = plain(result.get("at", place))
                if "step" in result:
                    work.outcomes[str(result["step"])] = str(result["state"]), plain(result["message"])
                if "error" in result:
                    work.errors.append(plain(result["error"]))
        if place != "end":
            where = place or "the imports"
            ended = f"its process ended in {where}: exit code {code}"
            work.notes.append(f"stopped in {where}: {self.stopped}" if self.stopped else ended)


def folder_size(folder: Path) -> int:
    """Bytes in all files of a folder, without recursion: a student may nest as deep as they like."""
    size, folders = 0, [str(folder)]
    for place in folders:  # which grows meanwhile
        with contextlib.suppress(OSError), os.scandir(place) as entries:
            for entry in entries:
                size += entry.stat(follow_symlinks=False).st_size
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
    return size
