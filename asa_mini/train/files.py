"""Writing files so that nobody ever meets half of one: the one writer of asa_mini and of results/."""

import json
import os
from collections.abc import Callable
from pathlib import Path


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Replace `path` in one step by what `write(part)` writes; neither a reader nor Ctrl-C meets half of it.

    `part` is a file beside `path` whose name is this process's own, so that two may write at a time.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, see `write_file`."""
    write_file(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: dict) -> None:
    """Write `content` as JSON, see `write_file`."""
    write_text(path, json.dumps(content, indent=1) + "\n")
