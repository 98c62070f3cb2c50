"""Figures of measured runs, in the colours of asa_mini.look.plots."""

from collections.abc import Mapping, Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from asa_mini.errors import InputError
from asa_mini.look.plots import ADVERSARY_COLOR, LINE_STYLES, MODEL_COLOR, PLANTED_COLOR


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


def loss_terms(axes: Sequence[Axes], terms: Sequence[Mapping]) -> None:
    """Draw an ASA run on two axes: task loss and divergence on the left, kept share by layer on the right.

    Args:
        terms: one entry per step with `step`, `task_loss`, `divergence` (nats) and `kept_share` (by layer),
            as in the `terms` of `train`'s metrics.

    Raises:
        InputError: there is no divergence, as in a run without ASA and R-Drop.
    """
    if not terms or "divergence" not in terms[0]:
        raise InputError("these are not the terms of a run with ASA or R-Drop: there is no divergence")
    table = pd.DataFrame(list(terms)).set_index("step")
    losses = table[["task_loss", "divergence"]].set_axis(["task loss (clean half)", "divergence"], axis=1)
    losses.plot(ax=axes[0], style=["-", "--"], color=[MODEL_COLOR, ADVERSARY_COLOR])
    axes[0].set(xlabel="step", ylabel="nats", title="What the encoder minimises")
    if terms[0].get("kept_share"):  # R-Drop has no adversary
        kept = 100 * pd.DataFrame(table["kept_share"].tolist(), index=table.index).add_prefix("layer ")
        styles = [LINE_STYLES[layer % len(LINE_STYLES)] for layer in range(kept.shape[1])]
        kept.plot(ax=axes[1], style=styles, color=sns.color_palette("viridis", kept.shape[1]))
        axes[1].legend(fontsize="small", ncols=2)
    axes[1].set(xlabel="step", ylabel="units kept (%)", ylim=(0, 103))
    axes[1].set_title("What the adversary leaves alone")
