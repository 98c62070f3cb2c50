"""Text-classification sets as a `datasets.DatasetDict`, with or without a planted shortcut.

::

    load(name)  ->  columns text, label (and position)  ->  tokenize(...)  ->  what Trainer takes

Every file is read whole, checked row by row and kept in memory; nothing is cached on disk but a hub download.
"""

import importlib.resources
import json
import os
import random
import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from huggingface_hub import hf_hub_download
from transformers import PreTrainedTokenizerBase

from asa_mini.errors import DataFileError, InputError
from asa_mini.train.models import hub_answers
from asa_mini.train.planting import check_row, plant_shortcut, remove_shortcut

FILES = {  # dataset name -> its splits, one file each
    "shortcut": ("train", "dev", "iid", "neutral", "flipped"),
    "sst2": ("train", "dev", "test"),
}
COLUMNS = {"shortcut": ("text", "label", "position"), "sst2": ("text", "label")}
LABEL_NAMES = ("negative", "positive")  # of both, for 0 and 1
FEATURES = {"text": Value("string"), "label": ClassLabel(names=list(LABEL_NAMES)), "position": Value("int64")}
SST2_ON_HUB = {"repo_id": "SetFit/sst2", "revision": "00ea8ccb7a54b4e3780a3e51aa3f80361ff849c0"}

Columns = dict[str, list]  # text, label and, where a word is planted, position


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
        name: "shortcut", the generated corpus in this repository's `data/shortcut`; or "sst2", the whole
            sentences of the Stanford Sentiment Treebank.
        data_dir: folder with the files `<split>.tsv`, or its parent with the files in a folder called `name`.
            Default: for shortcut `shortcut_folder()`; for sst2 the environment's ASA_DATA_DIR, else the hub.
        plant: plant the words of `plant_shortcut` at this agreement with the label, 0 to 1.
        seed: of the choice of `max_train_samples` and of the planting.
        max_train_samples: keep this many training rows, as balanced as labels allow; dev and test stay whole.
        planted: False removes the words that the shortcut corpus comes with.

    Returns:
        Columns `text` (str), `label` (a ClassLabel with LABEL_NAMES) and, where words are planted, `position`
        (int: index of the planted word in `text.split()`). Splits train, dev, test; with planted words train,
        dev, iid, neutral, flipped, where the last three are the test sentences at agreement `plant`, 0.5 and
        1 - `plant`.

    Raises:
        InputError: an unusable argument or file content; the message names file and line.
        DataFileError: a file or folder is missing, or the hub cannot be reached.
    """
    if name not in FILES:
        raise InputError(f"unknown dataset {name!r}; choose one of {', '.join(FILES)}")
    limit = max_train_samples
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise InputError(f"max_train_samples is {limit!r}; give the number of rows to keep, at least 1")
    if name == "shortcut" and planted and plant is not None:
        raise InputError("the shortcut corpus comes with planted words; plant none, or give planted=False")
    splits = {split: _read(path, COLUMNS[name]) for split, path in _files(name, data_dir).items()}
    if name == "shortcut" and not planted:
        for columns in splits.values():
            columns["text"] = remove_shortcut(columns["text"], columns.pop("position"))
        splits = {"train": splits["train"], "dev": splits["dev"], "test": splits["iid"]}
    if limit is not None:
        splits["train"] = _limited(splits["train"], limit, seed)
    if plant is not None:
        test = splits.pop("test")
        splits = {split: _planted(columns, plant, seed) for split, columns in splits.items()}
        for split, agreement in ("iid", plant), ("neutral", 0.5), ("flipped", 1 - plant):
            splits[split] = _planted(test, agreement, seed)
    features = Features({name: FEATURES[name] for name in splits["train"]})
    return DatasetDict({split: Dataset.from_dict(columns, features) for split, columns in splits.items()})


def label_names(dataset: DatasetDict) -> list[str] | None:
    """What the labels 0, 1, ... are called; None if the column `label` does not say."""
    feature = next(iter(dataset.values())).features["label"]
    return feature.names if isinstance(feature, ClassLabel) else None


def check_dataset(dataset: DatasetDict, num_labels: int, needed: Sequence[str] = ()) -> None:
    """Raise InputError unless the `needed` splits are there and every split has usable texts and labels."""
    for split in needed:
        if split not in dataset:
            raise InputError(f"the dataset has no split {split!r}, only {', '.join(dataset)}")
    for split, rows in dataset.items():
        for column in ("text", "label"):
            if column not in rows.column_names:
                raise InputError(f"split {split!r} has no column {column!r}, only {rows.column_names}")
        if not len(rows):
            raise InputError(f"split {split!r} is empty")
        for row, (text, label) in enumerate(zip(rows["text"][:], rows["label"][:], strict=True)):
            check_row(text, label, f"split {split!r}, row {row}", num_labels)


def tokenize(
    dataset: DatasetDict, tokenizer: PreTrainedTokenizerBase, max_length: int, label_ids: Sequence[int] = ()
) -> DatasetDict:
    """Token ids of every text, cut to `max_length` tokens with the special ones; collators pad.

    Args:
        label_ids: the model's number for each label of the data, see `align_labels`; () keeps them.

    Returns:
        The same splits with the columns `labels` (int), `input_ids`, `attention_mask` and, if the tokenizer
        makes them, `token_type_ids` (lists of integers).
    """
    splits = {}
    for split, rows in dataset.items():
        encoded = tokenizer(rows["text"][:], truncation=True, max_length=max_length)
        if not all(encoded["input_ids"]):
            raise InputError(f"split {split!r}, row {encoded['input_ids'].index([])}: the text has no token")
        labels = [label_ids[i] if label_ids else i for i in rows["label"]]
        splits[split] = Dataset.from_dict({**encoded, "labels": labels})
    return DatasetDict(splits)


def shortcut_folder() -> Path:
    """The shipped corpus, in the installed package or in the clone; DataFileError if it is in neither."""
    installed = Path(str(importlib.resources.files("asa_mini"))) / "_data" / "shortcut"
    clone = Path(__file__).resolve().parents[2] / "data" / "shortcut"
    for folder in (installed, clone):
        if folder.is_dir():
            return folder
    raise DataFileError(f"the shipped corpus is neither in {installed} nor {clone}; install asa_mini again")


def _files(name: str, data_dir: str | os.PathLike | None) -> dict[str, Path]:
    """The file of each split, on this machine."""
    chosen = data_dir or (shortcut_folder() if name == "shortcut" else os.environ.get("ASA_DATA_DIR"))
    if not chosen:
        return _download()
    folder = next((folder for folder in (Path(chosen, name), Path(chosen)) if folder.is_dir()), None)
    if folder is None:
        raise DataFileError(f"there is no folder {chosen}; name another one (--data_dir, ASA_DATA_DIR)")
    return {split: folder / f"{split}.tsv" for split in FILES[name]}


def _download() -> dict[str, Path]:
    """SST-2 from the hub, or from the hub's cache on this machine."""
    offline, files = not hub_answers(), {}
    for split in FILES["sst2"]:
        file = {**SST2_ON_HUB, "filename": f"{split}.jsonl", "repo_type": "dataset"}
        try:
            files[split] = Path(hf_hub_download(**file, local_files_only=offline))
        except OSError as error:  # every error of the client is one: offline, unreachable, not found
            raise DataFileError(
                f"{split}.jsonl of {file['repo_id']} cannot be fetched ({type(error).__name__}); connect to "
                "the network, or name a folder with train, dev and test.tsv (--data_dir, ASA_DATA_DIR)"
            ) from error
    return files


def _read(path: Path, names: Sequence[str]) -> Columns:
    """Read JSON lines, or lines of tab-separated columns; no quoting, no word for null.

    Only the files with a position have a header.
    """
    if not path.is_file():
        raise DataFileError(f"{path} is missing; the dataset needs it, with the columns {', '.join(names)}")
    try:
        lines = list(enumerate(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"), start=1))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}") from error
    if "position" in names and lines.pop(0)[1].split("\t") != list(names):
        raise InputError(f"{path}, line 1: the header must be {', '.join(names)}, separated by tabs")
    if not any(line for _, line in lines):
        raise InputError(f"{path} is empty; it needs one row for each text")
    rows = []
    for number, line in lines:
        where = f"{path}, line {number}"
        if path.suffix == ".jsonl":
            row = json.loads(line)
        else:
            values = line.split("\t")
            if len(values) != len(names):
                needed = f"{len(names)}: {', '.join(names)}"
                raise InputError(f"{where} has {len(values)} tab-separated column(s); it needs {needed}")
            row = dict(zip(names, (values[0], *map(_integer, values[1:])), strict=True))
        check_row(row.get("text"), row.get("label"), where, len(LABEL_NAMES))
        if "position" in names and row["position"] not in range(len(row["text"].split())):
            raise InputError(f"{where}: no word of the text has the position {row['position']!r}, from 0")
        rows.append(row)
    return {name: [row[name] for row in rows] for name in names}


def _integer(text: str) -> int | str:
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def _planted(columns: Columns, agreement: float, seed: int) -> Columns:
    texts, positions = plant_shortcut(columns["text"], columns["label"], agreement=agreement, seed=seed)
    return {"text": texts, "label": columns["label"], "position": positions}


def _limited(columns: Columns, limit: int, seed: int) -> Columns:
    """`limit` rows in random order: the first of each label, then the second of each, and so on."""
    order = list(range(len(columns["label"])))
    random.Random(seed).shuffle(order)
    turns = [count() for _ in LABEL_NAMES]
    turn = {row: next(turns[columns["label"][row]]) for row in order}
    chosen = sorted(order, key=turn.get)[:limit]  # stable: ties stay in shuffled order
    return {name: [values[row] for row in chosen] for name, values in columns.items()}
