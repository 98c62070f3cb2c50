"""Shared figures. One colour, one meaning.

Blue is the model and what it does undisturbed (theta, the clean pass); orange is the adversary and what it
makes of that (eta, the adversarial pass); magenta is what has to do with a planted word.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from asa_mini.errors import InputError
from asa_mini.look.capture import AttentionRecord
from asa_mini.train.files import write_file

FIGURE_FOLDER = "build/figures"
PALETTE = sns.color_palette("colorblind")
MODEL_COLOR, ADVERSARY_COLOR = PALETTE[0], PALETTE[3]
PLANTED_COLOR = "#a3177d"
WALK_COLORS = ("0.15", PALETTE[2], PALETTE[4], PALETTE[5])  # both players' walk: neither's colour
KEPT_COLOR, MASKED_COLOR = "#dce9f5", "#1f2a44"
# A second cue beside the colour, for black-and-white prints and colour-blind readers.
LINE_STYLES = ("-", "--", "-.", ":")


def use_style() -> None:
    """Set the look of every figure in the notebooks; call it once, before the first figure."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", font_scale=0.9)
    plt.rcParams.update({"figure.dpi": 90, "axes.titlesize": "medium"})
    plt.rcParams["svg.hashsalt"] = "asa_mini"  # the ids inside an SVG are random otherwise


def project_root() -> Path:
    """The folder that holds `asa_mini/` and `notebooks/`, or the current one if there is none."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "notebooks").is_dir() else Path.cwd()


def show_figure(fig: Figure, name: str, alt: str) -> None:
    """Save `fig` as `<name>.png` and `<name>.svg` in `FIGURE_FOLDER`, then display it in a notebook.

    `alt` tells readers who cannot see it what it shows.
    """
    from IPython import display  # only notebooks need it

    folder = project_root() / FIGURE_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    svg = {"format": "svg", "bbox_inches": "tight", "metadata": {"Date": None}}
    write_file(folder / f"{name}.svg", lambda part: fig.savefig(part, **svg))
    fig.savefig(picture := io.BytesIO(), format="png", bbox_inches="tight")
    # 256 colours are plenty for a plot, and a notebook that stores its figures shrinks to a third.
    image = Image.open(picture).convert("RGB").quantize(256)
    png = folder / f"{name}.png"
    write_file(png, lambda part: image.save(part, format="png", optimize=True))
    display.display(display.Image(data=png.read_bytes(), alt=alt))
    plt.close(fig)  # the notebook would display it a second time at the end of the cell


def _line_look(i: int) -> dict:
    """The i-th line of a figure: a colour that is neither player's, and a second cue beside it."""
    return {"color": WALK_COLORS[i % len(WALK_COLORS)], "linestyle": LINE_STYLES[i % len(LINE_STYLES)]}


def trajectory_plot(
    ax: Axes,
    paths: Mapping[str, np.ndarray],
    field: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None,
    limit: float | None = None,
    title: str = "",
) -> None:
    """Draw walks of two players (theta to the right, eta upwards): ring = start, square = end.

    Args:
        paths: label -> (T, 2) points, T >= 1.
        field: the step that each player wants at (theta, eta), two (N, N) arrays; drawn as arrows.
        limit: half-width of the picture; by default the largest coordinate of any path.

    Raises:
        InputError: a path is not (T, 2), or holds NaN or infinity.
    """
    points = {label: np.asarray(path, dtype=float) for label, path in paths.items()}
    for label, path in points.items():
        if path.shape != (max(len(path), 1), 2) or not np.isfinite(path).all():
            raise InputError(f"path {label!r} must hold finite points of shape (T, 2), got {path.shape}")
    limit = limit or 1.1 * max(np.abs(path).max() for path in points.values()) or 1.0
    if field is not None:
        theta, eta = np.meshgrid(*[np.linspace(-limit, limit, 10)] * 2)
        ax.quiver(theta, eta, *field(theta, eta), color="0.7", width=0.005, zorder=1)
    for i, (label, path) in enumerate(points.items()):
        color = (look := _line_look(i))["color"]
        ax.plot(*path.T, label=label, linewidth=1.8, zorder=3, **look)
        ax.plot(*path[0], "o", color="white", markeredgecolor=color, markersize=9, zorder=4)
        ax.plot(*path[-1], "s", color=color, markeredgecolor="white", markersize=8, zorder=4)
    ax.plot(0, 0, "k+", markersize=12, markeredgewidth=2, zorder=5)
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", title=title)
    ax.set(xlabel="theta, the model (dimensionless)", ylabel="eta, the adversary (dimensionless)")
    if len(points) > 1:
        ax.legend(fontsize="small")


def attention_heatmap(
    ax: Axes,
    weights: torch.Tensor | np.ndarray,
    tokens: Sequence[str],
    title: str = "",
    label: str = "attention weight (each row sums to 1)",
    vmax: float | None = None,
    cmap: str = "Blues",
) -> None:
    """Draw one (L, L) map: queries are rows, keys are columns.

    A boolean map is drawn as a mask (True = kept) in two colours with a legend, anything else as a heat map
    with a colour bar from 0 to `vmax`, by default the largest weight; give it to compare several maps.

    Raises:
        InputError: `weights` is not (L, L) with one token per row, or holds NaN or infinity.
    """
    weights = torch.as_tensor(weights).detach().cpu()
    if (got := tuple(weights.shape)) != (wanted := (len(tokens), len(tokens))):
        raise InputError(f"{len(tokens)} tokens need a map of shape {wanted}, got {got}")
    if not torch.isfinite(weights).all():
        raise InputError("the map holds NaN or infinity")
    grid = {"square": True, "linewidths": 0.5, "linecolor": "white", "ax": ax}
    grid |= {"xticklabels": list(tokens), "yticklabels": list(tokens)}
    if weights.dtype == torch.bool:
        colors = ListedColormap([MASKED_COLOR, KEPT_COLOR])
        sns.heatmap(weights.numpy().astype(int), cmap=colors, vmin=0, vmax=1, cbar=False, **grid)
        patches = [Patch(facecolor=KEPT_COLOR, label="kept"), Patch(facecolor=MASKED_COLOR, label="masked")]
        ax.legend(handles=patches, loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
    else:
        bar = {"label": label, "shrink": 0.8}
        sns.heatmap(weights.double().numpy(), cmap=cmap, vmin=0, vmax=vmax, cbar_kws=bar, **grid)
    ax.set(title=title, xlabel="key (attended to)", ylabel="query (attends)")
    ax.tick_params(axis="x", rotation=90)
    ax.tick_params(axis="y", rotation=0)


def map_pair(axes: Sequence[Axes], record: AttentionRecord, layer: int) -> None:
    """Draw what one sentence attends to in a layer, clean (blue) and attacked (orange), on one scale.

    The two axes get the mean over the layer's heads. Crosses are the units that the adversary switched off.

    Raises:
        InputError: the record has no such layer; they count from 0.
    """
    if not 0 <= layer < len(record.clean):
        raise InputError(f"there is no layer {layer}: the record has {len(record.clean)}, counted from 0")
    maps = {"clean": record.clean[layer].mean(0), "under attack": record.adversarial[layer].mean(0)}
    shared = {"tokens": record.tokens, "label": "weight", "vmax": max(x.max() for x in maps.values())}
    for ax, (kind, weights), cmap in zip(axes, maps.items(), ("Blues", "Oranges"), strict=True):
        title = f"{kind}: layer {layer}, mean of heads"
        attention_heatmap(ax, weights, title=title, cmap=cmap, **shared)
    rows, columns = np.nonzero(~record.kept[layer])
    axes[1].plot(columns + 0.5, rows + 0.5, "x", color="0.25", markersize=4, label="removed")
    axes[1].set_xlabel("key (attended to); crosses: removed")


def layer_profile(
    ax: Axes,
    profiles: Mapping[str, np.ndarray],
    ylabel: str,
    title: str = "",
    colors: Mapping[str, object] | None = None,
) -> None:
    """Draw a quantity layer by layer: one line per label, with its interval as a band.

    Args:
        profiles: label -> (N,) values by layer, or (N, 3) rows of mean, low, high.
        ylabel: what is drawn, with its unit.
        colors: label -> colour; where it says nothing, the palette's.

    Raises:
        InputError: a profile has another shape.
    """
    for i, (name, profile) in enumerate(profiles.items()):
        profile = np.asarray(profile, dtype=float)
        if profile.shape[1:] not in ((), (3,)):
            raise InputError(f"profile {name!r} must be (N,) or (N, 3) for N layers, got {profile.shape}")
        mean, *band = np.atleast_2d(profile.T)
        look = _line_look(i)
        look["color"] = (colors or {}).get(name, look["color"])
        ax.plot(mean, marker="os^D"[i % 4], markersize=5, label=name, **look)
        if band:
            ax.fill_between(range(len(mean)), *band, color=look["color"], alpha=0.18)
    ax.set(xlabel="layer", ylabel=ylabel, title=title, xticks=range(len(mean)))
    if len(profiles) > 1:
        ax.legend(fontsize="small")
