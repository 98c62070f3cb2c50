"""Run one student's notebook and the checks of its exercise, in a process that `sandbox` started.

All code cells run in order. A check runs as soon as a cell has defined what it takes, so that what was right
before a crash or an endless loop counts; what has not passed by the end is tried once more. Every result is
written at once, one line, to where the process's output went at its start.

`guard` is no wall, which is `sandbox`'s affair: it sees what Python itself does, and tells a student in a
sentence what is not allowed. The checks share the process with the notebook, so one that is written to cheat
can do so; its cells show it.
"""

import contextlib
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from json import dumps, loads
from pathlib import Path
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from asa_classroom import checks
from asa_mini.look import plots

SHOWN = 4000  # characters of a message
OPEN = io.open  # the notebook may give `open` itself a new meaning
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree")
NETWORK = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
PROCESSES = ("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn")


def guard(home: str) -> Callable[[str, tuple], None]:
    """Return an audit hook: no network or process, no change outside `home`, no notebook read.

    What it forbids raises PermissionError. It misses what native code does, processes that multiprocessing
    spawns, and paths relative to a folder's descriptor.
    """
    # Kept here, because the notebook may give os.path and the rest a new meaning.
    realpath, fsdecode, own, inside = os.path.realpath, os.fsdecode, os.getpid(), (home + os.sep, os.devnull)

    def outside(path: Any) -> str:
        """The path if it lies outside `home`, else an empty text; a file descriptor was opened lawfully."""
        real = "" if isinstance(path, int) or path is None else realpath(fsdecode(path))
        return "" if f"{real}{os.sep}".startswith(inside) else real

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            place = outside(path)
            if place and (flags or 0) & WRITING:
                raise PermissionError(f"grading allows no writing outside the own folder: {place}")
            if place.endswith(".ipynb"):
                raise PermissionError("grading allows no reading of other notebooks")
        elif event in CHANGES:
            relative = isinstance(arguments[-1], int) and arguments[-1] >= 0  # to a folder's descriptor
            for place in map(outside, arguments[: 2 if event == "os.rename" else 1]):
                if place and not relative:
                    raise PermissionError(f"grading allows no change outside the own folder: {event} {place}")
        elif event in NETWORK:
            raise PermissionError(f"grading allows no network: {event}")
        elif event in PROCESSES or (event in ("os.kill", "os.killpg") and arguments[0] != own):
            raise PermissionError(f"grading allows no other process: {event}")

    return hook


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Throw away what the code inside prints, and raise TimeoutError in it after `seconds` (not on Windows).

    Code that catches every exception, or native code, goes on; the limit on the whole process ends that.
    """

    def stop(*_: Any) -> None:
        raise TimeoutError(f"no result after {seconds:g} s")

    timer = getattr(signal, "setitimer", None)
    # a new target each time, because a student can close it
    with OPEN(os.devnull, "w", encoding="utf-8", errors="replace") as sink:
        try:
            with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
                if timer:
                    signal.signal(signal.SIGALRM, stop)
                    timer(signal.ITIMER_REAL, seconds)
                yield
        finally:
            if timer:
                timer(signal.ITIMER_REAL, 0)


def describe(error: BaseException) -> str:
    """One line about an exception of a student's code, whose own `__str__` may fail."""
    if isinstance(error, SystemExit):
        return "the cell asked to exit"
    try:
        text = " ".join(str(error)[:SHOWN].split())[:300]
    except BaseException as second:
        text = f"(no text: its __str__ stopped with {type(second).__name__})"
    return f"{type(error).__name__}: {text}".removesuffix(": ")


class Shell(InteractiveShell):
    """Runs magics, and keeps the source of a cell, which Triton must look up. Shows nothing."""

    def ask_exit(self) -> None:
        raise SystemExit

    def enable_matplotlib(self, gui: Any = None) -> tuple[Any, str]:
        return gui, "agg"

    def _tee(self, channel: str) -> Any:  # IPython 9 would keep all that is printed in memory
        return contextlib.nullcontext()

    def showtraceback(self, *args: Any, **kwargs: Any) -> None: ...

    def showsyntaxerror(self, *args: Any, **kwargs: Any) -> None: ...


class Worker:
    """One notebook.

    Args:
        job: `exercise`, `cells` as `Work.cells`, and `seconds` for one cell or check.
        tell: writes one result.
    """

    def __init__(self, job: dict[str, Any], tell: Callable[..., None]):
        home = Path.cwd()
        plots.project_root = lambda: home  # figures would go to the project's own folder
        self.job, self.tell = job, tell
        self.steps = dict(checks.ladder(job["exercise"]).steps)
        self.shell = Shell.instance(config=Config(HistoryManager={"enabled": False}))
        self.names = self.shell.user_ns
        self.tried: dict[str, Any] = {}
        self.passed: set[str] = set()
        self.slow: set[str] = set()
        ours = ("builtins", "asa_mini", "asa_classroom")
        modules = [module for name, module in sys.modules.items() if name.partition(".")[0] in ours]
        self.originals = [(vars(module), dict(vars(module))) for module in modules]

    def run(self) -> None:
        for number, source, step in self.job["cells"]:
            if step and step not in self.passed:
                continue  # in the notebook, too, the check would have stopped this cell
            self.tell(at=f"cell {number}")
            try:
                with limited(self.job["seconds"]):
                    result = self.shell.run_cell(source, silent=True)
                error = result.error_before_exec or result.error_in_exec
            except BaseException as raised:
                error = raised
            if error is not None:
                self.tell(cell=number, error=describe(error))
            for name in self.steps:
                if name in self.names and self.names[name] is not self.tried.get(name):
                    self.check(name)
        for step in self.steps:  # a helper may have been defined in a later cell
            if step not in self.passed | self.slow:
                self.check(step)

    def check(self, step: str) -> None:
        """Run one check and tell the outcome: passed, failed or unfinished."""
        state, message = "failed", f"{step}: nothing of this name is defined. Its cell is gone, or stopped."
        start = time.monotonic()
        self.tell(at=f"the check of {step}")
        for module, original in self.originals:  # the notebook may have given print a new meaning
            module.update(original)
        if step in self.names:
            student = self.tried[step] = self.names[step]
            try:
                with limited(self.job["seconds"]):
                    self.steps[step](student)
                state, message = "passed", ""
            except checks.CheckFailed as error:
                state = "unfinished" if isinstance(error, checks.Unfinished) else "failed"
                message = str(error)[:SHOWN]
            except BaseException as error:
                message = f"{step}: the check could not be finished. {describe(error)}"
        if time.monotonic() - start > self.job["seconds"]:
            self.slow.add(step)  # once is enough
        (self.passed.add if state == "passed" else self.passed.discard)(step)
        self.tell(step=step, state=state, message=message)


def main() -> None:
    """The job comes in on standard input; the current folder is the student's own."""
    job = loads(sys.stdin.buffer.read())
    token, results = job.pop("token"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.ftruncate(0, 0)  # other processes here could still read the token in it
    for descriptor in (0, 1):  # neither to be read nor written again
        os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    sys.path.append(os.getcwd())  # last: a student's random.py must not stand in for the library's

    def tell(**record: Any) -> None:
        results.write(f"{token}{dumps(record)}\n")
        results.flush()

    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        for kind, limit in ((resource.RLIMIT_FSIZE, job["disk"]), (resource.RLIMIT_CORE, 0)):
            resource.setrlimit(kind, (limit, limit))
    worker = Worker(job, tell)
    sys.addaudithook(guard(os.path.realpath(os.getcwd())))
    tell(at="ready")
    worker.run()
    tell(at="end")
    os._exit(0)  # whatever threads the notebook has left behind
