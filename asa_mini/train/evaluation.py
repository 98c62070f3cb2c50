"""Accuracy of a text classifier on every split of a dataset, and the checks of what goes into a model."""

import tempfile

import torch
import transformers
from datasets import DatasetDict
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from asa_mini.errors import InputError
from asa_mini.hf import max_positions
from asa_mini.model import check_padding
from asa_mini.train.data import tokenize
from asa_mini.train.trainer import AsaTrainer


class CheckedPadding(DataCollatorWithPadding):
    """Pads a batch, and raises InputError if one of its examples has no token at all."""

    def __call__(self, features):
        batch = super().__call__(features)
        check_padding(batch["attention_mask"])
        return batch


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
    check_max_length(model, max_length)
    check_dataset(dataset, model.config.num_labels)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = AsaTrainer(
            model=model,
            args=TrainingArguments(
                scratch,
                per_device_eval_batch_size=batch_size,
                train_sampling_strategy="group_by_length",
                dataloader_pin_memory=torch.cuda.is_available(),
                report_to="none",
                disable_tqdm=not progress,
            ),
            processing_class=tokenizer,
            data_collator=CheckedPadding(tokenizer),
            compute_metrics=accuracy,
        )
        trainer.remove_callback(transformers.PrinterCallback)
        return evaluate_splits(trainer, tokenize(dataset, tokenizer, max_length))


def evaluate_splits(trainer: Trainer, tokens: DatasetDict) -> dict:
    """What `evaluate` returns, from tokens and a trainer that measures `accuracy`."""
    results = {}
    for split, rows in tokens.items():
        if split == "train":
            continue
        scores = trainer.evaluate(rows)
        right = round(scores["eval_accuracy"] * len(rows))
        interval = binomtest(right, len(rows)).proportion_ci(0.95, method="wilson")
        results[split] = {
            "accuracy": scores["eval_accuracy"],
            "loss": scores["eval_loss"],
            "n": len(rows),
            "low": interval.low,
            "high": interval.high,
        }
    return results


def accuracy(prediction) -> dict[str, float]:
    return {"accuracy": accuracy_score(prediction.label_ids, prediction.predictions.argmax(-1))}


def check_max_length(model: PreTrainedModel, max_length: int) -> None:
    """Raise InputError unless the model has a position for each of `max_length` tokens, at least one."""
    if max_length < 1:
        raise InputError(f"max_length must be at least 1 token, but is {max_length}")
    positions = max_positions(model)
    if positions is not None and max_length > positions:
        raise InputError(
            f"max_length {max_length} is longer than the model's {positions} positions; lower it"
        )


def check_dataset(dataset: DatasetDict, num_labels: int, needed: tuple[str, ...] = ()) -> None:
    """Raise InputError unless the `needed` splits are there and every split has usable texts and labels."""
    for split in needed:
        if split not in dataset:
            raise InputError(f"the dataset has no split {split!r}, only {', '.join(dataset)}")
    for split, rows in dataset.items():
        missing = {"text", "label"} - set(rows.column_names)
        if missing:
            raise InputError(
                f"split {split!r} has no column {min(missing)!r}, only {', '.join(rows.column_names)}"
            )
        if not len(rows):
            raise InputError(f"split {split!r} is empty")
        for row, (text, label) in enumerate(zip(list(rows["text"]), list(rows["label"]), strict=True)):
            if not isinstance(text, str):
                raise InputError(f"split {split!r}, row {row}: the text is {text!r}, not a string")
            if not isinstance(label, int) or not 0 <= label < num_labels:
                raise InputError(f"split {split!r}, row {row}: label {label!r} is not in 0..{num_labels - 1}")
