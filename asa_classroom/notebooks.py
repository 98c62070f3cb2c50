"""Run notebooks headlessly and strictly: `python -m asa_classroom notebooks`.

papermill does the work. On its own it exits with 0 after a mistyped parameter, a missing `parameters` tag, a
failing `!command` or a `sys.exit(0)` half way, and waits for ever for a hanging cell. Here these are errors.
"""

import argparse
import ast
import logging
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asa_classroom.numbers import moved, read_numbers
from asa_classroom.stored import KERNEL, NotebookError, one_line, read_notebook, sources_digest
from asa_mini.errors import DataFileError, InputError
from asa_mini.train.files import write_json, write_text

KERNEL_ENVIRONMENT = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # an inherited "agg" would drop every figure
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait take the cores from other work
    "TOKENIZERS_PARALLELISM": "false",
}
# Without this a failing `!command` goes unnoticed. A line of code, because IPython 8 has no flag for it.
STRICT_SHELL = "--IPKernelApp.exec_lines=get_ipython().system_raise_on_error = True"


def run_notebook(
    path: str | Path,
    output: str | Path,
    parameters: Mapping[str, Any] | None = None,
    timeout: int = 600,
    write_back: bool = False,
) -> float:
    """Execute the notebook at `path` in its own folder; write it to `output`, and as HTML beside that.

    They appear only after success, and with them the key numbers (`publish_numbers`) as NAME.json. After a
    failure the executed part is left as `NAME.failed.ipynb`. Returns the seconds that the run took.

    Args:
        parameters: values that replace defaults of the cell tagged `parameters`.
        timeout: seconds allowed for each cell.
        write_back: also store the outputs in the notebook at `path` itself.

    Raises:
        NotebookError: a rule of `read_notebook` is broken, an equation cannot be converted, a cell failed, or
            with the default parameters a key number is not what the stored run found; the message says which.
        InputError: `output` is `path`, or `write_back` is combined with parameters.
    """
    import nbformat

    from asa_classroom.pages import notebook_page

    path, output, parameters = Path(path).resolve(), Path(output).resolve(), dict(parameters or {})
    if output == path:
        raise InputError(f"the output would replace {path.name} itself: use another folder, or --in-place")
    if write_back and parameters:
        raise InputError("--in-place stores outputs made with the default parameters: leave -p out")
    source = read_notebook(path, parameters)
    notebook_page(source, path)  # what its page cannot show is told now, not after minutes
    start = time.perf_counter()
    output.parent.mkdir(parents=True, exist_ok=True)
    html, numbers = map(output.with_suffix, (".html", ".json"))
    failed, partial = map(output.with_suffix, (".failed.ipynb", ".partial.ipynb"))
    try:
        executed = _execute(source, path, partial, parameters, timeout)
        page, text = notebook_page(executed, path), nbformat.writes(executed) + "\n"
        found = read_numbers(executed)
        faults = [] if parameters or write_back else moved(read_numbers(source), found)
        if faults:
            raise NotebookError(f"{path.name}: {'; '.join(faults)}; if that is right, store it by --in-place")
        if found:
            write_json(numbers, {"notebook": path.name, "parameters": parameters, "numbers": found})
        write_text(html, page)
        write_text(output, text)
        if write_back:
            write_text(path, text)
    except Exception:
        for stale in (html, numbers, output):
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
    from nbclient.exceptions import CellTimeoutError

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
            place = f"cell {number} ({one_line(begun[-1].source.strip().splitlines()[0], 60)})"
        return NotebookError(f"{path.name}, {place}: {one_line(cause)}")

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


def run_notebooks(
    paths: Sequence[str | Path],
    output_dir: str | Path,
    timeout: int = 600,
    parameters: Mapping[str, Any] | None = None,
    write_back: bool = False,
) -> None:
    """Check every notebook of `paths`, then run them in order up to the first failure; print a line for each.

    A folder stands for its own `*.ipynb`, in name order; the rest as in `run_notebook`.

    Raises:
        DataFileError: a path does not exist, or a folder holds no notebook.
        InputError: two notebooks have the same file name, so one's output would replace the other's.
    """
    notebooks = []
    for path in map(Path, paths):
        found = sorted(path.glob("*.ipynb")) if path.is_dir() else [path]
        if not found:
            raise DataFileError(f"no notebook at {path}")
        notebooks += found
    if len({path.name for path in notebooks}) < len(notebooks):
        raise InputError("two notebooks have the same file name: run them apart, each with its --output")
    for path in notebooks:  # all of them now: a slip in the last one should not surface after ten minutes
        read_notebook(path, parameters)
    left = [path.name for path in notebooks]
    try:
        for path in notebooks:
            print(f"{path.name} ... ", end="", flush=True)
            seconds = run_notebook(path, Path(output_dir) / path.name, parameters, timeout, write_back)
            print(f"ok, {seconds:.1f} s", flush=True)
            left.remove(path.name)
    finally:
        if left:
            print("failed", *(f"{name} not run" for name in left[1:]), sep="\n")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m asa_classroom notebooks` to `parser`."""
    parser.add_argument("paths", nargs="*", default=["notebooks"], help="notebooks or folders of them")
    parser.add_argument("--output", default="build/notebooks", help="folder for executed copies and HTML")
    parser.add_argument("--timeout", type=int, default=600, help="seconds allowed for each cell")
    parser.add_argument("--in-place", action="store_true", help="also store the outputs in the notebooks")
    pair = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
    what = "replace a parameter's default by a Python literal, or else a text"
    parser.add_argument("-p", dest="parameters", help=what, **pair)
    parser._negative_number_matcher = re.compile(r"-\.?\d")  # argparse's own takes -1e-5 for an option


def main(args: argparse.Namespace) -> None:
    """Run the notebooks; raise an AsaError if an argument is wrong, a file is missing or a notebook fails."""
    if args.timeout < 1:
        raise InputError(f"--timeout must be at least 1 s, not {args.timeout}")
    parameters = {name: _literal(value) for name, value in args.parameters}
    run_notebooks(args.paths, args.output, args.timeout, parameters, args.in_place)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
