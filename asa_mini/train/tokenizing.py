"""From a dataset's columns to what a model reads, by the kind of the task."""

import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from numbers import Integral, Real
from pathlib import Path

import datasets
import transformers
from datasets import ClassLabel, Dataset, DatasetDict, List
from datasets.fingerprint import Hasher
from transformers import (
    DataCollatorForMultipleChoice,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
)

from asa_mini.errors import InputError
from asa_mini.train.planting import check_row, check_text

CACHED_ROWS = 2_000  # smaller splits take a fraction of a second: not worth a file
COLLATORS = {
    "tokens": DataCollatorForTokenClassification,
    "multiple_choice": DataCollatorForMultipleChoice,
}
HIDDEN = ("length", "group")  # columns of what `tokenize` returns that no model reads


def collator(kind: str, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict]], dict]:
    """What pads a batch of this kind to its longest sequence, and leaves out HIDDEN columns."""
    return partial(_collate, COLLATORS.get(kind, DataCollatorWithPadding)(tokenizer))


def _collate(pad: Callable, rows: list[dict]) -> dict:
    return pad([{name: value for name, value in row.items() if name not in HIDDEN} for row in rows])


def kind_of(dataset: DatasetDict) -> str:
    """The kind of the task, as the columns and the type of the labels tell it."""
    features = next(iter(dataset.values())).features
    label = features.get("label")
    if "tokens" in features:
        return "tokens"
    if "choices" in features:
        return "multiple_choice"
    if isinstance(label, List):
        return "multi_label"
    return "regression" if getattr(label, "dtype", "").startswith("float") else "classification"


def label_names(dataset: DatasetDict) -> list[str] | None:
    """What the labels 0, 1, ... are called; None if the column `label` does not say."""
    feature = next(iter(dataset.values())).features.get("label")
    feature = getattr(feature, "feature", feature)  # of lists of labels
    return feature.names if isinstance(feature, ClassLabel) else None


def check_dataset(dataset: DatasetDict, num_labels: int, needed: Sequence[str] = ()) -> None:
    """Raise InputError unless the `needed` splits are there and every split has usable rows."""
    for split in needed:
        if split not in dataset:
            raise InputError(f"the dataset has no split {split!r}, only {', '.join(dataset)}")
    kind = kind_of(dataset)
    words = {"tokens": ("tokens",), "multiple_choice": ("text", "choices")}.get(kind, ("text",))
    for split, rows in dataset.items():
        for column in (*words, "label"):
            if column not in rows.column_names:
                raise InputError(f"split {split!r} has no column {column!r}, only {rows.column_names}")
        if not len(rows):
            raise InputError(f"split {split!r} is empty")
        columns = [rows[name][:] for name in (words[-1], "label")]
        for row, (text, label) in enumerate(zip(*columns, strict=True)):
            where = f"split {split!r}, row {row}"
            if kind == "classification":
                check_row(text, label, where, num_labels)
            else:
                _check_row(kind, text, label, where, num_labels)


def _check_row(kind: str, text, label, where: str, num_labels: int) -> None:
    if kind in ("regression", "multi_label"):
        check_text(text, where)
    if kind == "regression" and (not isinstance(label, Real) or not math.isfinite(label)):
        raise InputError(f"{where}: the score {label!r} is not a finite number")
    if kind == "tokens" and (not text or len(text) != len(label)):
        raise InputError(f"{where}: there are {len(text)} words, but {len(label)} labels")
    number = len(text) if kind == "multiple_choice" else num_labels
    for value in label if isinstance(label, list) else [label]:
        if kind != "regression" and (not isinstance(value, Integral) or not 0 <= value < number):
            raise InputError(f"{where}: label {value!r} is not an integer in 0..{number - 1}")


def tokenize(
    dataset: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    label_ids: Sequence[int] = (),
    kind: str | None = None,
) -> DatasetDict:
    """Token ids of every row, cut to `max_length` tokens with the special ones; collators pad.

    Splits of CACHED_ROWS rows or more are kept in the cache folder of `datasets` (unless that is switched off
    by `datasets.disable_caching()`) and memory-mapped from there the next time.

    Args:
        label_ids: the model's number for each label of the data, see `align_labels`; () keeps them.
        kind: of the task (default: `kind_of`).

    Returns:
        The same splits with the columns `input_ids`, `attention_mask` and, if the tokenizer makes them,
        `token_type_ids` (lists of integers; of multiple choice a list for each choice), and `labels`: int;
        regression float; multi-label a float 0 or 1 for each label; tokens an int for each word piece, -100
        for all but the first of a word. Of the columns HIDDEN from models, `length` is the number of tokens
        before cutting, `group` is the dataset's.

    Raises:
        InputError: a text has no token, or the tokenizer cannot tell which word a piece belongs to.
    """
    kind, label_ids = kind or kind_of(dataset), list(label_ids or range(len(label_names(dataset) or ())))
    if kind == "tokens" and not tokenizer.is_fast:
        raise InputError("labels of words need a fast tokenizer; this one loses which word a piece is of")

    def encode(batch: dict) -> dict:
        return _encode(batch, tokenizer, max_length, kind, label_ids)

    splits = {}
    with _quiet_datasets():
        for split, rows in dataset.items():
            used = [n for n in rows.column_names if n != "position"]
            key = _key(rows.select_columns(used), tokenizer, max_length, kind, label_ids)
            cached = len(rows) >= CACHED_ROWS and datasets.is_caching_enabled()
            splits[split] = rows.map(
                encode,
                batched=True,
                remove_columns=rows.column_names,
                keep_in_memory=not cached,
                cache_file_name=_cache_file(key) if cached else None,
                load_from_cache_file=True,
                new_fingerprint=key,
            )
            if 0 in (lengths := splits[split]["length"][:]):
                raise InputError(f"split {split!r}, row {lengths.index(0)}: the text has no token")
    return DatasetDict(splits)


def _encode(batch: dict, tokenizer, max_length: int, kind: str, label_ids: list[int]) -> dict:
    if kind == "tokens":
        texts, options = [batch["tokens"]], {"is_split_into_words": True}
    elif kind == "multiple_choice":
        flat = [(t, c) for t, choices in zip(batch["text"], batch["choices"], strict=True) for c in choices]
        texts, options = [list(column) for column in zip(*flat, strict=True)], {}
    else:
        texts, options = [batch[name] for name in ("text", "text_pair") if name in batch], {}
    encoded = tokenizer(*texts, **options, verbose=False)  # quiet about the long ones, which are cut below
    lengths = [len(ids) for ids in encoded["input_ids"]]
    word_ids = [encoded.word_ids(row) for row in range(len(lengths))] if kind == "tokens" else []
    long = [row for row, length in enumerate(lengths) if length > max_length]
    if long:
        chosen = [[column[row] for row in long] for column in texts]
        cut = tokenizer(*chosen, **options, truncation=True, max_length=max_length)
        for place, row in enumerate(long):
            for name in encoded:
                encoded[name][row] = cut[name][place]
            if word_ids:
                word_ids[row] = cut.word_ids(place)
    columns = dict(encoded)
    if kind == "multiple_choice":
        number = len(batch["choices"][0])
        starts = range(0, len(lengths), number)
        columns = {name: [c[i : i + number] for i in starts] for name, c in columns.items()}
        lengths = [max(lengths[i : i + number]) for i in starts]
    if "label" in batch:
        labels = batch["label"]
        if label_ids:
            labels = [[label_ids[i] for i in x] if isinstance(x, list) else label_ids[x] for x in labels]
        if kind == "multi_label":
            labels = [[float(i in x) for i in range(len(label_ids))] for x in labels]
        if kind == "tokens":
            labels = [_piece_labels(*row) for row in zip(word_ids, labels, strict=True)]
        columns["labels"] = labels
    return columns | {"length": lengths} | ({"group": batch["group"]} if "group" in batch else {})


def _piece_labels(word_ids: list[int | None], labels: list[int]) -> list[int]:
    """The label of each word at its first piece, -100 elsewhere."""
    pairs = zip([None, *word_ids[:-1]], word_ids, strict=True)
    return [-100 if word is None or word == before else labels[word] for before, word in pairs]


def _key(rows: Dataset, tokenizer, *about) -> str:
    """Of everything that the tokens of a split depend on."""
    if tokenizer.is_fast:  # what an earlier call set is no part of it
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        made_by = tokenizer.backend_tokenizer.to_str()
    else:
        made_by = tokenizer.get_vocab(), tokenizer.init_kwargs
    content = sha256()
    for batch in rows.with_format("arrow")[:].to_batches():
        content.update(batch.serialize())
    return Hasher.hash([content.hexdigest(), made_by, about, transformers.__version__])


def _cache_file(key: str) -> str:
    folder = Path(datasets.config.HF_DATASETS_CACHE, "asa_mini")
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder / f"{key}.arrow")


@contextmanager
def _quiet_datasets():
    """Without the bars of `datasets`, which no log needs."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def describe(dataset: DatasetDict, tokens: DatasetDict, max_length: int, columns: dict | None = None) -> str:
    """One line of what was understood: columns, kind, rows, classes, lengths, and what is missing."""
    kind, names = kind_of(dataset), label_names(dataset)
    read = ", ".join(f"{ours} {theirs!r}" for ours, theirs in (columns or {}).items() if theirs)
    rows = ", ".join(f"{split} {len(rows):,}" for split, rows in dataset.items())
    lengths = [x for rows in tokens.values() for x in rows["length"][:]]
    cut = sum(x > max_length for x in lengths) / len(lengths)
    parts = [f"read as {kind}" + (f" ({read})" if read else ""), f"rows {rows}"]
    if names:
        parts.append(f"{len(names)} labels {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}")
        for split, rows in dataset.items():
            seen = {x for label in rows["label"][:] for x in (label if isinstance(label, list) else [label])}
            missing = [name for number, name in enumerate(names) if number not in seen]
            if missing:
                parts.append(f"{split} has no {', '.join(missing)}")
    parts.append(f"longest {max(lengths):,} tokens, {cut:.1%} cut to {max_length}")
    return "; ".join(parts)
