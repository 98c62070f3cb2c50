"""Labelled sets as a `datasets.DatasetDict`, with or without a planted shortcut.

::

    load(name) or load_files({...})  ->  splits train, dev, ...  ->  `tokenize`

Columns of every split: `label`, and by the kind of the task `text` (and `text_pair`), `tokens` (words), or
`text` and `choices`. Every file is read whole and checked row by row.
"""

import importlib.resources
import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from asa_mini.errors import DataFileError, InputError
from asa_mini.train.hub import download
from asa_mini.train.planting import plant_shortcut, remove_shortcut
from asa_mini.train.reading import Row, parallel_rows, read_rows
from asa_mini.train.rows import Columns, complete, standard_columns
from asa_mini.train.tasks import Task, as_tuple, find_task


def load(
    name: str,
    data_dir: str | os.PathLike | None = None,
    plant: float | None = None,
    seed: int = 0,
    max_train_samples: int | None = None,
    planted: bool = True,
) -> DatasetDict:
    """Load a dataset by name.

    Args:
        name: of `tasks.TASKS`: "shortcut", the generated corpus in this repository's `data/shortcut`; "sst2",
            the whole sentences of the Stanford Sentiment Treebank; and so on.
        data_dir: folder with the task's files, or its parent with the files in a folder called `name`.
            Default: for shortcut `shortcut_folder()`; else the environment's ASA_DATA_DIR, else the hub.
        plant: plant the words of `plant_shortcut` at this agreement with the label, 0 to 1.
        seed: of the choice of `max_train_samples` and of the planting.
        max_train_samples: keep this many training rows, as balanced as classes allow; the rest stays whole.
        planted: False removes the words that the shortcut corpus comes with.

    Returns:
        Splits train, dev and test, or what the task's table says. With planted words, `position` (int: index
        of the planted word in `text.split()`) and the splits train, dev, iid, neutral, flipped, where the
        last three are the test sentences at agreement `plant`, 0.5 and 1 - `plant`.

    Raises:
        InputError: an unusable argument or file content; the message names file and line.
        DataFileError: a file or folder is missing, or the hub cannot be reached.
    """
    return load_task(find_task(name), data_dir, plant, seed, max_train_samples, planted)[1]


def load_task(
    task: Task,
    data_dir: str | os.PathLike | None = None,
    plant: float | None = None,
    seed: int = 0,
    max_train_samples: int | None = None,
    planted: bool = True,
    training: bool = True,
    rows: dict[str, list[Row]] | None = None,
) -> tuple[Task, DatasetDict]:
    """What `load` returns, of a task that need not be in the table, and the task with its kind and labels.

    Args:
        training: False leaves out the training set, and every split whose file is not there.
        rows: of each split, if they have been read already.
    """
    limit, shortcut = max_train_samples, task.name == "shortcut"
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise InputError(f"max_train_samples is {limit!r}; give the number of rows to keep, at least 1")
    if shortcut and planted and plant is not None:
        raise InputError("the shortcut corpus comes with planted words; plant none, or give planted=False")
    rows, known = rows or read_task(task, data_dir, training), bool(task.labels)
    task = complete(task, rows)
    if plant is not None and (task.kind != "classification" or len(task.labels) != 2 or task.text_pair):
        raise InputError("a word can be planted in single texts of two classes, no others")
    splits = {split: standard_columns(task, found, known) for split, found in rows.items()}
    if shortcut and not planted:
        for columns in splits.values():
            columns["text"] = remove_shortcut(columns["text"], columns.pop("position"))
        splits = {
            ours: splits[theirs]
            for ours, theirs in (("train", "train"), ("dev", "dev"), ("test", "iid"))
            if theirs in splits
        }
    if limit is not None and "train" in splits:
        splits["train"] = _limited(splits["train"], limit, seed, task.kind == "classification")
    if plant is not None:
        if "test" not in splits:
            raise InputError(f"{task.name} has no split 'test' for planted words to be tested on")
        test = splits.pop("test")
        splits = {split: _planted(columns, plant, seed) for split, columns in splits.items()}
        for split, agreement in ("iid", plant), ("neutral", 0.5), ("flipped", 1 - plant):
            splits[split] = _planted(test, agreement, seed)
    made = {split: Dataset.from_dict(columns, _features(task, columns)) for split, columns in splits.items()}
    return task, DatasetDict(made)


def load_files(
    files: Mapping[str, str | os.PathLike],
    text: str | None = None,
    text_pair: str | None = None,
    label: str = "label",
    kind: str | None = None,
    labels: Sequence[str] = (),
    **options,
) -> tuple[Task, DatasetDict]:
    """One's own files: what `load_task` returns of them.

    Args:
        files: of each split, in any format of `reading.SUFFIXES`.
        text, text_pair, label: columns. kind: of the task. labels: names of the labels 0, 1, ... What is not
            given is found in the training set, see `rows.complete`.
        options: of `load_task`.
    """
    task = Task("own files", kind, text or "", text_pair, label, labels=tuple(labels))
    rows = {split: read_rows(Path(path)) for split, path in files.items()}
    return load_task(task, rows=rows, **options)


def read_task(task: Task, data_dir: str | os.PathLike | None = None, training: bool = True):
    """The rows of each split, from a folder on this machine or from the hub."""
    folder = find_folder(task, data_dir)
    names = dict(task.files if folder or not task.hub else task.hub.files)
    if not training:
        names.pop("train", None)
    files = {split: as_tuple(name) for split, name in names.items()}
    if folder is None:
        # The suffix says how a file of the hub is read; the table describes the original ones.
        found = download(task, files)
        rows = {split: [read_rows(path) for path in paths] for split, paths in found.items()}
    else:
        paths = {split: [folder / name for name in found] for split, found in files.items()}
        if not training:
            present = {split: found for split, found in paths.items() if all(map(Path.is_file, found))}
            paths = present or paths  # where nothing is there, the first one missing is named
        rows = {split: _read_local(task, found) for split, found in paths.items()}
    rows = {split: list(chain.from_iterable(found)) for split, found in rows.items()}
    if task.first_of:
        firsts = {split: {r.values[task.first_of]: r for r in reversed(f)} for split, f in rows.items()}
        rows = {split: list(reversed(found.values())) for split, found in firsts.items()}
    return rows


def find_folder(task: Task, data_dir: str | os.PathLike | None = None) -> Path | None:
    """The folder of the task's files on this machine; None if they have to come from the hub.

    Raises:
        DataFileError: a folder that was named is not there, or holds none of the files.
    """
    chosen = data_dir or (shortcut_folder() if task.name == "shortcut" else os.environ.get("ASA_DATA_DIR"))
    if not chosen:
        return None
    folders = [path for path in (Path(chosen, task.folder or task.name), Path(chosen)) if path.is_dir()]
    if not folders:
        raise DataFileError(f"there is no folder {chosen}; name another one (--data_dir, ASA_DATA_DIR)")
    names = [name for files in map(as_tuple, task.files.values()) for name in files]
    for folder in folders:
        if any((folder / name).is_file() for name in names):
            return folder
    if not data_dir and task.hub:
        return None
    raise DataFileError(f"{folders[0]} holds none of the files of {task.name}: {', '.join(names)}")


def _read_local(task: Task, paths: Sequence[Path]) -> list[list[Row]]:
    if task.format == "parallel":
        return [parallel_rows(paths, task.columns)]
    return [read_rows(path, task.format, task.columns, task.header, task.key) for path in paths]


def shortcut_folder() -> Path:
    """The shipped corpus, in the installed package or in the clone; DataFileError if it is in neither."""
    installed = Path(str(importlib.resources.files("asa_mini"))) / "_data" / "shortcut"
    clone = Path(__file__).resolve().parents[2] / "data" / "shortcut"
    for folder in (installed, clone):
        if folder.is_dir():
            return folder
    raise DataFileError(f"the shipped corpus is neither in {installed} nor {clone}; install asa_mini again")


def _features(task: Task, columns: Columns) -> Features:
    classes = ClassLabel(names=list(task.labels)) if task.labels else Value("int64")
    label = {"regression": Value("float32"), "multi_label": List(classes), "tokens": List(classes)}
    known = {
        "tokens": List(Value("string")),
        "choices": List(Value("string")),
        "label": label.get(task.kind, classes),
        "position": Value("int64"),
    }
    return Features({name: known.get(name, Value("string")) for name in columns})


def _planted(columns: Columns, agreement: float, seed: int) -> Columns:
    texts, positions = plant_shortcut(columns["text"], columns["label"], agreement=agreement, seed=seed)
    return {"text": texts, "label": columns["label"], "position": positions}


def _limited(columns: Columns, limit: int, seed: int, balanced: bool) -> Columns:
    """`limit` rows in random order: the first of each class, then the second of each, and so on."""
    order = list(range(len(columns["label"])))
    random.Random(seed).shuffle(order)
    seen, turn = Counter(), {}
    for row in order:
        label = columns["label"][row] if balanced else 0
        turn[row] = seen[label]
        seen[label] += 1
    chosen = sorted(order, key=turn.get)[:limit]  # stable: ties stay in shuffled order
    return {name: [values[row] for row in chosen] for name, values in columns.items()}
