"""Accuracy of a text classifier on every split of a dataset, and the checks of what goes into a model."""

import tempfile
from collections.abc import Sequence

from datasets import DatasetDict
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer

from asa_mini.errors import InputError
from asa_mini.train.config import TrainConfig
from asa_mini.train.data import check_dataset, label_names, tokenize
from asa_mini.train.models import align_labels, check_max_length, given_back


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: DatasetDict,
    batch_size: int = 64,
    max_length: int = 128,
    progress: bool = True,
) -> dict[str, dict[str, float]]:
    """Accuracy of a plain classifier on every split but "train".

    Returns:
        For each split: `accuracy`, `loss`, `n`, and `low`, `high`, the 95 % Wilson interval of the accuracy.

    Raises:
        InputError: the data or an argument cannot be used.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, but is {batch_size}")
    tokens = model_inputs(dataset, model, tokenizer, max_length)
    options = {"per_device_eval_batch_size": batch_size, "eval_strategy": "no"}
    with tempfile.TemporaryDirectory() as scratch, given_back(model):
        trainer = Trainer(
            model=model,
            args=TrainConfig(training=options).training_arguments(scratch, keep=False, progress=progress),
            processing_class=tokenizer,
            compute_metrics=accuracy,
        )
        trainer.remove_callback(PrinterCallback)
        return evaluate_splits(trainer, tokens)


def model_inputs(dataset: DatasetDict, model, tokenizer, max_length: int, needed: Sequence[str] = ()):
    """What `tokenize` returns, with the model's own numbers of the labels; InputError if it has no use."""
    check_max_length(model, max_length)
    check_dataset(dataset, model.config.num_labels, needed)
    return tokenize(dataset, tokenizer, max_length, align_labels(model.config, label_names(dataset)))


def evaluate_splits(trainer: Trainer, tokens: DatasetDict) -> dict:
    """What `evaluate` returns, from tokens and a trainer that measures `accuracy`."""
    results = {}
    for split, rows in tokens.items():
        if split != "train":
            scores, n = trainer.evaluate(rows), len(rows)
            interval = binomtest(round(scores["eval_accuracy"] * n), n).proportion_ci(0.95, method="wilson")
            results[split] = {name: scores[f"eval_{name}"] for name in ("accuracy", "loss")}
            results[split] |= {"n": n, "low": interval.low, "high": interval.high}
    return results


def accuracy(prediction) -> dict[str, float]:
    return {"accuracy": accuracy_score(prediction.label_ids, prediction.predictions.argmax(-1))}
