"""Grade students' notebooks: `python -m asa_classroom grade FOLDER`.

`collect` finds the notebooks. `sandbox` starts a process for each, behind a wall where the system has one,
and watches it: whatever a notebook does, it costs that student alone. `worker` runs in there. `report` writes
the result.
"""

import argparse
import sys
from pathlib import Path

from asa_mini.errors import InputError

LEAST_MEMORY = 1024  # MiB; torch and transformers alone need about 600


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m asa_classroom grade` to `parser`."""
    parser.description = (
        "Run students' notebooks and the checks of their exercises, each notebook in its own process and "
        "folder, with no network and limited time and memory. Where bubblewrap is installed (Linux), it is a "
        "wall; without it this guards against accidents, not against attacks."
    )
    parser.add_argument("folder", type=Path, help="student.ipynb files, or one folder for each student")
    help_text = "folder for grades.csv and grades.html"
    parser.add_argument("--output", type=Path, default=Path("build/grades"), help=help_text)
    help_text = "seconds allowed for a notebook; a single cell or check may take a third of it"
    parser.add_argument("--timeout", type=float, default=120, help=help_text)
    parser.add_argument("--memory", type=int, default=4096, help="MiB of memory allowed for a notebook")
    parser.add_argument("--jobs", type=int, default=1, help="notebooks at a time")


def main(args: argparse.Namespace) -> None:
    """Grade, print a line for each student, write both files; InputError or DataFileError, see `collect`."""
    limits = {name: getattr(args, name) for name in ("timeout", "memory", "jobs")}
    for name, least in {"timeout": 1, "memory": LEAST_MEMORY, "jobs": 1}.items():
        if not limits[name] >= least:  # NaN, too
            raise InputError(f"--{name} must be at least {least}, not {limits[name]}")
    if args.output.resolve().is_relative_to(args.folder.resolve()):
        raise InputError("--output lies in the students' folder, where it would look like a student: move it")
    from asa_classroom.checks import ladder  # all these are heavy
    from asa_classroom.grading import report, sandbox
    from asa_classroom.grading.collect import collect, plain

    works = collect(args.folder)
    args.output.mkdir(parents=True, exist_ok=True)  # now: that it cannot be made should not cost an hour
    reason = sandbox.missing_wall()
    if reason:
        print(f"no wall around the notebooks, only a guard against accidents: {reason}", file=sys.stderr)
    hidden = None if reason else [args.folder, args.output, sandbox.ROOT / "notebooks"]
    sandbox.run_notebooks(works, hidden, **limits)
    exercises = sorted({work.exercise for work in works if work.exercise})
    report.write(works, {name: list(ladder(name).steps) for name in exercises}, args.output)
    files = filter(Path.is_file, sorted(args.folder.glob("[!.]*")))
    if others := [path.name for path in files if path.suffix != ".ipynb"]:
        print(f"not notebooks, so not looked at: {plain(', '.join(others))}")
