"""Grade students' notebooks: `python -m asa_classroom grade FOLDER`.

Each notebook runs in a process of its own (`worker`), which is watched from here: whatever a notebook
does, it costs that student alone. `collect` finds the notebooks, `report` writes the result.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from asa_classroom.grading.collect import Work, collect, plain
from asa_mini.errors import AsaError, InputError

DISK = 1024  # MiB that a notebook may write
STARTUP = 300  # seconds until the worker has imported everything
LEAST_MEMORY = 1024  # MiB; torch and transformers alone need about 600
KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT")
POLL = 0.1  # seconds between two looks at the processes
START = "import sys; sys.path.append(sys.argv.pop(1)); from asa_classroom.grading.worker import main; main()"


class Run:
    """A notebook in a process of its own, with limits: `timeout` seconds, `memory` MiB."""

    def __init__(self, work: Work, timeout: float, memory: int, jobs: int, root: Path):
        import psutil

        self.work, self.timeout, self.memory = work, timeout, memory
        self.folder = Path(tempfile.mkdtemp(dir=root))
        self.home, self.results = self.folder / "home", self.folder / "results.jsonl"
        self.home.mkdir()
        job = {"exercise": work.exercise, "cells": work.cells, "seconds": timeout / 3, "disk": DISK * 2**20}
        (self.folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // jobs))
        self.process = psutil.Popen(
            [sys.executable, "-c", START, str(Path(__file__).parents[2]), str(self.folder / "job.json")],
            cwd=self.home,
            env=environment(self.home, root) | {"OMP_NUM_THREADS": threads},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.born = self.started = time.monotonic()
        self.ready, self.polls, self.stopped = False, 0, ""

    def poll(self) -> bool:
        """Whether the process has ended, or has to be stopped because it is over a limit."""
        import psutil

        if self.process.poll() is not None:
            return True
        if not self.ready and self.results.exists() and self.results.stat().st_size:
            self.started, self.ready = time.monotonic(), True  # importing torch is not the student's time
        self.polls += 1
        with contextlib.suppress(psutil.Error, OSError):  # it ended just now
            family = [self.process, *self.process.children(recursive=True)]
            if sum(process.memory_info().rss for process in family) > self.memory * 2**20:
                self.stopped = f"more than {self.memory} MiB of memory"
            if self.polls % 10 == 0 and folder_size(self.home) > DISK * 2**20:
                self.stopped = f"more than {DISK} MiB written to disk"
        seconds = time.monotonic() - self.started
        if self.ready and seconds > self.timeout:
            self.stopped = f"the notebook's {self.timeout:g} s are used up: the rest was not run (--timeout)"
        elif not self.ready and seconds > STARTUP:
            self.stopped = f"the imports took more than {STARTUP} s"
        return bool(self.stopped)

    def kill(self) -> None:
        """End the process with all it has started."""
        import psutil

        with contextlib.suppress(psutil.Error):
            for child in self.process.children(recursive=True):
                child.kill()
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(psutil.Error):
            self.process.kill()
        self.process.wait()

    def finish(self) -> None:
        """Move the results to `work`, and remove the folder."""
        work, place, code = self.work, "", self.process.poll()
        self.kill()
        work.seconds = time.monotonic() - self.born
        if self.results.exists():
            with open(self.results, "rb") as file:
                lines = file.read(2**22).splitlines()
            for line in lines:
                with contextlib.suppress(ValueError, TypeError, KeyError):  # cut off, or written by a student
                    place = record(work, json.loads(line)) or place
        if self.stopped and place != "end":
            work.notes.append(f"stopped in {place or 'the start'}: {self.stopped}")
        elif not place:
            work.notes.append(f"the grading process did not start (exit code {code})")
        elif place != "end":
            how = f"exit code {code}" if code >= 0 else f"signal {-code}, {signal.strsignal(-code)}"
            work.notes.append(f"its process ended in {place}: {how}")
        shutil.rmtree(self.folder, ignore_errors=True)


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
    """Bytes in all files of a folder."""
    files = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return sum(file.lstat().st_size for file in files)


def environment(home: Path, root: Path) -> dict[str, str]:
    """Environment of a worker: little of ours, everything private in `home`, no GPU, no hub."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    places = dict.fromkeys(("HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP"), str(home))
    return {
        **kept,
        **places,
        "PYTHONUSERBASE": site.getuserbase(),  # of `pip install --user`; follows HOME otherwise
        "PYTHONDONTWRITEBYTECODE": "1",
        "MPLBACKEND": "agg",
        "MPLCONFIGDIR": str(root / "matplotlib"),  # shared: listing the fonts takes seconds
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TRITON_INTERPRET": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def run_all(works: list[Work], timeout: float, memory: int, jobs: int) -> None:
    """Run the notebooks, `jobs` at a time, and fill in `works`; with a progress bar on a terminal."""
    from tqdm import tqdm

    waiting = [work for work in works if work.exercise and work.cells]
    with (
        tempfile.TemporaryDirectory(prefix="asa_mini-grade-", ignore_cleanup_errors=True) as root,
        tqdm(total=len(waiting), unit="notebook", disable=None) as bar,
    ):
        running: list[Run] = []
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(Run(waiting.pop(0), timeout, memory, jobs, Path(root).resolve()))
                for run in [run for run in running if run.poll()]:
                    run.finish()
                    running.remove(run)
                    bar.update()
                time.sleep(POLL)
        finally:
            for run in running:  # after Ctrl-C
                run.kill()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m asa_classroom grade` to `parser`."""
    parser.description = (
        "Run students' notebooks and the checks of their exercises, each notebook in its own process and "
        "folder, with no network and limited time and memory. This guards against accidents, not against "
        "attacks: run hostile notebooks in a container."
    )
    parser.add_argument("folder", type=Path, help="student.ipynb files, or one folder for each student")
    help_text = "folder for grades.csv and grades.html"
    parser.add_argument("--output", type=Path, default=Path("build/grades"), help=help_text)
    help_text = "seconds allowed for a notebook; a single cell or check may take a third of it"
    parser.add_argument("--timeout", type=float, default=120, help=help_text)
    parser.add_argument("--memory", type=int, default=4096, help="MiB of memory allowed for a notebook")
    parser.add_argument("--jobs", type=int, default=1, help="notebooks at a time")


def main(args: argparse.Namespace) -> None:
    """Grade, print one line for each student, write both files. SIGTERM counts as Ctrl-C.

    Raises:
        AsaError: an argument is wrong, there is no notebook, the `notebooks` extra is not installed.
    """
    for name, least in {"timeout": 1, "memory": LEAST_MEMORY, "jobs": 1}.items():
        if not getattr(args, name) >= least:  # NaN, too
            raise InputError(f"--{name} must be at least {least}, not {getattr(args, name)}")
    for name in ("nbformat", "IPython"):
        if importlib.util.find_spec(name) is None:
            raise AsaError(f"grading needs {name}: pip install 'asa_mini[notebooks]'")
    from asa_classroom.checks import ladder
    from asa_classroom.grading import report

    if args.output.resolve().is_relative_to(args.folder.resolve()):
        raise InputError("--output lies in the students' folder, where it would look like a student: move it")
    works = collect(args.folder)
    args.output.mkdir(parents=True, exist_ok=True)  # now: that it cannot be made should not cost an hour
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run_all(works, args.timeout, args.memory, args.jobs)
    finally:
        signal.signal(signal.SIGTERM, before)
    exercises = sorted({work.exercise for work in works if work.exercise})
    report.write(works, {name: list(ladder(name).steps) for name in exercises}, args.output)
    others = sorted(
        path.name for path in args.folder.glob("[!.]*") if path.is_file() and path.suffix != ".ipynb"
    )
    if others:
        print(f"not notebooks, so not looked at: {plain(', '.join(others))}")
