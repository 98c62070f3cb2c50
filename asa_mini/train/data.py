"""Text-classification sets as a `datasets.DatasetDict`, with or without a planted shortcut.

    load(name)  ->  columns text, label (and position)  ->  tokenize(...)  ->  what Trainer takes

Every file is read whole, checked row by row and kept in memory; nothing is cached on disk but a hub download.
"""

import csv
import importlib.resources
import os
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from huggingface_hub import hf_hub_download
from huggingface_hub.utils import logging as hub_logging
from transformers import PreTrainedTokenizerBase

from asa_mini.errors import DataFileError, InputError
from asa_mini.train.models import hub_answers
from asa_mini.train.planting import plant_shortcut, remove_shortcut

FILES = {  # dataset name -> its splits, one file each
    "shortcut": ("train", "dev", "iid", "neutral", "flipped"),
    "sst2": ("train", "dev", "test"),
}
LABEL_NAMES = ("negative", "positive")  # of both, for 0 and 1
FEATURES = {"text": Value("string"), "label": ClassLabel(names=list(LABEL_NAMES)), "position": Value("int64")}
SST2_ON_HUB = {"repo_id": "SetFit/sst2", "revision": "00ea8ccb7a54b4e3780a3e51aa3f80361ff849c0"}
NUMBER = re.compile(r"[-+]?\d*\.?\d+([eE][-+]?\d+)?")

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
        raise InputError(
            "the shortcut corpus comes with planted words; plant none, or load it with planted=False"
        )
    folder = _folder(name, data_dir)
    if folder is None:
        splits = _download()
    else:
        header = name == "shortcut"
        splits = {split: _read(folder / f"{split}.tsv", header) for split in FILES[name]}
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
    features = {split: Features({name: FEATURES[name] for name in splits[split]}) for split in splits}
    return DatasetDict({split: Dataset.from_dict(splits[split], features[split]) for split in splits})


def label_names(dataset: DatasetDict) -> list[str] | None:
    """What the labels 0, 1, ... are called; None if the column `label` does not say."""
    feature = next(iter(dataset.values())).features.get("label")
    return feature.names if isinstance(feature, ClassLabel) else None


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
        encoded = tokenizer(list(rows["text"]), truncation=True, max_length=max_length)
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


def _folder(name: str, data_dir: str | os.PathLike | None) -> Path | None:
    """Where the files are; None is the hub."""
    if not data_dir and name == "shortcut":
        return shortcut_folder()
    chosen = data_dir or os.environ.get("ASA_DATA_DIR")
    if not chosen:
        return None
    folder = Path(chosen) / name
    folder = folder if folder.is_dir() else Path(chosen)
    if not folder.is_dir():
        raise DataFileError(f"there is no folder {chosen}; name another one (--data_dir, ASA_DATA_DIR)")
    return folder


def _read(path: Path, header: bool) -> Columns:
    """Read `text<TAB>label`, or with a header `text<TAB>label<TAB>position`; no quoting, no word for null."""
    names = ["text", "label", "position"] if header else ["text", "label"]
    if not path.is_file():
        raise DataFileError(f"{path} is missing; the dataset needs it, with the columns {', '.join(names)}")
    plain = {"sep": "\t", "header": None, "dtype": str, "keep_default_na": False, "quoting": csv.QUOTE_NONE}
    try:
        table = pd.read_csv(path, **plain, skip_blank_lines=False, encoding="utf-8")
    except pd.errors.EmptyDataError:
        raise InputError(f"{path} is empty; it needs one row for each text") from None
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not tab-separated UTF-8 text: {str(error).strip()}") from error
    found, needed = table.shape[1], f"{len(names)}: {', '.join(names)}"
    if found != len(names):
        raise InputError(f"{path} has {found} tab-separated column(s); it needs {needed}")
    table.columns = names
    if not header:
        return _checked(table, path, first_line=1)
    if list(table.iloc[0]) != names:
        raise InputError(f"{path}, line 1: the header must be {', '.join(names)}, separated by tabs")
    columns = _checked(table[1:], path, first_line=2) | {"position": []}
    for line, (text, value) in enumerate(zip(columns["text"], table["position"][1:], strict=True), start=2):
        position = _integer(value, where := f"{path}, line {line}: position")
        if position not in range(len(text.split())):
            raise InputError(f"{where} {position}, but the text has no such word, counted from 0")
        columns["position"].append(position)
    return columns


def _download() -> dict[str, Columns]:
    """SST-2 from the hub (or from the hub's cache on this machine)."""
    offline, verbosity, splits = not hub_answers(), hub_logging.get_verbosity(), {}
    hub_logging.set_verbosity_error()  # the client warns of each retry; the error below says it once
    try:
        for split in FILES["sst2"]:
            options = {**SST2_ON_HUB, "filename": f"{split}.jsonl", "repo_type": "dataset"}
            splits[split] = Path(hf_hub_download(**options, local_files_only=offline))
    except OSError as error:  # every error of the client is one: offline, unreachable, not found
        raise DataFileError(
            f"{split}.jsonl of {SST2_ON_HUB['repo_id']} cannot be fetched ({type(error).__name__}); "
            "connect to the network or name a folder with train, dev and test.tsv (--data_dir, ASA_DATA_DIR)"
        ) from error
    finally:
        hub_logging.set_verbosity(verbosity)
    return {split: _read_jsonl(path) for split, path in splits.items()}


def _read_jsonl(path: Path) -> Columns:
    table = pd.read_json(path, lines=True, dtype=False)
    for column in ("text", "label"):
        if column not in table:
            raise InputError(f"{path} has no column {column}; it has {', '.join(map(str, table.columns))}")
    return _checked(table, path, first_line=1)


def _checked(table: pd.DataFrame, path: Path, first_line: int) -> Columns:
    """The columns `text` and `label` if every row of them is usable."""
    texts, labels = list(table["text"]), []
    if not texts:
        raise InputError(f"{path} is empty; it needs one row for each text")
    for line, (text, label) in enumerate(zip(texts, table["label"], strict=True), start=first_line):
        where = f"{path}, line {line}"
        if pd.isna(text) or not str(text).strip():
            raise InputError(f"{where}: the text is missing (or null); give a sentence, or delete the line")
        if not isinstance(text, str) or NUMBER.fullmatch(text.strip()):
            raise InputError(f"{where}: the text is the number {text!r}; is text the first column?")
        label = _integer(label, f"{where}: label")
        if label not in range(len(LABEL_NAMES)):
            raise InputError(f"{where}: label {label} is outside 0..{len(LABEL_NAMES) - 1}")
        labels.append(label)
    return {"text": texts, "label": labels}


def _integer(value, what: str) -> int:
    if re.fullmatch(r"-?\d+", str(value)) is None:
        raise InputError(f"{what} {value!r} is not an integer")
    return int(value)


def _planted(columns: Columns, agreement: float, seed: int) -> Columns:
    texts, positions = plant_shortcut(columns["text"], columns["label"], agreement=agreement, seed=seed)
    return {"text": texts, "label": columns["label"], "position": positions}


def _limited(columns: Columns, limit: int, seed: int) -> Columns:
    """`limit` rows in random order: the first of each label, then the second of each, and so on."""
    order, seen, turn = list(range(len(columns["label"]))), Counter(), {}
    random.Random(seed).shuffle(order)
    for row in order:
        turn[row] = seen[columns["label"][row]]
        seen[columns["label"][row]] += 1
    chosen = sorted(order, key=turn.get)[:limit]  # stable: ties stay in shuffled order
    return {name: [values[row] for row in chosen] for name, values in columns.items()}
