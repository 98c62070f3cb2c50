"""Reading measured runs, one file each in EXPERIMENT/, into tables for README and lessons."""

import json
import os
from pathlib import Path

import pandas as pd

from asa_mini.errors import DataFileError

# How tables name the methods, in the order in which they show them.
NAMES = {
    "naive": "plain",
    "rdrop": "R-Drop",
    "asa": "ASA {asa[temperature]:g}",
    "random_mask": "random mask {strength:g}",
    "smoothing": "smoothing {strength:g}",
}


def label(config: dict) -> str:
    """A run's name in tables and figures, without its number of epochs."""
    return NAMES[config["method"]].format(**config)


def results_folder() -> Path:
    """Where the measured runs lie: the folder named by ASA_RESULTS_DIR, else the one of this file."""
    folder = Path(os.environ.get("ASA_RESULTS_DIR") or Path(__file__).parent)
    if not folder.is_dir():
        raise DataFileError(f"there is no folder {folder} with measured runs: mend or unset ASA_RESULTS_DIR")
    return folder


def stored_runs(name: str) -> list[dict]:
    """The runs in results/NAME/ in the order of tables: by seed, epochs and method; [] if there are none."""

    def order(run: dict) -> tuple:
        c = run["config"]
        method = list(NAMES).index(c["method"]), c["asa"]["temperature"], c["strength"], c["learning_rate"]
        return c["seed"], c["num_train_epochs"], *method

    files = (results_folder() / name).glob("*.json")
    return sorted((json.loads(file.read_text(encoding="utf-8")) for file in files), key=order)


def _read(name: str) -> list[dict]:
    if runs := stored_runs(name):
        return runs
    command = f"python results/experiments.py {name.removesuffix('_unplanted')}"
    raise DataFileError(f"{results_folder() / name} holds no measured run; make them with: {command}")


def read_runs(name: str, weights: str = "last") -> pd.DataFrame:
    """Every split of every run of an experiment; DataFileError if there is no such run.

    Args:
        name: "shortcut", "shortcut_unplanted", "sst2", "planted" or "priors".
        weights: "last", or "best" for those of the epoch with the lowest dev loss.

    Returns:
        One row per run and split: method (see `label`), epochs, seed, learning_rate, split, n, accuracy (%),
        train_rows, seconds_per_step, kept_share (list by layer, or None).
    """
    rows = []
    for run in _read(name):
        config = run["config"]
        about = {"method": label(config), "epochs": config["num_train_epochs"], "seed": config["seed"]}
        about |= {"learning_rate": config["learning_rate"], "train_rows": run["rows"]["train"]}
        about |= {"seconds_per_step": run["seconds_per_step"], "kept_share": run.get("kept_share_last_epoch")}
        for split, scores in (run if weights == "last" else run["best"])["results"].items():
            rows.append(about | {"split": split, "n": scores["n"], "accuracy": 100 * scores["accuracy"]})
    return pd.DataFrame(rows)


def read_attention(name: str) -> pd.DataFrame:
    """What attention looked like after every run of "attention" or "attention_sst2".

    Returns:
        One row per run and layer: method, seed, layer, and means over the test texts of `measures.measure`:
        kept, received, entropy, auroc, moved.
    """
    frames = []
    for run in _read(name):
        frame = pd.DataFrame(run["attention"]["by_layer"]).rename_axis("layer").reset_index()
        frames.append(frame.assign(method=label(run["config"]), seed=run["config"]["seed"]))
    return pd.concat(frames, ignore_index=True)


def read_gpu(part: str) -> dict | None:
    """What `make gpu` stored of a part, "attention" or "step": its rows with a time. None if it has none."""
    file = results_folder() / f"gpu_{part}.json"
    run = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"rows": []}
    rows = [row for row in run["rows"] if "seconds" in row]
    return run | {"rows": rows} if rows else None


def attention_times(rows: list[dict]) -> pd.DataFrame:
    """Milliseconds of forward and backward by kind of attention, and those of ASA's kernels against others.

    Returns:
        Indexed by padded, dropout and length; text, "" for what was not measured.
    """
    index = ["padded", "dropout", "length"]
    ms = 1e3 * pd.DataFrame(rows).pivot_table(index=index, columns="kind", values="seconds", sort=False)
    ms = ms.reindex(columns=["flash", "cuDNN", "triton", "reference", "float bias"])
    ratios = {f"ASA / {kind}": ms["triton"] / ms[kind] for kind in ("flash", "cuDNN")}
    ratios["dense / ASA"] = ms["reference"] / ms["triton"]
    names = {"triton": "ASA, kernels", "reference": "ASA, dense", "float bias": "ASA, float bias"}
    table = ms.rename(columns=names).assign(**ratios)
    return table.map(lambda x: "" if pd.isna(x) else f"{x:.2f}")


def _paired(table: pd.DataFrame, base: pd.Series, form: str, mean: str, ahead: str) -> pd.DataFrame:
    """Columns of `table` minus `base`, seed by seed: the mean, in `form`, and "2 of 3 seeds" ahead."""
    gain = table.sub(base, axis=0).dropna(axis=1, how="all")
    seeds = (gain > 0).sum().astype(str) + " of " + gain.count().astype(str) + " seeds"
    return pd.DataFrame({mean: gain.mean().map(form.format), ahead: seeds})


def against_plain(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """A column of `read_attention`, mean over the layers, against the plain run of the same seed.

    Returns:
        Indexed by method: `difference`, mean over the seeds, and `higher`, "2 of 3 seeds".
    """
    by_seed = table.pivot_table(index="seed", columns="method", values=column, sort=False)
    return _paired(by_seed.drop(columns="plain"), by_seed["plain"], "{:+.3f}", "difference", "higher")


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
    compared = table[[run for run in table.columns if run[1] == epochs and run != base]]
    return _paired(compared, table[base], "{:+.1f}", "points", "ahead").droplevel("epochs")


def summarise(runs: pd.DataFrame, splits: list[str]) -> pd.DataFrame:
    """Mean and standard deviation of the accuracy (%) over the seeds, as text: "54.0 ± 3.1", or one number.

    Returns:
        One row per method and number of epochs, a column per split, and `seeds`, how many there are.
    """
    table = {}
    groups = runs.groupby(["method", "epochs"], sort=False)
    for (method, epochs), group in sorted(groups, key=lambda item: item[0][1]):
        accuracy = group.groupby("split")["accuracy"].agg(["mean", "std"])
        row = {split: "{:.1f} ± {:.1f}".format(*accuracy.loc[split]) for split in splits}
        row = {split: text.removesuffix(" ± nan") for split, text in row.items()}  # of a single seed
        table[method, f"{epochs:g}"] = row | {"seeds": group["seed"].nunique()}
    return pd.DataFrame.from_dict(table, orient="index").rename_axis(["method", "epochs"])


def markdown_table(frame: pd.DataFrame) -> str:
    """A data frame as a Markdown table, its index first."""
    frame = frame.reset_index()
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.values.tolist()]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
