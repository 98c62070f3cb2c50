"""Reading measured runs (results/*.json) into tables, for the README and the notebooks."""

import json
from pathlib import Path

import pandas as pd

from asa_mini.errors import DataFileError

FOLDER = Path(__file__).resolve().parents[2] / "results"


def label(config: dict) -> str:
    """A run's name in tables and figures, without its number of epochs."""
    names = {"naive": "plain", "rdrop": "R-Drop", "asa": "ASA {temperature:g}"}
    names |= {"random_mask": "random mask {strength:g}", "smoothing": "smoothing {strength:g}"}
    return names[config["method"]].format(**config)


def _read(name: str) -> dict:
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        raise DataFileError(f"{path} is missing; make it with: python results/experiments.py {name}")
    return json.loads(path.read_text())


def read_runs(name: str, weights: str = "last") -> pd.DataFrame:
    """Every split of every run in results/NAME.json.

    Args:
        name: "shortcut", "shortcut_unplanted", "sst2", "planted" or "priors".
        weights: "last", or "best" for those of the epoch with the lowest dev loss.

    Returns:
        One row per run and split: method (see `label`), epochs, seed, learning_rate, split, n, accuracy (%),
        train_rows, seconds_per_step, kept_share (list by layer, or None).

    Raises:
        DataFileError: there is no such file.
    """
    rows = []
    for run in _read(name)["rows"]:
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


def read_attention(name: str) -> pd.DataFrame:
    """What attention looked like after every run in results/NAME.json: "attention" or "attention_sst2".

    Returns:
        One row per run and layer: method, seed, layer, and means over the test texts of `measures.measure`:
        kept, received, entropy, auroc, moved.
    """
    frames = []
    for run in _read(name)["rows"]:
        frame = pd.DataFrame(run["attention"]["by_layer"]).rename_axis("layer").reset_index()
        frames.append(frame.assign(method=label(run["config"]), seed=run["config"]["seed"]))
    return pd.concat(frames, ignore_index=True)


def against_plain(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """A column of `read_attention` against the plain run of the same seed, mean over the layers.

    Returns:
        Indexed by method: `difference`, mean over the seeds, and `higher`, "2 of 3 seeds".
    """
    by_seed = table.pivot_table(index="seed", columns="method", values=column, sort=False)
    difference = by_seed.sub(by_seed["plain"], axis=0).drop(columns="plain")
    rows = {}
    for method, values in difference.items():
        values = values.dropna()
        rows[method] = {
            "difference": f"{values.mean():+.3f}",
            "higher": f"{(values > 0).sum()} of {len(values)} seeds",
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


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
