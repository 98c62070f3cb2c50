"""The files of a run: a plain Hugging Face checkpoint, the adversaries beside it, and metrics.json.

OUTPUT/             the finished run; metrics.json is written last, so it means that the run is complete
OUTPUT/unfinished/  a run at work, or what a failed one left: its last checkpoint
"""

import json
import shlex
import shutil
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import accelerate
import datasets
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import asa_mini
from asa_mini.errors import DataFileError, InputError, OutputExistsError
from asa_mini.train.files import write_file, write_json
from asa_mini.wrap import AsaConfig, AsaModel, wrap

ADVERSARY_WEIGHTS = "asa_adversary.safetensors"
ADVERSARY_CONFIG = "asa_adversary.json"
METRICS = "metrics.json"
UNFINISHED = "unfinished"


def save_adversaries(model: AsaModel, folder: str | Path) -> None:
    """Write the adversaries' weights (keys `LAYER.query.weight`, ...) and the AsaConfig into `folder`."""
    folder = Path(folder)
    weights = model.adversaries.state_dict()
    write_file(folder / ADVERSARY_WEIGHTS, lambda part: save_file(weights, part))
    config = asdict(model.asa_config)
    write_json(folder / ADVERSARY_CONFIG, config | {"layers": sorted(int(key) for key in model.adversaries)})


def load_adversaries(model, folder: str | Path) -> AsaModel:
    """Wrap a plain model again with the adversaries and the configuration saved in `folder`.

    Raises:
        DataFileError: `folder` holds no adversaries. InputError: they cannot be read or do not fit the model.
    """
    folder = Path(folder)
    for name in (ADVERSARY_CONFIG, ADVERSARY_WEIGHTS):
        if not (folder / name).is_file():
            raise DataFileError(f"{folder} holds no {name}; was it written by `python -m asa_mini train`?")
    try:
        config = AsaConfig(**json.loads((folder / ADVERSARY_CONFIG).read_text()))
        weights = load_file(folder / ADVERSARY_WEIGHTS)
    except (TypeError, json.JSONDecodeError, SafetensorError) as error:
        raise InputError(f"the adversaries in {folder} cannot be read: {error}") from error
    wrapped = wrap(model, config)
    try:
        wrapped.adversaries.load_state_dict(weights)
    except RuntimeError as error:
        wrapped.unwrap()
        raise InputError(f"the adversaries in {folder} do not fit this model: {error}") from error
    return wrapped


def check_output(output: Path, overwrite: bool) -> None:
    """Raise OutputExistsError unless a new run may be written to `output`. Touches nothing."""
    if not output.exists():
        return
    if not output.is_dir():
        raise OutputExistsError(f"{output} is a file; choose another output folder")
    if not any(output.iterdir()):
        return
    unfinished = (output / UNFINISHED).is_dir()
    if not unfinished and _files_of_run(output) is None:
        raise OutputExistsError(f"{output} holds files that are not a run; choose another output folder")
    if not overwrite:
        what = "what a stopped run left" if unfinished else "a run"
        raise OutputExistsError(f"{output} already holds {what}; choose another folder, or pass --overwrite")


def start_run(output: Path) -> Path:
    """Make and return the folder to train in. A finished run in `output` stays until `finish_run`."""
    shutil.rmtree(output / UNFINISHED, ignore_errors=True)
    (output / UNFINISHED).mkdir(parents=True)
    return output / UNFINISHED


def finish_run(output: Path, final: Path, metrics: dict) -> None:
    """Replace the run in `output` by the files of the folder `final`; files of other origin stay."""
    old, new = _files_of_run(output) or [], sorted(file.name for file in final.iterdir())
    (output / METRICS).unlink(missing_ok=True)
    for name in old:
        (output / name).unlink(missing_ok=True)
    for name in new:
        (final / name).replace(output / name)
    write_json(output / METRICS, {**metrics, "files": new})
    shutil.rmtree(output / UNFINISHED)


def leave_run(output: Path) -> None:
    """After a failure: remove the folders that hold nothing."""
    for folder in (output / UNFINISHED, output):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _files_of_run(output: Path) -> list[str] | None:
    """Names of the files, without metrics.json, of the finished run in `output`; None if there is none."""
    try:
        return [Path(name).name for name in json.loads((output / METRICS).read_text())["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def environment() -> dict:
    """Where and how a number was measured: device, threads, versions, date, command."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} thread(s)",
        "versions": {
            "python": sys.version.split()[0],
            **{m.__name__: m.__version__ for m in (asa_mini, torch, transformers, accelerate, datasets)},
        },
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
    }
