"""What the command line reads and writes: a task, one's own files or a hub's set; texts, and predictions."""

import csv
import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel

from asa_mini.errors import AsaError, DataFileError, InputError
from asa_mini.train.data import find_folder, load_files, load_task, read_task
from asa_mini.train.files import write_file
from asa_mini.train.hub import read_hub
from asa_mini.train.models import kind_of_model
from asa_mini.train.planting import check_text
from asa_mini.train.reading import read_rows
from asa_mini.train.run_folder import METRICS
from asa_mini.train.tasks import METRICS as METRICS_OF_KIND
from asa_mini.train.tasks import TASKS, Task, find_task

FILES = {"train": "train_file", "dev": "validation_file", "test": "test_file"}


@dataclass
class Run:
    """What a finished run says of itself in metrics.json; a bare checkpoint has the defaults."""

    dataset_name: str | None = None
    plant: float | None = None
    columns: dict = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    max_seq_length: int = 128
    seed: int = 0


def read_run(folder: str) -> Run:
    """What is known of the run in `folder`; a checkpoint without metrics.json gives the defaults."""
    file = Path(folder, METRICS)
    if not file.is_file():
        return Run()
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        known = {f.name: content[f.name] for f in dataclasses.fields(Run) if f.name in content}
        return Run(**known, **{name: content["config"][name] for name in ("max_seq_length", "seed")})
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} was not written by train: {error!r}") from error


def load_data(
    given: dict, run: Run | None = None, model: PreTrainedModel | None = None
) -> tuple[Task, DatasetDict, dict]:
    """The task, its data and what metrics.json says of them, by the options of the command line.

    Args:
        run, model: of the model to be evaluated: its own task, columns and labels are taken where nothing
            else is asked for, and there is no training set. None: the data is for training.
    """
    files = {split: given[name] for split, name in FILES.items() if given.get(name)}
    name, plant, seed = given["dataset_name"], given["plant"], given["seed"]
    training, run = run is None, run or Run()
    if not files and name is None:
        if not training and run.columns and run.dataset_name is None:
            raise InputError("this run trained on files of its own; name one with --test_file")
        name, plant = run.dataset_name or "shortcut", run.plant if plant is None else plant
    if files and name:
        raise InputError("--dataset_name and files of your own exclude each other")
    columns = {key: given[f"{key}_column"] or run.columns.get(key) for key in ("text", "text_pair", "label")}
    columns["label"] = columns["label"] or "label"
    named = [
        f"--{key}" for key in ("text_column", "text_pair_column", "label_column", "kind") if given.get(key)
    ]
    if not files and "/" not in name and named:
        raise InputError(f"the columns of task {name} are known; {named[0]} is for data of your own")
    known = columns | {"kind": given.get("kind")} | ({} if model is None else labels_of(model))
    options = {"plant": plant, "seed": run.seed if seed is None else seed, "training": training}
    options["max_train_samples"] = given.get("max_train_samples")
    about = {"dataset_name": name, "plant": plant}
    if name and "/" in name:
        place = given["dataset_config_name"], given["dataset_revision"], columns["label"]
        rows, labels, about["dataset_revision"] = read_hub(name, *place)
        if training:
            _check_splits(rows)
        else:
            rows.pop("train", None)
        labels = labels or tuple(known.get("labels", ()))
        texts = columns["text"] or "", columns["text_pair"]
        task = Task(name, known["kind"], *texts, columns["label"], labels=labels)
        task, dataset = load_task(task, rows=rows, **options)
    elif given["dataset_config_name"] or given["dataset_revision"]:
        raise InputError("--dataset_config_name and --dataset_revision are of a hub's user/name")
    elif files:
        about["data_files"] = {split: str(path) for split, path in files.items()}
        if training:
            _check_splits(files)
        task, dataset = load_files(files, **known, **options)
    else:
        task = find_task(name)
        if training:
            _check_splits(task.files)
        task, dataset = load_task(task, given["data_dir"], **options)
    about["columns"] = {"text": task.text, "text_pair": task.text_pair, "label": task.label}
    return task, dataset, about


def _check_splits(found: Iterable[str]) -> None:
    for split in ("train", "dev"):
        if split not in found:
            way = f"give --{FILES[split]}, or only evaluate a model on it"
            raise InputError(
                f"training needs the split {split!r}, but there is only {', '.join(found)}; {way}"
            )


def labels_of(model: PreTrainedModel) -> dict:
    """Kind and label names of a trained model."""
    kind = kind_of_model(model)
    named = kind not in ("regression", "multiple_choice")
    return {
        "kind": kind,
        "labels": [model.config.id2label[i] for i in range(model.config.num_labels)] if named else (),
    }


def read_texts(
    path: Path, text: str | None, text_pair: str | None, run: Run, model: PreTrainedModel
) -> Dataset:
    """Rows without labels for `evaluation.predict`.

    Args:
        text, text_pair: columns (default: those of the run).
    """
    rows, kind = read_rows(path), kind_of_model(model)
    ours = {"text": text or run.columns.get("text"), "text_pair": text_pair or run.columns.get("text_pair")}
    if not ours["text"] or (text is None and ours["text"] not in rows[0].values):
        ours["text"] = next((n for n in ("text", "tokens", "sentence") if n in rows[0].values), "text")
    ours["tokens" if kind == "tokens" else "text"] = ours.pop("text")
    ours |= {"choices": "choices"} if kind == "multiple_choice" else {}
    made = {name: [] for name, column in ours.items() if column}
    for row in rows:
        for name in made:
            if ours[name] not in row.values:
                known = f"only {', '.join(row.values)}; name it with --text_column or --text_pair_column"
                raise InputError(f"{row.where()}: there is no column {ours[name]!r}, {known}")
            value = row.values[ours[name]]
            texts = value if name in ("tokens", "choices") and isinstance(value, list) else [value]
            for one in texts or [None]:
                check_text(one, row.where())
            made[name].append(value if name not in ("tokens", "choices") else texts)
    return Dataset.from_dict(made)


def check_output(path: Path, model: PreTrainedModel) -> None:
    """Raise InputError unless predictions of this model can be written to `path`."""
    kind = kind_of_model(model)
    fitting = (".jsonl",) if kind in ("tokens", "multiple_choice") else (".csv", ".jsonl")
    if path.suffix not in fitting:
        raise InputError(f"{path}: predictions of {kind} are written to {' or '.join(fitting)}")
    if not path.parent.is_dir():
        raise DataFileError(f"there is no folder {path.parent} to write --output_file to; make it first")


def write_predictions(path: Path, rows: Dataset, predictions: list[dict]) -> None:
    """Write each row with its prediction and probabilities; CSV has a column for each label."""
    made = [row | prediction for row, prediction in zip(rows, predictions, strict=True)]
    if path.suffix == ".jsonl":
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
        write_file(path, lambda part: part.write_text(lines, encoding="utf-8"))
        return
    for row in made:
        shares = row.pop("probabilities", {})
        row |= {f"probability {name}": value for name, value in shares.items()}
        row["prediction"] = (
            json.dumps(row["prediction"]) if isinstance(row["prediction"], list) else row["prediction"]
        )

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, made[0])
            writer.writeheader()
            writer.writerows(made)

    write_file(path, write)


def list_tasks(data_dir: Path | None) -> Iterator[str]:
    """A line for each task: name, kind, metrics, where its data is, and the rows of what is here."""
    if data_dir and not data_dir.is_dir():
        raise DataFileError(f"there is no folder {data_dir}; name another one (--data_dir, ASA_DATA_DIR)")
    yield f"{'name':17}{'kind':17}{'metrics':32}data"
    for task in TASKS.values():
        metrics = ", ".join(task.metrics or METRICS_OF_KIND[task.kind])
        yield f"{task.name:17}{task.kind:17}{metrics:32}{_place(task, data_dir)}" + (
            f" ({task.note})" if task.note else ""
        )


def _place(task: Task, data_dir: Path | None) -> str:
    try:
        folder = find_folder(task, data_dir)
    except AsaError:
        folder = None
    if folder is None:
        return f"hub: {task.hub.repo} at {task.hub.revision[:7]}" if task.hub else "bring a local folder"
    try:
        rows = read_task(task, folder, training=True)
    except AsaError as error:
        return str(error)
    return f"{folder}: " + ", ".join(f"{split} {len(found):,}" for split, found in rows.items())
