"""Scores of a model on every split of a dataset, predictions for texts, and what goes into a model."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from datasets import Dataset, DatasetDict
from scipy.special import expit, softmax
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer

from asa_mini.errors import InputError
from asa_mini.train.config import TrainConfig
from asa_mini.train.metrics import Scorer, accuracy_by_group, accuracy_interval
from asa_mini.train.models import align_labels, check_max_length, given_back, kind_of_model, merged_labels
from asa_mini.train.tokenizing import check_dataset, collator, kind_of, label_names, tokenize


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: DatasetDict,
    batch_size: int = 64,
    max_length: int = 128,
    progress: bool = True,
    metrics: Sequence[str] = (),
) -> dict[str, dict]:
    """Scores of a plain model on every split but "train".

    Args:
        metrics: names of `metrics.FUNCTIONS`; () takes those of the kind of task.

    Returns:
        For each split its metrics, `loss` and `n`; where accuracy is one of them `low`, `high`, the 95 %
        Wilson interval, and `by_group`, the accuracy of each group, if the data has groups.

    Raises:
        InputError: the data or an argument cannot be used.
    """
    tokens = model_inputs(dataset, model, tokenizer, max_length)
    scorer = scorer_of(model, dataset, metrics)
    with _trainer(model, tokenizer, scorer.kind, batch_size, progress, compute_metrics=scorer) as trainer:
        return evaluate_splits(trainer, tokens, scorer)[0]


def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    batch_size: int = 64,
    max_length: int = 128,
    progress: bool = True,
) -> list[dict]:
    """Predictions of a plain model for rows without labels.

    Args:
        rows: columns as in `data`, but for the label.

    Returns:
        For each row `prediction` and, but for regression, `probabilities`: of classification and multi-label
        the label's name and the probability of each name; of multiple choice the number of the choice and the
        probability of each; of tokens a tag and its probability for each word, None where the text was cut.
    """
    kind = kind_of_model(model)
    check_max_length(model, max_length)
    given = {"tokens": [list(range(len(words))) for words in rows["tokens"]]} if kind == "tokens" else {}
    labels = given.get("tokens", [0] * len(rows))  # of words their numbers, to find them again in the pieces
    labelled = DatasetDict({"rows": rows.add_column("label", labels)})
    tokens = tokenize(labelled, tokenizer, max_length, kind=kind)["rows"]
    pieces = tokens["labels"][:]
    if kind != "multiple_choice":  # whose collator asks for labels
        tokens = tokens.remove_columns("labels")
    with _trainer(model, tokenizer, kind, batch_size, progress) as trainer:
        scores, _, _ = _outputs(trainer, tokens)
    names = [model.config.id2label[number] for number in range(model.config.num_labels)]
    if kind == "regression":
        return [{"prediction": float(score)} for score in scores.reshape(-1)]
    if kind == "multi_label":
        rows = [dict(zip(names, map(float, row), strict=True)) for row in expit(scores)]
        return [{"prediction": [n for n, p in row.items() if p > 0.5], "probabilities": row} for row in rows]
    found = softmax(scores, axis=-1)
    if kind == "tokens":
        return [_tags(*row, names) for row in zip(found, pieces, given["tokens"], strict=True)]
    best = found.argmax(-1).tolist()
    if kind == "multiple_choice":
        return [{"prediction": i, "probabilities": row} for i, row in zip(best, found.tolist(), strict=True)]
    rows = [dict(zip(names, row, strict=True)) for row in found.tolist()]
    return [{"prediction": names[i], "probabilities": row} for i, row in zip(best, rows, strict=True)]


def _tags(found: np.ndarray, pieces: list[int], words: list[int], names: list[str]) -> dict:
    at = {word: place for place, word in enumerate(pieces) if word >= 0}
    best = [found[at[word]] if word in at else None for word in words]
    return {
        "prediction": [None if row is None else names[row.argmax()] for row in best],
        "probabilities": [None if row is None else float(row.max()) for row in best],
    }


@contextmanager
def _trainer(model, tokenizer, kind: str, batch_size: int, progress: bool, **options) -> Iterator[Trainer]:
    """A Trainer that only evaluates."""
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, but is {batch_size}")
    settings = {"per_device_eval_batch_size": batch_size, "eval_strategy": "no"}
    with tempfile.TemporaryDirectory() as scratch, given_back(model):
        trainer = Trainer(
            model=model,
            args=TrainConfig(training=settings).training_arguments(scratch, keep=False, progress=progress),
            processing_class=tokenizer,
            data_collator=collator(kind, tokenizer),
            **options,
        )
        trainer.remove_callback(PrinterCallback)
        yield trainer


def model_inputs(dataset: DatasetDict, model, tokenizer, max_length: int, needed: Sequence[str] = ()):
    """What `tokenize` returns, with the model's own numbers of the labels; InputError if it has no use."""
    check_max_length(model, max_length)
    kind, theirs = kind_of(dataset), kind_of_model(model)
    if kind != theirs:
        raise InputError(f"the data is {kind}, but the model's head is for {theirs}")
    names, size = label_names(dataset), model.config.num_labels
    if names and len(names) != size and not merged_labels(model.config, names):
        raise InputError(f"the data has the {len(names)} labels {', '.join(names)}, the model has {size}")
    check_dataset(dataset, len(names or ()) or size, needed)
    ids = align_labels(model.config, names) if kind not in ("regression", "multiple_choice") else ()
    return tokenize(dataset, tokenizer, max_length, ids)


def scorer_of(model: PreTrainedModel, dataset: DatasetDict, metrics: Sequence[str] = ()) -> Scorer:
    names = [model.config.id2label[number] for number in range(model.config.num_labels)]
    merged = merged_labels(model.config, label_names(dataset)) if len(names) > 2 else ()
    return Scorer(kind_of(dataset), names, metrics, merged)


def evaluate_splits(trainer: Trainer, tokens: DatasetDict, scorer: Scorer) -> tuple[dict, dict]:
    """What `evaluate` returns, and by "SPLIT/labels" and "SPLIT/predictions" those of every example.

    Args:
        trainer: whose `compute_metrics` is `scorer`.
    """
    results, kept = {}, {}
    for split, rows in tokens.items():
        if split == "train":
            continue
        scores, labels, metrics = _outputs(trainer, rows)
        found, labels, n = scorer.decide(scores), scorer.merge(labels), len(rows)
        results[split] = {name: metrics[f"eval_{name}"] for name in (*scorer.metrics, "loss")}
        results[split]["n"] = n
        if "accuracy" in scorer.metrics:
            results[split] |= accuracy_interval(results[split]["accuracy"], n)
        if "group" in rows.column_names:
            results[split]["by_group"] = accuracy_by_group(labels, found, rows["group"][:])
        kept |= {f"{split}/labels": compact(labels), f"{split}/predictions": compact(found)}
    return results, kept


def _outputs(trainer: Trainer, rows: Dataset) -> tuple[np.ndarray, np.ndarray | None, dict]:
    """Outputs and labels in the order of the rows, and the metrics.

    Trainer reads rows of one length together, by a sampler whose order is always the same.
    """
    sampler = trainer._get_eval_sampler(rows)
    order = range(len(rows)) if sampler is None else list(sampler)
    output = trainer.predict(rows, metric_key_prefix="eval")
    scores = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
    back = np.argsort(order)
    return scores[back], None if output.label_ids is None else output.label_ids[back], output.metrics


def compact(values: np.ndarray) -> np.ndarray:
    """Whole numbers in the smallest type that holds them."""
    if not np.issubdtype(values.dtype, np.integer):
        return values
    return values.astype(np.promote_types(*map(np.min_scalar_type, (values.min(), values.max()))))
