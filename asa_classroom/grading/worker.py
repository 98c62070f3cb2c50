"""Run one student's notebook and the checks of its exercise, in a process that `sandbox` started.

All code cells run in order. A check runs as soon as a cell has defined what it takes, so that what was right
before a crash or an endless loop counts; what has not passed by the end is tried once more. Every result is
written at once, one line, to where the process's output went at its start.

The checks share the process with the notebook, so one that is written to cheat can do so; its cells show it.
"""

import contextlib
import io
import os
import signal
import sys
import time
from collections.abc import Callable
from json import dumps, loads
from pathlib import Path
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from asa_classroom import checks

SHOWN = 4000  # characters of a message
OPEN = io.open  # the notebook may give `open` itself a new meaning
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree")
FORBIDDEN = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
FORBIDDEN += ("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.kill")
RULE = "grading allows no network, no other process and no change outside the own folder"


def guard(home: str) -> Callable[[str, tuple], None]:
    """Return an audit hook that raises PermissionError where a cell breaks `RULE`.

    It guards against accidents and tells the student in a sentence; the wall is `sandbox`'s affair. It misses
    what native code does, processes that multiprocessing spawns, and paths relative to an open folder.
    """
    # Kept here, because the notebook may give os.path and the rest a new meaning.
    realpath, fsdecode, sep, own = os.path.realpath, os.fsdecode, os.sep, (home + os.sep, os.devnull)

    def hook(event: str, arguments: tuple) -> None:
        written = event == "open" and (arguments[2] or 0) & WRITING
        changed = arguments[:1] if written else arguments[:2] if event in CHANGES else ()
        paths = [fsdecode(path) for path in changed if isinstance(path, (str, bytes, os.PathLike))]
        if event.startswith(FORBIDDEN) or any(not (realpath(p) + sep).startswith(own) for p in paths):
            raise PermissionError(f"{RULE}: {event}")

    return hook


def attempt(function: Callable[[Any], Any], argument: Any, seconds: float) -> BaseException | None:
    """Call a student's code, throw away what it prints, and return what it raised.

    That is TimeoutError after `seconds` (not on Windows). Code that catches every exception, or native code,
    goes on; the limit on the whole process ends that.
    """

    def stop(*_: Any) -> None:
        raise TimeoutError(f"no result after {seconds:g} s")

    timer = getattr(signal, "setitimer", None)
    try:
        # New ones each time, because a student can close them.
        sys.stdout = sys.stderr = OPEN(os.devnull, "w", encoding="utf-8", errors="replace")
        try:
            if timer:
                signal.signal(signal.SIGALRM, stop)
                timer(signal.ITIMER_REAL, seconds)
            function(argument)
        finally:
            if timer:
                timer(signal.ITIMER_REAL, 0)
    except BaseException as error:
        return error
    return None


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

    showsyntaxerror = showtraceback


class Worker:
    """One notebook.

    Args:
        job: `exercise`, `cells` as `Work.cells`, and `seconds` for one cell or check.
        tell: writes one result.
    """

    def __init__(self, job: dict[str, Any], tell: Callable[..., None]):
        self.cells, self.seconds, self.tell = job["cells"], job["seconds"], tell
        self.steps = dict(checks.ladder(job["exercise"]).steps)
        self.shell = Shell.instance(config=Config(HistoryManager={"enabled": False}))
        self.names, self.tried = self.shell.user_ns, {}
        self.passed: set[str] = set()
        self.slow: set[str] = set()
        ours = ("builtins", "asa_mini", "asa_classroom")
        modules = [module for name, module in sys.modules.items() if name.partition(".")[0] in ours]
        self.originals = [(vars(module), dict(vars(module))) for module in modules]

    def run(self) -> None:
        for number, source, step in self.cells:
            if step and step not in self.passed:
                continue  # in the notebook, too, the check would have stopped this cell
            place = f"cell {number} ({''.join(source.strip().splitlines()[:1])[:60]})"
            self.tell(at=place)
            error = attempt(self.run_cell, source, self.seconds)
            if error is not None:
                self.tell(error=f"{place}: {describe(error)}")
            for name in self.steps:
                if name in self.names and self.names[name] is not self.tried.get(name):
                    self.check(name)
        for step in self.steps:  # a helper may have been defined in a later cell
            if step not in self.passed | self.slow:
                self.check(step)

    def run_cell(self, source: str) -> None:
        self.shell.run_cell(source, silent=True).raise_error()

    def check(self, step: str) -> None:
        """Run one check and tell the outcome: passed, failed or unfinished."""
        start = time.monotonic()
        self.tell(at=f"the check of {step}")
        for module, original in self.originals:  # the notebook may have given print a new meaning
            module.update(original)
        state, message = "failed", f"{step}: nothing of this name is defined. Its cell is gone, or stopped."
        if step in self.names:
            student = self.tried[step] = self.names[step]
            error = attempt(self.steps[step], student, self.seconds)
            if error is None:
                state, message = "passed", ""
            elif isinstance(error, checks.CheckFailed):
                state = "unfinished" if isinstance(error, checks.Unfinished) else "failed"
                message = str(error)[:SHOWN]
            else:
                message = f"{step}: the check could not be finished. {describe(error)}"
        if time.monotonic() - start > self.seconds:
            self.slow.add(step)  # once is enough
        (self.passed.add if state == "passed" else self.passed.discard)(step)
        self.tell(step=step, state=state, message=message)


def main() -> None:
    """The job comes in on standard input; the current folder is the student's own."""
    job = loads(sys.stdin.buffer.read())
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.ftruncate(0, 0)  # other processes here could still read the token in it
    for descriptor in (0, 1):  # neither to be read nor written again
        os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    sys.path.append(os.getcwd())  # last: a student's random.py must not stand in for the library's

    def tell(**record: Any) -> None:
        results.write(f"{job['token']}{dumps(record)}\n")
        results.flush()

    # What nearly every notebook imports: seconds that are not the student's.
    import asa_mini.model  # noqa: F401
    from asa_mini.look import plots

    plots.project_root = Path.cwd  # without a wall, figures would go to the lessons'
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (job["disk"], job["disk"]))
    worker = Worker(job, tell)
    sys.addaudithook(guard(os.path.realpath(os.getcwd())))
    tell(at="ready")
    worker.run()
    tell(at="end")
    os._exit(0)  # whatever threads the notebook has left behind
