"""Text-classification sets as a `datasets.DatasetDict`, with or without a planted shortcut.

    load(name)  ->  columns text, label (and position)  ->  tokenize(...)  ->  what Trainer takes

Every file is read whole, checked row by row and kept in memory; nothing is cached on disk but a hub download.
"""

import csv
import os
import random
import re
from collections import Counter
from pathlib import Path

import pandas as pd
from datasets import Dataset, DatasetDict
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
NUM_LABELS = 2  # of both: 0 negative, 1 positive
SHORTCUT_FOLDER = Path(__file__).resolve().parents[2] / "data" / "shortcut"
SST2_ON_HUB = {"repo_id": "SetFit/sst2", "revision": "00ea8ccb7a54b4e3780a3e51aa3f80361ff849c0"}
NUMBER = re.compile(r"[-+]?\d*\.?\d+([eE][-+]?\d+)?")

Columns = dict[str, list]  # text, label and, where a word is planted, position


def load(
    name: str,
    data_dir: str | os.PathLike | None = None,
    plant: float | None = None,
    seed: int = 0,
    limit: int | None = None,
    planted: bool = True,
) -> DatasetDict:
    """Load a dataset by name.

    Args:
        name: "shortcut", the generated corpus in this repository's `data/shortcut`; or "sst2", the whole
            sentences of the Stanford Sentiment Treebank.
        data_dir: folder with the files `<split>.tsv`, or its parent with the files in a folder called `name`.
            Default: for shortcut the repository; for sst2 the environment's ASA_DATA_DIR, without it the hub.
        plant: plant the words of `plant_shortcut` at this agreement with the label, 0 to 1.
        seed: of the shuffle of `limit` and of the planting.
        limit: keep this many training rows, as balanced as the labels allow; dev and test stay whole.
        planted: False removes the words that the shortcut corpus comes with.

    Returns:
        Columns `text` (str), `label` (int: 0 negative, 1 positive) and, where words are planted, `position`
        (int: index of the planted word in `text.split()`). Splits train, dev, test; with planted words train,
        dev, iid, neutral, flipped, where the last three are the test sentences at agreement `plant`, 0.5 and
        1 - `plant`.

    Raises:
        InputError: an unusable argument or file content; the message names file and line.
        DataFileError: a file or folder is missing, or the hub cannot be reached.
    """
    if name not in FILES:
        raise InputError(f"unknown dataset {name!r}; choose one of {', '.join(FILES)}")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise InputError(f"limit is {limit!r}; give the number of training rows to keep, at least 1")
    if name == "shortcut" and planted and plant is not None:
        raise InputError(
            "the shortcut corpus comes with planted words; plant none, or load it with planted=False"
        )
    folder = _folder(name, data_dir)
    if folder is None:
        splits = {split: _download(split) for split in FILES[name]}
    else:
        header = name == "shortcut"
        splits = {split: _read(folder / f"{split}.tsv", header) for split in FILES[name]}
    if name == "shortcut" and not planted:
        bare = {split: _bare(columns) for split, columns in splits.items()}
        splits = {"train": bare["train"], "dev": bare["dev"], "test": bare["iid"]}
    if limit is not None:
        splits["train"] = _limited(splits["train"], limit, seed)
    if plant is not None:
        test = splits.pop("test")
        splits = {split: _planted(columns, plant, seed) for split, columns in splits.items()}
        for split, agreement in ("iid", plant), ("neutral", 0.5), ("flipped", 1 - plant):
            splits[split] = _planted(test, agreement, seed)
    return DatasetDict({split: Dataset.from_dict(columns) for split, columns in splits.items()})


def tokenize(dataset: DatasetDict, tokenizer: PreTrainedTokenizerBase, max_length: int) -> DatasetDict:
    """Token ids of every text, cut to `max_length` tokens with the special ones; collators pad.

    Returns:
        The same splits with the columns `input_ids`, `attention_mask` and, if the tokenizer makes them,
        `token_type_ids` (lists of integers), and `labels` (int).
    """
    splits = {}
    for split, rows in dataset.items():
        encoded = tokenizer(list(rows["text"]), truncation=True, max_length=max_length)
        splits[split] = Dataset.from_dict({**encoded, "labels": list(rows["label"])})
    return DatasetDict(splits)


def _folder(name: str, data_dir: str | os.PathLike | None) -> Path | None:
    """Where the files are; None is the hub."""
    if data_dir is None and name == "shortcut":
        return SHORTCUT_FOLDER
    chosen = data_dir or os.environ.get("ASA_DATA_DIR")
    if not chosen:
        return None
    folder = Path(chosen) / name
    folder = folder if folder.is_dir() else Path(chosen)
    if not folder.is_dir():
        raise DataFileError(
            f"there is no folder {chosen}; name one with the {name} files (--data-dir, ASA_DATA_DIR)"
        )
    return folder


def _read(path: Path, header: bool) -> Columns:
    """Read `text<TAB>label`, or with a header `text<TAB>label<TAB>position`; no quoting, no word for null."""
    names = ["text", "label", "position"] if header else ["text", "label"]
    if not path.is_file():
        raise DataFileError(f"{path} is missing; the dataset needs it, with the columns {', '.join(names)}")
    try:
        table = pd.read_csv(
            path,
            sep="\t",
            header=None,
            dtype=str,
            keep_default_na=False,
            quoting=csv.QUOTE_NONE,
            skip_blank_lines=False,
            encoding="utf-8",
        )
    except pd.errors.EmptyDataError:
        raise InputError(f"{path} is empty; it needs one row for each text") from None
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not tab-separated UTF-8 text: {str(error).strip()}") from error
    if table.shape[1] != len(names):
        raise InputError(
            f"{path} has {table.shape[1]} tab-separated column(s); it needs {len(names)}: {', '.join(names)}"
        )
    table.columns = names
    if header:
        if list(table.iloc[0]) != names:
            raise InputError(f"{path}, line 1: the header must be {', '.join(names)}, separated by tabs")
        table = table[1:]
    columns = _checked(table, path, first_line=2 if header else 1)
    if header:
        columns["position"] = []
        for line, (text, value) in enumerate(zip(columns["text"], table["position"], strict=True), start=2):
            position = _integer(value, f"{path}, line {line}: position")
            if position not in range(len(text.split())):
                raise InputError(
                    f"{path}, line {line}: the text has no word at position {position}, counted from 0"
                )
            columns["position"].append(position)
    return columns


def _download(split: str) -> Columns:
    """One split of SST-2 from the hub (or from the hub's cache on this machine)."""
    file, verbosity = f"{split}.jsonl", hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()  # the client warns of each retry; the error below says it once
    try:
        path = hf_hub_download(
            local_files_only=not hub_answers(), **SST2_ON_HUB, filename=file, repo_type="dataset"
        )
    except OSError as error:  # every error of the client is one: offline, unreachable, not found
        raise DataFileError(
            f"{file} of {SST2_ON_HUB['repo_id']} cannot be fetched from the hub ({type(error).__name__}); "
            "connect to the network or name a folder with train, dev and test.tsv (--data-dir, ASA_DATA_DIR)"
        ) from error
    finally:
        hub_logging.set_verbosity(verbosity)
    table = pd.read_json(path, lines=True, dtype=False)
    for column in ("text", "label"):
        if column not in table:
            raise InputError(f"{path} has no column {column}; it has {', '.join(map(str, table.columns))}")
    return _checked(table, path, first_line=1)


def _checked(table: pd.DataFrame, path: str | Path, first_line: int) -> Columns:
    """The columns `text` and `label` if every row of them is usable."""
    texts, labels = list(table["text"]), []
    if not texts:
        raise InputError(f"{path} is empty; it needs one row for each text")
    for line, (text, label) in enumerate(zip(texts, table["label"], strict=True), start=first_line):
        where = f"{path}, line {line}"
        if pd.isna(text) or not str(text).strip():
            raise InputError(f"{where}: the text is missing (or null); give a sentence, or delete the line")
        if not isinstance(text, str) or NUMBER.fullmatch(text.strip()):
            raise InputError(
                f"{where}: the text is the number {text!r}; give a sentence (is text the first column?)"
            )
        label = _integer(label, f"{where}: label")
        if label not in range(NUM_LABELS):
            raise InputError(f"{where}: label {label} is outside 0..{NUM_LABELS - 1}")
        labels.append(label)
    return {"text": texts, "label": labels}


def _integer(value, what: str) -> int:
    if re.fullmatch(r"-?\d+", str(value)) is None:
        raise InputError(f"{what} {value!r} is not an integer")
    return int(value)


def _bare(columns: Columns) -> Columns:
    return {"text": remove_shortcut(columns["text"], columns["position"]), "label": columns["label"]}


def _planted(columns: Columns, agreement: float, seed: int) -> Columns:
    texts, positions = plant_shortcut(columns["text"], columns["label"], agreement=agreement, seed=seed)
    return {"text": texts, "label": columns["label"], "position": positions}


def _limited(columns: Columns, limit: int, seed: int) -> Columns:
    """`limit` rows in random order: the first of each label, then the second of each, and so on."""
    order, seen, ranked = list(range(len(columns["label"]))), Counter(), []
    random.Random(seed).shuffle(order)
    for row in order:
        label = columns["label"][row]
        ranked.append((seen[label], row))
        seen[label] += 1
    ranked.sort(key=lambda pair: pair[0])  # stable: ties stay in shuffled order
    return {name: [values[row] for _, row in ranked[:limit]] for name, values in columns.items()}
