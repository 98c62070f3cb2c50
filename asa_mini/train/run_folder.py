"""The files of a run: a plain Hugging Face checkpoint, the adversaries beside it, and metrics.json.

OUTPUT/
    the finished run; metrics.json is written last, so it means that the run is complete
OUTPUT/unfinished/
    a run at work, or what a stopped one left: its options, and its last checkpoints
"""

import json
import logging
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime, timezone
from hashlib import sha256
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import asa_mini
from asa_mini.config import AsaConfig
from asa_mini.errors import DataFileError, InputError, OutputExistsError
from asa_mini.model import AsaModel, wrap
from asa_mini.train.checkpoints import last_checkpoint, newer_checkpoints
from asa_mini.train.config import TrainConfig
from asa_mini.train.files import write_file, write_json

logger = logging.getLogger(__name__)

ADVERSARY_WEIGHTS = "asa_adversary.safetensors"
ADVERSARY_CONFIG = "asa_adversary.json"
METRICS = "metrics.json"
PREDICTIONS = "predictions.npz"
UNFINISHED = "unfinished"
OPTIONS = "options.json"
LOGS = "runs"  # where Trainer has TensorBoard write


def save_adversaries(model: AsaModel, folder: str | Path) -> None:
    """Write the adversaries' weights (keys `LAYER.query.weight`, ...) and the AsaConfig into `folder`."""
    weights, layers = model.adversaries.state_dict(), sorted(int(key) for key in model.adversaries)
    write_file(Path(folder, ADVERSARY_WEIGHTS), lambda part: save_file(weights, part))
    write_json(Path(folder, ADVERSARY_CONFIG), asdict(model.asa_config) | {"layers": layers})


def load_adversaries(model, folder: str | Path) -> AsaModel:
    """Wrap a plain model again with the adversaries and the configuration saved in `folder`.

    Raises:
        DataFileError: `folder` holds no adversaries. InputError: they cannot be read or do not fit the model.
    """
    try:
        config = AsaConfig(**json.loads(Path(folder, ADVERSARY_CONFIG).read_text(encoding="utf-8")))
        weights = load_file(Path(folder, ADVERSARY_WEIGHTS))
    except FileNotFoundError as error:
        raise DataFileError(f"{folder} holds no adversaries; was it written by asa_mini?") from error
    except (TypeError, ValueError, SafetensorError) as error:
        raise InputError(f"the adversaries in {folder} cannot be read: {error}") from error
    wrapped = wrap(model, config)
    try:
        wrapped.adversaries.load_state_dict(weights)
    except RuntimeError as error:
        wrapped.unwrap()
        raise InputError(f"the adversaries in {folder} do not fit this model: {error}") from error
    return wrapped


@contextmanager
def training_folder(
    output: Path | None, overwrite: bool, resume: bool, checkpoint: str | Path | None
) -> Iterator[Path]:
    """The folder to train in, OUTPUT/unfinished or a temporary one; it goes if no checkpoint was left in it.

    Args:
        overwrite: replace the run in `output`. resume: replace what a stopped run left, if no other is there.
        checkpoint: to go on from; it may be in `output`.

    Raises:
        OutputExistsError: `output` holds something that a new run may not replace; nothing is touched.
    """
    if output is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    unfinished = resume and not (output / METRICS).exists()
    _check_output(output, overwrite or unfinished or _lies_in(checkpoint, output))
    folder, made = output / UNFINISHED, not output.exists()
    try:
        yield folder
    finally:
        if is_writer():
            if folder.is_dir() and {path.name for path in folder.iterdir()} <= {OPTIONS, LOGS}:
                shutil.rmtree(folder)
            if made and output.is_dir() and not any(output.iterdir()):
                output.rmdir()


def _check_output(output: Path, replace: bool) -> None:
    if output.exists() and not output.is_dir():
        raise OutputExistsError(f"{output} is a file; choose another output folder")
    if not output.exists() or not any(output.iterdir()):
        return
    if (output / METRICS).exists() and not (output / UNFINISHED / OPTIONS).exists():
        shutil.rmtree(output / UNFINISHED, ignore_errors=True)  # killed in the last line of finish_run
    unfinished = (output / UNFINISHED).is_dir()
    if not unfinished and not _files_of_run(output):
        raise OutputExistsError(f"{output} holds files that are not a run; choose another output folder")
    if not replace:
        what = "what a stopped run left" if unfinished else "a run"
        way = "choose another folder, or pass --overwrite_output_dir"
        way = f"pass --resume to go on with it, {way}" if unfinished else way
        raise OutputExistsError(f"{output} already holds {what}; {way}")


def run_options(config: TrainConfig, dataset: Mapping, about: dict) -> dict:
    """All that a run depends on, by name: what a stopped run and the one that goes on must share."""
    options = {**asdict(config), **asdict(config.asa), **config.training, **about}
    for name in ("asa", "training", "resume_from_checkpoint"):
        options.pop(name, None)
    for split, rows in dataset.items():
        content = json.dumps(rows[:], default=str).encode()
        options[f"{split} data"] = sha256(content).hexdigest()[:8]
    options["processes"] = int(os.environ.get("WORLD_SIZE", 1))
    return json.loads(json.dumps(options))  # tuples are lists there


def stopped_run(output: Path, options: dict) -> Path | None:
    """The checkpoint that a stopped run left in `output`, to go on from; None if there is none.

    Raises:
        InputError: that run was started with other options.
    """
    folder = output / UNFINISHED
    checkpoint = last_checkpoint(folder) if (folder / OPTIONS).exists() else None
    if checkpoint:
        before = json.loads((folder / OPTIONS).read_text(encoding="utf-8"))
        pairs = {name: (before.get(name), options.get(name)) for name in before | options}
        differ = ", ".join(f"{name} ({old}, now {new})" for name, (old, new) in pairs.items() if old != new)
        if differ:
            way = "give the same ones, or start anew with --overwrite_output_dir"
            raise InputError(f"the run in {output} was started with other options: {differ}; {way}")
    return checkpoint


def start_run(folder: Path, resume: bool, checkpoint: str | Path | None, options: dict) -> None:
    """Clear the training folder, called once nothing can be refused any more; a finished run stays.

    The checkpoint to go on from stays, and those before it. With `resume`, a line says where the run starts.
    """
    if is_writer():
        stays = _lies_in(checkpoint, folder)
        newer = newer_checkpoints(folder, checkpoint if stays else None)
        if resume:
            spoilt = "".join(f"{path.name} is incomplete; " for path in newer)
            anew = f"no checkpoint in {folder}: starting anew"
            logger.warning(spoilt + (f"going on from {checkpoint}" if checkpoint else anew))
        for path in newer if stays else [folder]:
            shutil.rmtree(path, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / OPTIONS, options)


def finish_run(output: Path, final: Path, metrics: dict, predictions: Mapping[str, np.ndarray]) -> None:
    """Replace the run in `output` by the files of the folder `final`; files of other origin stay."""
    if is_writer():
        np.savez_compressed(final / PREDICTIONS, **predictions)
        files = sorted(file.name for file in final.iterdir())
        for name in (METRICS, *_files_of_run(output)):
            (output / name).unlink(missing_ok=True)
        for name in files:
            (final / name).replace(output / name)
        if (logs := output / UNFINISHED / LOGS).is_dir():
            shutil.copytree(logs, output / LOGS, dirs_exist_ok=True)
        write_json(output / METRICS, {**metrics, "files": files})
        (output / UNFINISHED / OPTIONS).unlink()  # first: what is half removed is no run to go on with
        shutil.rmtree(output / UNFINISHED)


def is_writer() -> bool:
    """Whether this process writes the run folder: of those that torchrun starts, the first."""
    return int(os.environ.get("RANK", 0)) == 0


def _lies_in(checkpoint: str | Path | None, folder: Path) -> bool:
    return checkpoint is not None and folder.resolve() in Path(checkpoint).resolve().parents


def _files_of_run(output: Path) -> list[str]:
    """Names of the files, without metrics.json, of the finished run in `output`."""
    try:
        files = json.loads((output / METRICS).read_text(encoding="utf-8"))["files"]
        return [Path(name).name for name in files]
    except (OSError, ValueError, KeyError, TypeError):  # there is none
        return []


def environment(device: torch.device | None = None) -> dict:
    """Where and how a number was measured: device, threads, versions, date, command.

    Args:
        device: where the model was; None stands for the accelerator (cuda, mps, xpu ...), else the CPU.
    """
    device = device or torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    names = {"cuda": torch.cuda.get_device_name, "cpu": lambda _: f"CPU, {torch.get_num_threads()} thread(s)"}
    versions = {"python": sys.version.split()[0], "asa_mini": asa_mini.__version__}
    versions["torch"] = torch.__version__
    for package in ("transformers", "accelerate", "datasets", "triton"):
        with suppress(metadata.PackageNotFoundError):  # what measures a GPU does without some of them
            versions[package] = metadata.version(package)
    return {
        "device": names.get(device.type, lambda device: device.type.upper())(device),
        "versions": versions,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
    }
