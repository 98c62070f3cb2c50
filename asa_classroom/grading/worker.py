"""Run one student's notebook and the checks of its exercise, in a process that `grading` started.

All code cells run in order. A check runs as soon as a cell has defined what it takes, so that what was right
before a crash or an endless loop counts; what has not passed by the end is tried once more. Every result is
written at once, one line of JSON, to a file outside the student's folder.

`guard` is a seat belt against accidents, not a prison: it sees what Python itself does, not what native code
does (ctypes, a file that a C++ or Rust library opens by itself). Run hostile notebooks in a container. The
checks share the process with the notebook, so one that is written to cheat can do so; its cells show it.
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

SHOWN = 4000  # characters of a message
OPEN = io.open  # the notebook may give `open` itself a new meaning
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PROCESSES = ("system", "exec", "fork", "forkpty", "posix_spawn", "spawn", "startfile", "startfile/2")
PROCESSES = tuple(f"os.{name}" for name in PROCESSES)
PROCESSES += ("subprocess.Popen", "pty.spawn", "webbrowser.open", "_winapi.CreateProcess")
NETWORK = ("connect", "bind", "getaddrinfo", "gethostbyname", "gethostbyaddr", "sendto", "sendmsg")
NETWORK = tuple(f"socket.{name}" for name in NETWORK)
CHANGES = {  # audit event -> (argument with a path, argument with the descriptor of its folder)
    "os.remove": [(0, 1)],
    "os.rename": [(0, 2), (1, 3)],
    "os.mkdir": [(0, 2)],
    "os.rmdir": [(0, 1)],
    "os.link": [(0, 2), (1, 3)],
    "os.symlink": [(1, 2)],
    "os.truncate": [(0, None)],
    "os.chmod": [(0, 2)],
    "os.chown": [(0, 3)],
    "os.utime": [(0, 3)],
    "os.setxattr": [(0, None)],
    "os.removexattr": [(0, None)],
    "shutil.rmtree": [(0, 1)],
    "sqlite3.connect": [(0, None)],
}


def guard(home: str) -> Callable[[str, tuple], None]:
    """Return an audit hook: no network or process, no change outside `home`, no notebook read.

    What it forbids raises PermissionError. A hook cannot be removed again; see the module for what it misses.
    """
    # Kept here, because the notebook may give os.path and the rest a new meaning.
    realpath, isdir, join, fsdecode = os.path.realpath, os.path.isdir, os.path.join, os.fsdecode
    own, null, separator = os.getpid(), os.devnull, os.sep

    def outside(path: Any, folder: Any = None) -> str:
        """The path if it lies outside `home`, else an empty text; a file descriptor was opened lawfully."""
        if isinstance(path, int) or path is None:
            return ""
        base = f"/proc/self/fd/{folder}" if isinstance(folder, int) and folder >= 0 else ""
        real = realpath(join(base, fsdecode(path)) if isdir(base) else fsdecode(path))
        return "" if real in (home, null) or real.startswith(home + separator) else real

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            if (flags or 0) & WRITING and outside(path):
                raise PermissionError(f"grading allows no writing outside the own folder: {outside(path)}")
            if isinstance(path, (str, bytes)) and fsdecode(path).endswith(".ipynb") and outside(path):
                raise PermissionError("grading allows no reading of other notebooks")
        elif event in CHANGES:
            for path, folder in CHANGES[event]:
                at = arguments[folder] if folder is not None and folder < len(arguments) else None
                place = outside(arguments[path], at)  # Python 3.10 does not tell rmtree's folder
                if place:
                    raise PermissionError(f"grading allows no change outside the own folder: {event} {place}")
        elif event in NETWORK:
            raise PermissionError(f"grading allows no network: {event}")
        elif event in PROCESSES or (event in ("os.kill", "os.killpg") and arguments[0] != own):
            raise PermissionError(f"grading allows no other process: {event}")

    return hook


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the code inside after `seconds`, where the system has such a timer (not Windows).

    Code that catches every exception, or native code, goes on; the parent's limit ends that.
    """

    def stop(*_: Any) -> None:
        raise TimeoutError(f"no result after {seconds:g} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Throw away what the code inside prints; a new target each time, because a student can close it."""
    sink = OPEN(os.devnull, "w", encoding="utf-8", errors="replace")
    with sink, contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        yield


def describe(error: BaseException) -> str:
    """One line about an exception of a student's code, whose own `__str__` may fail."""
    if isinstance(error, SystemExit):
        return "the cell asked to exit"
    try:
        text = " ".join(str(error)[:SHOWN].split())[:300]
    except BaseException as second:
        text = f"(no text: its __str__ stopped with {type(second).__name__})"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def make_shell() -> Any:
    """IPython's shell, so that magics work and the source of a cell can be looked up, as Triton must."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    class Shell(InteractiveShell):
        """Shows nothing, and takes what only a terminal or a kernel can do."""

        def ask_exit(self) -> None:
            raise SystemExit

        def enable_matplotlib(self, gui: Any = None) -> tuple[Any, str]:
            return gui, "agg"

        def _tee(self, channel: str) -> Any:  # IPython 9 would keep all that is printed in memory
            return contextlib.nullcontext()

        def showtraceback(self, *args: Any, **kwargs: Any) -> None: ...

        def showsyntaxerror(self, *args: Any, **kwargs: Any) -> None: ...

    return Shell.instance(config=Config(HistoryManager={"enabled": False}))


class Worker:
    """One notebook.

    Args:
        job: `exercise`, `cells` as `Work.cells`, and `seconds` for one cell or check.
        tell: writes one result.
    """

    def __init__(self, job: dict[str, Any], tell: Callable[..., None]):
        from asa_classroom import checks
        from asa_mini.look import plots

        home = Path.cwd()
        plots.project_root = lambda: home  # figures would go to the project's own folder
        self.job, self.tell, self.errors = job, tell, (checks.CheckFailed, checks.Unfinished)
        self.steps = dict(checks.ladder(job["exercise"]).steps)
        self.shell = make_shell()
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
                with silence(), time_limit(self.job["seconds"]):
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
        state, message = "passed", ""
        start = time.monotonic()
        self.tell(at=f"the check of {step}")
        for module, original in self.originals:  # the notebook may have given print a new meaning
            module.update(original)
        if step in self.names:
            student = self.tried[step] = self.names[step]
            try:
                with silence(), time_limit(self.job["seconds"]):
                    self.steps[step](student)
            except self.errors[0] as error:
                state = "unfinished" if isinstance(error, self.errors[1]) else "failed"
                message = str(error)[:SHOWN]
            except BaseException as error:
                state, message = "failed", f"{step}: the check could not be finished. {describe(error)}"
        else:
            state = "failed"
            message = f"{step}: nothing of this name is defined. Its cell is gone, or stopped with an error."
        if time.monotonic() - start > self.job["seconds"]:
            self.slow.add(step)  # once is enough
        (self.passed.add if state == "passed" else self.passed.discard)(step)
        self.tell(step=step, state=state, message=message)


def main() -> None:
    """`sys.argv[1]` is the file with the job; the current folder is the student's own."""
    sys.path.remove("")
    sys.path.append(os.getcwd())  # a student's random.py must not stand in for the library's
    path = Path(sys.argv.pop(1))
    job = loads(path.read_text(encoding="utf-8"))
    results = OPEN(path.with_name("results.jsonl"), "w", encoding="utf-8")  # to the very end

    def tell(**record: Any) -> None:
        results.write(dumps(record) + "\n")
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
