"""Scores of predictions, by name. None is made by hand: scikit-learn, scipy and seqeval compute them."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import binomtest, pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from asa_mini.errors import InputError
from asa_mini.train.tasks import METRICS


def _f1(average: str) -> Callable:
    return lambda labels, found: f1_score(labels, found, average=average, zero_division=0)


def _correlation(function: Callable) -> Callable:
    def correlation(labels, found) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of constant predictions
            value = function(labels, found).statistic
        return float(np.nan_to_num(value))  # undefined: predictions that are all the same explain nothing

    return correlation


def _entity_f1(labels, found) -> float:
    from seqeval.metrics import f1_score as entity_f1_score  # here, because no other kind needs it

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of predictions without any entity
        return float(entity_f1_score(labels, found, zero_division=0))


FUNCTIONS: dict[str, Callable] = {
    "accuracy": accuracy_score,
    "f1": _f1("binary"),  # of label 1
    "f1_macro": _f1("macro"),
    "f1_micro": _f1("micro"),
    "matthews_correlation": matthews_corrcoef,
    "pearson": _correlation(pearsonr),
    "spearman": _correlation(spearmanr),
    "entity_f1": _entity_f1,
}


class Scorer:
    """`compute_metrics` of a Trainer.

    Args:
        kind: of the task. names: of the model's labels, in its order.
        metrics: names of FUNCTIONS; () takes those of the kind.
        merged: for each of the model's classes, the class that it counts as; () keeps them.

    Attributes:
        metrics: the names, the first one first.
    """

    def __init__(
        self, kind: str, names: Sequence[str], metrics: Sequence[str] = (), merged: Sequence[int] = ()
    ):
        self.kind, self.names, self.merged = kind, list(names), list(merged)
        self.metrics = tuple(metrics) or METRICS[kind]
        if unknown := [name for name in self.metrics if name not in FUNCTIONS]:
            raise InputError(f"unknown metric {unknown[0]!r}; choose of {', '.join(FUNCTIONS)}")
        if "entity_f1" in self.metrics:
            import seqeval  # noqa: F401 -- a missing package is said before training, not after

    def decide(self, scores: np.ndarray) -> np.ndarray:
        """Of a model's outputs: classes or choices (N), scores (N), labels 0 or 1 (N, C), or tags (N, L)."""
        scores = scores[0] if isinstance(scores, tuple) else scores
        if self.kind == "regression":
            return scores.reshape(-1)
        if self.kind == "multi_label":
            return (scores > 0).astype(int)  # the probability of a label is above a half
        return self.merge(scores.argmax(-1))

    def merge(self, classes: np.ndarray) -> np.ndarray:
        return np.array(self.merged)[classes] if self.merged else classes

    def __call__(self, prediction) -> dict[str, float]:
        found, labels = self.decide(prediction.predictions), self.merge(prediction.label_ids)
        if self.kind == "tokens":
            labels, found = self._tags(labels, labels), self._tags(found, labels)
        return {name: float(FUNCTIONS[name](labels, found)) for name in self.metrics}

    def _tags(self, rows: np.ndarray, labels: np.ndarray) -> list[list[str]]:
        """Names of the tags at the first piece of each word."""
        return [[self.names[x] for x in row[real >= 0]] for row, real in zip(rows, labels, strict=True)]


def accuracy_interval(accuracy: float, n: int) -> dict[str, float]:
    """`low` and `high` of the 95 % Wilson interval."""
    interval = binomtest(round(accuracy * n), n).proportion_ci(0.95, method="wilson")
    return {"low": interval.low, "high": interval.high}


def accuracy_by_group(labels: np.ndarray, found: np.ndarray, groups: Sequence[str]) -> dict[str, float]:
    """Accuracy of the rows of each group."""
    groups = np.array(groups)
    return {name: float(np.mean((labels == found)[groups == name])) for name in sorted({*groups.tolist()})}
