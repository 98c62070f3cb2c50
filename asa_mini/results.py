"""Reading measured runs (results/*.json) into tables, for the README and the notebooks."""

import json
from pathlib import Path

import pandas as pd

from asa_mini.errors import DataFileError

FOLDER = Path(__file__).resolve().parents[1] / "results"


def label(config: dict) -> str:
    """A run's name in tables and figures, without its number of epochs."""
    names = {"naive": "plain", "rdrop": "R-Drop", "asa": "ASA {temperature:g}"}
    names |= {"random_mask": "random mask {strength:g}", "smoothing": "smoothing {strength:g}"}
    return names[config["method"]].format(**config)


def read_runs(name: str, weights: str = "last") -> pd.DataFrame:
    """Every split of every run in results/NAME.json.

    Args:
        name: "shortcut", "shortcut_unplanted", "sst2", "planted", "priors" or "priors_sst2".
        weights: "last", or "best" for those of the epoch with the lowest dev loss.

    Returns:
        One row per run and split: method (see `label`), epochs, seed, learning_rate, split, n, accuracy (%),
        train_rows, seconds_per_step, kept_share (list by layer, or None).

    Raises:
        DataFileError: there is no such file.
    """
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        raise DataFileError(f"{path} is missing; make it with: python results/experiments.py {name}")
    rows = []
    for run in json.loads(path.read_text())["rows"]:
        config = run["config"]
        for split, scores in (run if weights == "last" else run["best"])["results"].items():
            rows.append(
                {
                    "method": label(config),
                    "epochs": config["epochs"],
                    "seed": config["seed"],
                    "learning_rate": config["learning_rate"],
                    "split": split,
                    "n": scores["n"],
                    "train_rows": run["rows"]["train"],
                    "accuracy": 100 * scores["accuracy"],
                    "seconds_per_step": run["seconds_per_step"],
                    "kept_share": run.get("kept_share_last_epoch"),
                }
            )
    return pd.DataFrame(rows)


def summarise(runs: pd.DataFrame, splits: list[str]) -> pd.DataFrame:
    """Mean and standard deviation of the accuracy (%) over the seeds, as text: "54.0 ± 3.1", or one number.

    Returns:
        One row per method and number of epochs, a column per split, and `seeds`, how many there are.
    """
    table = {}
    groups = runs.groupby(["method", "epochs"], sort=False)
    for (method, epochs), group in sorted(groups, key=lambda item: item[0][1]):
        row = {}
        for split in splits:
            scores = group[group["split"] == split]["accuracy"]
            spread = f" ± {scores.std():.1f}" if len(scores) > 1 else ""
            row[split] = f"{scores.mean():.1f}{spread}"
        table[method, f"{epochs:g}"] = row | {"seeds": group["seed"].nunique()}
    frame = pd.DataFrame.from_dict(table, orient="index")
    return frame.rename_axis(["method", "epochs"])


def gains(runs: pd.DataFrame, split: str, base: tuple[str, float], epochs: float) -> pd.DataFrame:
    """Accuracy on a split against a base run, seed by seed: what a method gains is a paired difference.

    Args:
        base: method and number of epochs to compare with, e.g. ("plain", 4.0).
        epochs: compare the runs of this many epochs.

    Returns:
        Indexed by method: `points` gained, mean over the seeds that both have, and `ahead`, "2 of 3 seeds".
    """
    chosen = runs[runs["split"] == split]
    table = chosen.pivot_table(index="seed", columns=["method", "epochs"], values="accuracy", sort=False)
    rows = {}
    for method, n in table.columns:
        gain = (table[method, n] - table[base]).dropna()
        if n == epochs and (method, n) != base and len(gain):
            rows[method] = {
                "points": f"{gain.mean():+.1f}",
                "ahead": f"{(gain > 0).sum()} of {len(gain)} seeds",
            }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def markdown_table(frame: pd.DataFrame) -> str:
    """A data frame as a Markdown table, its index first."""
    frame = frame.reset_index()
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.values.tolist()]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
