"""Run notebooks headlessly and strictly: `python -m asa_classroom notebooks`.

papermill does the work. On its own it exits with 0 after a mistyped parameter, a missing `parameters` tag, a
failing `!command` or a `sys.exit(0)` half way, and waits for ever for a hanging cell. Here these are errors.
"""

import argparse
import ast
import hashlib
import importlib.util
import json
import logging
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asa_classroom.publishing import TAG
from asa_mini.errors import AsaError, DataFileError, InputError, NotebookError
from asa_mini.train.files import write_text

KERNEL = "python3"
KERNEL_ENVIRONMENT = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # an inherited "agg" would drop every figure
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# Without this a failing `!command` goes unnoticed. A line of code, because IPython 8 has no flag for it.
STRICT_SHELL = "--IPKernelApp.exec_lines=get_ipython().system_raise_on_error = True"


def read_notebook(path: Path, given: Mapping[str, Any] | None = None) -> Any:
    """Return the notebook at `path` as an nbformat node, if it and the parameters `given` keep the rules.

    Raises:
        DataFileError: there is no such file.
        NotebookError: not a notebook; not for the kernel `python3`; not exactly one cell tagged `parameters`,
            or one that holds more than `name = literal`; a given name is unknown, or of another type.
    """
    import nbformat

    if not path.is_file():
        raise DataFileError(f"no notebook at {path}")
    try:
        notebook = nbformat.v4.upgrade(nbformat.read(path, as_version=4))
    except Exception as error:  # nbformat fails in as many ways as a file can be damaged
        raise NotebookError(f"{path.name} is not a valid notebook: {_one_line(error)}") from error
    kernel = notebook.metadata.get("kernelspec", {}).get("name")
    if kernel != KERNEL:
        raise NotebookError(f"{path.name} asks for the kernel {kernel!r}; every notebook must use {KERNEL!r}")
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise NotebookError(f"{path.name} must have exactly one cell tagged 'parameters', not {len(tagged)}")
    defaults = {}
    try:
        for line in ast.parse(tagged[0].source).body:
            target = line.targets[0] if isinstance(line, ast.Assign) else line.target
            defaults[target.id] = ast.literal_eval(line.value)
    except (SyntaxError, ValueError, AttributeError, TypeError) as error:
        raise NotebookError(f"{path.name}: the parameters cell may only hold `name = literal`") from error
    for name, value in (given or {}).items():
        if name not in defaults:
            raise NotebookError(f"{path.name} has no parameter {name!r}; it has: {', '.join(defaults)}")
        wanted = type(defaults[name])
        whole = wanted is float and type(value) is int
        if defaults[name] is not None and type(value) is not wanted and not whole:
            raise NotebookError(f"{path.name}: parameter {name!r} takes {wanted.__name__}, not {value!r}")
    return notebook


def sources_digest(notebook: Any) -> str:
    """SHA-256 of the cells' types, ids and sources; a run stores it as `metadata.asa_mini.sources_sha256`.

    Badge and set-up cell are left out: a new address of the repository makes no output stale.
    """
    own = [cell for cell in notebook.cells if TAG not in cell.metadata.get("tags", [])]
    cells = [(cell.cell_type, cell.id, cell.source) for cell in own]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def run_notebook(
    path: str | Path,
    output: str | Path,
    parameters: Mapping[str, Any] | None = None,
    timeout: int = 600,
    write_back: bool = False,
) -> float:
    """Execute the notebook at `path` in its own folder; write it to `output`, and as HTML beside that.

    Both appear only after success. After a failure the executed part is left as `NAME.failed.ipynb`.

    Args:
        parameters: values that replace defaults of the cell tagged `parameters`.
        timeout: seconds allowed for each cell.
        write_back: also store the outputs in the notebook at `path` itself.

    Returns:
        Seconds that the run took.

    Raises:
        NotebookError: a rule of `read_notebook` is broken, an equation cannot be converted, or a cell failed;
            the message says which.
        InputError: `output` is `path`, or `write_back` is combined with parameters.
        AsaError: the packages of the `notebooks` extra are not installed.
    """
    _require_jupyter()
    import nbformat

    from asa_classroom.pages import notebook_page

    path, output = Path(path).resolve(), Path(output).resolve()
    if output == path:
        raise InputError(f"the output would replace {path.name} itself: use another folder, or --in-place")
    if write_back and parameters:
        raise InputError("--in-place stores outputs made with the default parameters: leave -p out")
    source = read_notebook(path, parameters)
    notebook_page(source, path)  # what its page cannot show is told now, not after minutes
    start = time.perf_counter()
    output.parent.mkdir(parents=True, exist_ok=True)
    html, failed, partial = (output.with_suffix(end) for end in (".html", ".failed.ipynb", ".partial.ipynb"))
    try:
        executed = _execute(source, path, partial, dict(parameters or {}), timeout)
        page = notebook_page(executed, path)
        text = nbformat.writes(executed) + "\n"
        write_text(html, page)
        write_text(output, text)
        if write_back:
            write_text(path, text)
    except Exception:
        for stale in (html, output):
            stale.unlink(missing_ok=True)
        if partial.exists():
            partial.replace(failed)
        raise
    finally:
        partial.unlink(missing_ok=True)  # still there after Ctrl-C
    failed.unlink(missing_ok=True)
    return time.perf_counter() - start


def _execute(source: Any, path: Path, partial: Path, parameters: dict[str, Any], timeout: int) -> Any:
    """Return the executed notebook; papermill saves it to `partial` after every cell."""
    import papermill
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    class OwnKernel(AsyncKernelManager):
        """Starts this very Python, whichever kernels called `python3` are installed around it."""

        kernel_spec = KernelSpec(**get_kernel_dict(), name=KERNEL, env=KERNEL_ENVIRONMENT)

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it would log is in our one message
    originals = {cell.id: (number, cell.metadata) for number, cell in enumerate(source.cells, start=1)}
    begun = []

    def failure(cause: str) -> NotebookError:
        place = "before its first cell"
        if begun:
            number, _ = originals.get(begun[-1].id, ("of -p", None))
            place = f"cell {number} ({_one_line(begun[-1].source.strip().splitlines()[0], 60)})"
        return NotebookError(f"{path.name}, {place}: {_one_line(cause)}")

    try:
        executed = papermill.execute_notebook(
            source,
            str(partial).replace("{", "{{").replace("}", "}}"),  # papermill formats its paths
            parameters=parameters,
            kernel_name=KERNEL,
            language="python",
            progress_bar=False,
            execution_timeout=timeout,
            # the rest goes to nbclient
            iopub_timeout=timeout,  # its own 4 s are too few on a busy machine
            kernel_manager_class=OwnKernel,
            extra_arguments=[STRICT_SHELL, "--log-level=CRITICAL"],
            force_raise_errors=True,
            record_timing=False,
            coalesce_streams=True,  # else one print ends up in one output or two, as the clock has it
            resources={"metadata": {"path": str(path.parent)}},
            on_cell_execute=lambda cell, cell_index: begun.append(cell),
        )
    except papermill.PapermillExecutionError as error:
        raise failure(f"{error.ename}: {error.evalue}") from error
    except CellTimeoutError as error:
        raise failure(f"no result after {timeout} s; raise --timeout, or make the cell faster") from error
    except DeadKernelError as error:
        raise failure("the kernel died (out of memory, or a crash in native code)") from error
    except Exception as error:
        raise failure(f"{type(error).__name__}: {error}") from error

    executed.metadata = source.metadata  # papermill's timings would make every refreshed notebook a change
    executed.metadata["asa_mini"] = {"sources_sha256": sources_digest(executed)}
    for cell in executed.cells:
        if cell.cell_type == "code" and cell.source.strip() and not cell.execution_count:
            begun.append(cell)
            raise failure("never run (a sys.exit in the cell before it, or a skip-execution tag?)")
        _, cell.metadata = originals.get(cell.id, (None, {"tags": ["injected-parameters"]}))
    return executed


def _require_jupyter() -> None:
    for name in ("papermill", "nbformat", "nbconvert", "ipykernel", "math_core"):
        if importlib.util.find_spec(name) is None:
            raise AsaError(f"running notebooks needs {name}: pip install 'asa_mini[notebooks]'")


def _one_line(text: object, width: int = 400) -> str:
    return " ".join(str(text).split())[:width]


def run_all(
    paths: str | Path | Sequence[str | Path],
    output_dir: str | Path,
    timeout: int = 600,
    parameters: Mapping[str, Any] | None = None,
    write_back: bool = False,
) -> list[tuple[str, float, str]]:
    """Check every notebook of `paths`, then run them in order up to the first failure, and print a summary.

    A folder stands for its own `*.ipynb`, in name order; the other arguments and errors are those of
    `run_notebook`. Returns (file name, seconds, "ok") for each notebook.

    Raises:
        DataFileError: a path does not exist, or a folder holds no notebook.
        InputError: two notebooks have the same file name, so one's output would replace the other's.
    """
    _require_jupyter()
    notebooks = []
    for path in map(Path, [paths] if isinstance(paths, (str, Path)) else paths):
        found = sorted(path.glob("*.ipynb")) if path.is_dir() else [path]
        if not found:
            raise DataFileError(f"no notebook at {path}")
        notebooks += found
    if len({path.name for path in notebooks}) < len(notebooks):
        raise InputError("two notebooks have the same file name: run them apart, each with its --output")
    for path in notebooks:  # all of them now: a slip in the last one should not surface after ten minutes
        read_notebook(path, parameters)
    rows = []
    try:
        for path in notebooks:
            print(f"{path} ...", flush=True)
            start = time.perf_counter()
            seconds = run_notebook(path, Path(output_dir) / path.name, parameters, timeout, write_back)
            rows.append((path.name, seconds, "ok"))
            print(f"{path} ok, {seconds:.1f} s", flush=True)
    finally:
        rest = [(path.name, 0.0, "not run") for path in notebooks[len(rows) :]]
        if rest:
            rest[0] = (rest[0][0], time.perf_counter() - start, "failed")
        width = max(len(path.name) for path in notebooks)
        print(f"\n{'notebook':{width}}  seconds  status")
        for name, seconds, status in rows + rest:
            print(f"{name:{width}}  {seconds:7.1f}  {status}", flush=True)
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m asa_classroom notebooks` to `parser`."""
    parser.add_argument("paths", nargs="*", default=["notebooks"], help="notebooks or folders of them")
    parser.add_argument("--output", default="build/notebooks", help="folder for executed copies and HTML")
    parser.add_argument("--timeout", type=int, default=600, help="seconds allowed for each cell")
    parser.add_argument("--in-place", action="store_true", help="also store the outputs in the notebooks")
    pair = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
    what = "replace a parameter's default by a Python literal, or else a text"
    parser.add_argument("-p", dest="parameters", help=what, **pair)


def main(args: argparse.Namespace) -> int:
    """Run the notebooks; return 0, or 1 after a notebook that failed. SIGTERM counts as Ctrl-C.

    Raises:
        AsaError: an argument is wrong or a file is missing.
    """
    if args.timeout < 1:
        raise InputError(f"--timeout must be at least 1 s, not {args.timeout}")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it, too, stops the kernel
    try:
        parameters = {name: _literal(value) for name, value in args.parameters}
        run_all(args.paths, args.output, args.timeout, parameters, args.in_place)
    except NotebookError as error:
        print(f"asa_mini: error: {error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
