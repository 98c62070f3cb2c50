"""The rules that a notebook keeps before anything runs it, and the digest that tells stale outputs."""

import ast
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asa_classroom.publishing import TAG
from asa_mini.errors import AsaError, DataFileError

KERNEL = "python3"


class NotebookError(AsaError, RuntimeError):
    """A notebook could not be run, or one of its cells failed."""


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
        raise NotebookError(f"{path.name} is not a valid notebook: {one_line(error)}") from error
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


def one_line(text: object, width: int = 400) -> str:
    """`text` without line breaks, cut to `width` characters."""
    return " ".join(str(text).split())[:width]
