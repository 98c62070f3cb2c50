"""When a checkpoint is complete, so that a run can go on from it and end as if it had never stopped."""

import json
from pathlib import Path

from asa_mini.errors import InputError
from asa_mini.train.files import write_json

PROGRESS = "asa_progress.json"


def write_progress(checkpoint: Path, **progress) -> None:
    """The last file of a checkpoint: the length of every other one, and what Trainer does not keep."""
    files = {file.name: file.stat().st_size for file in checkpoint.iterdir()}
    write_json(checkpoint / PROGRESS, {**progress, "files": files})


def read_progress(checkpoint: str | Path) -> dict:
    """What `write_progress` wrote.

    Raises:
        InputError: the checkpoint is incomplete: the process was killed while it saved, or a file was cut.
    """
    try:
        progress = json.loads(Path(checkpoint, PROGRESS).read_text(encoding="utf-8"))
        complete = all(Path(checkpoint, name).stat().st_size == n for name, n in progress["files"].items())
    except (OSError, ValueError):
        complete = False
    if not complete:
        raise InputError(f"{checkpoint} is not a complete checkpoint of asa_mini; go on from another one")
    return progress


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`."""
    for checkpoint in sorted(newer_checkpoints(folder), key=_step, reverse=True):
        try:
            read_progress(checkpoint)
            return checkpoint
        except InputError:
            pass
    return None


def newer_checkpoints(folder: Path, checkpoint: str | Path | None = None) -> list[Path]:
    """The checkpoints in `folder`, complete or not, after `checkpoint`; after None all of them."""
    step = -1 if checkpoint is None else _step(checkpoint)
    return [path for path in folder.glob("checkpoint-[0-9]*") if _step(path) > step]


def _step(checkpoint: str | Path) -> int:
    return int(Path(checkpoint).name.split("-")[1])
