"""Figures of measured runs, in the colours of asa_mini.look.plots."""

from collections.abc import Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from asa_mini.look.plots import PLANTED_COLOR


def accuracy_plot(ax: Axes, runs: pd.DataFrame, splits: Sequence[str], title: str = "") -> None:
    """Draw the accuracy of each kind of run on each split: a bar for the mean, a dot for every seed.

    Args:
        runs: columns `run` (label of a kind of run), `split` and `accuracy` (%), see `tables.read_runs`.
        splits: which splits to draw, in this order.
    """
    shown = {"data": runs, "x": "run", "y": "accuracy", "hue": "split", "hue_order": list(splits), "ax": ax}
    shades = sns.light_palette(PLANTED_COLOR, len(splits) + 1)[1:]  # neither player's colour
    sns.barplot(**shown, errorbar=None, palette=shades)
    dots = {"size": 5, "edgecolor": "white", "linewidth": 0.7, "palette": "dark:black"}
    sns.stripplot(**shown, **dots, dodge=True, jitter=False, legend=False)
    ax.axhline(50, color="0.4", linestyle=":", linewidth=1)  # chance
    ax.set(xlabel="", ylabel="accuracy (%)", ylim=(0, 100), title=title)
    ax.tick_params(axis="x", rotation=30)
    ax.legend(title="test split", loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
