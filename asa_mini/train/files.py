"""Writing files so that nobody ever meets half of one."""

import json
import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Replace `path` in one step; neither a reader nor a Ctrl-C finds a part of it."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, content: dict) -> None:
    """`write_text` of `content` as JSON."""
    write_text(path, json.dumps(content, indent=1) + "\n")
