"""What the checks of `ex05_attention_analysis` need to judge an interval: its width, and its place."""

from collections.abc import Callable
from typing import Any

import numpy as np

from asa_classroom.checks.old_harness import fail, require
from asa_classroom.checks.records import as_array, call_unchanged, same_numbers

WIDTHS = {  # the student's width by the right one, lowest and highest: what makes it so
    (0.08, 0.22): "the mean of a draw runs over its n sentences: size (resamples, n), then mean(1)",
    (0.47, 0.55): "this is a standard error: take percentiles of the resampled means",
    (0.80, 0.88): "the interval is that of 90 %: leave out 2.5 % at each end",
    (1.25, 1.37): "the interval is that of 99 %: leave out 2.5 % at each end",
    (1.37, 1.47): "each draw must have as many sentences as there are, n",
    (3.1, 3.6): "a and b are resampled separately: resample the differences, sentence by sentence",
    (5.0, 7.5): "these percentiles are of single sentences: take those of the resampled means",
}


def ends(x: np.ndarray) -> np.ndarray:
    """Lower and upper end of the interval of differences x (n,), from more draws than a student takes."""
    draws = np.random.default_rng(99).integers(len(x), size=(40_000, len(x)))
    return np.percentile(x[draws].mean(1), [2.5, 97.5])


def call_interval(student: Callable, *args: Any) -> np.ndarray:
    """The student's three numbers; a list or a tuple will do."""
    got = as_array(call_unchanged(student, *args), "the result")
    require(got.shape == (3,), f"three numbers are asked for; the result has shape {got.shape}")
    return got


def check_order(mean: float, low: float, high: float) -> None:
    """Raise CheckFailed if low and high are not in order, or the same."""
    if abs(high - low) < 1e-9:
        everything = abs(mean - low) < 1e-9  # a draw without replacement is all of them
        no_width = "the interval has no width: draw the sentences WITH replacement"
        fail(no_width if everything else "every draw is the same: make the generator once, before the loop")
    require(low <= mean + 1e-9, "the order is mean, low, high")
    require(mean <= high + 1e-9, "all lies below the mean: np.percentile takes 2.5 and 97.5, not 0.025")


def check_width(width: float) -> None:
    """Raise CheckFailed unless the student's width is about the right one; `width` is their ratio."""
    if abs(width - 1) > 0.04:
        fitting = [hint for (least, most), hint in WIDTHS.items() if least < width < most]
        hint = (*fitting, "the interval's width is not right")[0]
        fail(f"{hint}\n  got  width {width:.2f} of the right one, on average over 4 data sets")


def check_place(student: Callable) -> None:
    """Raise CheckFailed unless the ends are right for skewed data, where they lie at unequal distances."""
    x = np.random.default_rng(1).exponential(size=15) ** 2
    right, half = (ends(x) - x.mean()) / np.ptp(ends(x)), 1.96 * x.std() / 15**0.5 / np.ptp(ends(x))
    known = {
        "the ends are the percentiles themselves, not mean +- 1.96 standard errors": np.array([-half, half]),
        "right width, wrong place: the ends are the percentiles themselves": -right[::-1],
    }
    got = (call_interval(student, x, 0 * x)[1:] - x.mean()) / np.ptp(ends(x))
    what = "the distance of both ends from the mean, in widths of the right interval,"
    same_numbers(got, right, what, "15 skewed differences", known, 0.04)
