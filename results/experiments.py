"""The measurements behind results/EXPERIMENT/*.json, EXPERIMENT being what is given here::

    python results/experiments.py shortcut       [--seeds 0 1 2] [--bf16]
    python results/experiments.py sst2           --data-dir DIR [--seeds 0 1 2] [--bf16]
    python results/experiments.py planted        --data-dir DIR [--seeds 0 1 2 3 4] [--bf16]
    python results/experiments.py priors         [--seeds 0 1 2] [--bf16]
    python results/experiments.py attention      [--seeds 0 1 2] [--bf16]
    python results/experiments.py attention_sst2 --data-dir DIR [--seeds 0 1 2] [--bf16]

Every finished run is written at once, to a file of its own; started again, the command goes on with the runs
that are missing. Commands with different seeds may run side by side.
"""

import argparse
import hashlib
import json
import math
import shlex
import sys
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path

from datasets import DatasetDict

from asa_mini import AsaConfig
from asa_mini.cli import run
from asa_mini.look.capture import capture
from asa_mini.look.measures import divergence, masked_by_kind, measure, sentiment_words, token_kinds
from asa_mini.train.config import PRIORS, TrainConfig
from asa_mini.train.data import load
from asa_mini.train.files import write_json
from asa_mini.train.models import load_model
from asa_mini.train.planting import WORDS
from asa_mini.train.run import train
from asa_mini.train.run_folder import environment, load_adversaries
from asa_results.tables import results_folder, stored_runs

LEARNING_RATES = (2e-5, 5e-5, 1e-4)  # tried on dev with plain training, seed 0
TEMPERATURES = (0.1, 0.3, 0.5)
SMALL = {"name": "default", "num_layers": 4, "freeze_embeddings": True}  # the regime of notebook 04
WHOLE = {"name": "default"}
SHORTCUT = {"name": "shortcut"}
SST2 = {"name": "sst2"}
PLANTED = {"name": "sst2", "plant": 0.9, "max_train_samples": 1500}  # training sentences


def main(argv: list[str] | None = None) -> int:
    """Run one experiment, see `asa_mini.cli.run`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    experiments = shortcut, sst2, planted, priors, attention, attention_sst2
    experiments = {experiment.__name__: experiment for experiment in experiments}
    parser.add_argument("what", choices=experiments)
    folder_help = "folder with sst2/train.tsv, dev.tsv, test.tsv; else the hub"
    parser.add_argument("--data_dir", "--data-dir", help=folder_help)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--bf16", action="store_true")
    parser.set_defaults(run=lambda arguments: experiments[arguments.what](arguments))
    return run(parser, argv)


def shortcut(arguments) -> None:
    """The shipped corpus, four layers, frozen embeddings: 2 epochs, and 4 of plain training."""
    table = Table("shortcut", arguments, SHORTCUT, SMALL)
    # Trained without the shortcut, tested with it.
    bare = Table("shortcut_unplanted", arguments, {**SHORTCUT, "planted": False, "tested": "planted"}, SMALL)
    for seed in arguments.seeds:
        bare.run("naive", seed, 1e-4, 2.0)
        for epochs in (2.0, 4.0):
            table.run("naive", seed, 1e-4, epochs)
        table.run("rdrop", seed, 1e-4, 2.0)
        for temperature in TEMPERATURES:
            table.run("asa", seed, 1e-4, 2.0, temperature)


def sst2(arguments) -> None:
    """All sentences, 3 epochs: plain at each learning rate, then ASA at each temperature at the best."""
    table = Table("sst2", arguments, SST2)
    for rate in LEARNING_RATES:
        table.run("naive", 0, rate, 3.0)
    naive = [r for r in table.stored() if r["config"]["method"] == "naive" and r["config"]["seed"] == 0]
    rate = max(naive, key=lambda r: r["results"]["dev"]["accuracy"])["config"]["learning_rate"]
    for seed in arguments.seeds:
        table.run("naive", seed, rate, 3.0)
        for temperature in TEMPERATURES:
            table.run("asa", seed, rate, 3.0, temperature)


def planted(arguments) -> None:
    """A planted shortcut word: 3 epochs, and 7, which cost a plain run about what 3 cost ASA."""
    table = Table("planted", arguments, PLANTED)
    for seed in arguments.seeds:
        for epochs in (3.0, 7.0):
            table.run("naive", seed, 5e-5, epochs)
            table.run("rdrop", seed, 5e-5, epochs)
            for temperature in (0.1, 0.3):
                table.run("asa", seed, 5e-5, epochs, temperature)


def priors(arguments) -> None:
    """The shipped corpus without its shortcut, little of it: 100 steps whatever the number of sentences."""
    for rows in (100, 400, 1600):
        table = Table("priors", arguments, {**SHORTCUT, "planted": False, "max_train_samples": rows}, SMALL)
        epochs = 100 / math.ceil(rows / 32)
        for seed in arguments.seeds:
            table.run("naive", seed, 1e-4, epochs)
            for method in PRIORS:
                for strength in (0.1, 0.3):
                    table.run(method, seed, 1e-4, epochs, strength=strength)


def attention(arguments) -> None:
    """What attention looks like after the runs of `shortcut`, measured on the split `neutral`."""
    table = Table("attention", arguments, SHORTCUT, SMALL, look_at="neutral")
    for seed in arguments.seeds:
        table.run("naive", seed, 1e-4, 2.0)
        table.run("rdrop", seed, 1e-4, 2.0)
        for temperature in (0.1, 0.3):
            table.run("asa", seed, 1e-4, 2.0, temperature)


def attention_sst2(arguments) -> None:
    """The same for the longest runs of `planted`."""
    table = Table("attention_sst2", arguments, PLANTED, look_at="neutral")
    for seed in arguments.seeds:
        table.run("naive", seed, 5e-5, 7.0)
        table.run("rdrop", seed, 5e-5, 7.0)
        table.run("asa", seed, 5e-5, 7.0, 0.3)


class Table:
    """The runs of one experiment on one dataset and model, each in results/NAME/HASH.json.

    Args:
        data: arguments of `load`, and where `tested` is, "planted", the test splits with their planted words.
        model: arguments of `load_model`.
        look_at: the split on which to measure attention.
    """

    def __init__(self, name: str, arguments, data: dict, model: dict = WHOLE, look_at: str | None = None):
        self.name, self.data, self.model, self.look_at = name, data, model, look_at
        self.bf16, self.data_dir = arguments.bf16, arguments.data_dir
        self.dataset(arguments.seeds[0])  # a folder that is not there is told before the first run

    def dataset(self, seed: int) -> DatasetDict:
        options = dict(self.data)
        tested = options.pop("tested", None)
        folder = self.data_dir if options["name"] == "sst2" else None
        dataset = load(**options, data_dir=folder, seed=seed)
        if tested:
            dataset = DatasetDict({**load(options["name"]), "train": dataset["train"], "dev": dataset["dev"]})
        return dataset

    def stored(self) -> list[dict]:
        return [r for r in stored_runs(self.name) if (r["data"], r["model"]) == (self.data, self.model)]

    def run(self, method: str, seed: int, rate: float, epochs: float, temperature=0.5, strength=0.1) -> None:
        config = TrainConfig(
            method=method,
            asa=AsaConfig(temperature),
            strength=strength,
            num_train_epochs=epochs,
            learning_rate=rate,
            max_seq_length=64,
            seed=seed,
            # Both, the last and the best weights are measured then; attention is that of the last.
            load_best_model_at_end=self.look_at is None,
            bf16=self.bf16,
        )
        settings = {"experiment": self.name, "config": asdict(config), "data": self.data, "model": self.model}
        if any(with_defaults(r["config"]) == settings["config"] for r in self.stored()):
            return
        print(
            f"{self.name}: {method}, {rate:g}, {epochs:g} epochs, tau {temperature}, seed {seed}", flush=True
        )
        row = self.measured(config)
        about = environment() | {"command": shlex.join(["python", *sys.argv])}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        folder = results_folder() / self.name
        folder.mkdir(exist_ok=True)
        write_json(folder / f"{digest}.json", {**settings, **row, **about})

    def measured(self, config: TrainConfig) -> dict:
        dataset = self.dataset(config.seed)
        with tempfile.TemporaryDirectory() as scratch:
            output, load = Path(scratch, "run"), partial(load_model, **self.model)
            result = train(dataset, config, load, output, progress=False)
            looks = {}
            if self.look_at is not None:
                asa = config.method == "asa"
                model = load_adversaries(result.model, output) if asa else result.model
                looks["attention"] = look(model, result.tokenizer, dataset[self.look_at])
        metrics = result.metrics
        # From the median, so that a machine that was paused or busy for a while does not count.
        seconds = metrics["seconds_per_step"]
        row = {key: metrics[key] for key in ("rows", "steps", "results", "by_epoch")}
        row |= {"seconds_per_step": seconds, "train_seconds": seconds * metrics["steps"], **looks}
        if config.load_best_model_at_end:
            row["best"] = {"epoch": metrics["best_epoch"], "results": metrics["results"]}
            row["results"] = metrics["results_last"]
        last_epoch = metrics["terms"][-metrics["steps"] // round(config.num_train_epochs) :]
        if "kept_share" in last_epoch[0]:
            shares = [term["kept_share"] for term in last_epoch]
            row["kept_share_last_epoch"] = [sum(layer) / len(layer) for layer in zip(*shares, strict=True)]
        return row


def with_defaults(config: dict) -> dict:
    """An older run does not have the options that came later, which then had their default values."""
    return asdict(TrainConfig()) | config | {"asa": asdict(AsaConfig()) | config["asa"]}


def look(model, tokenizer, split) -> dict:
    """Means over the texts of a split, by layer: what `measure` gives, and what each kind of token loses."""
    records = capture(model, tokenizer, list(split["text"]), max_length=64)
    words = [
        record.tokens_of_word(position) for record, position in zip(records, split["position"], strict=True)
    ]
    sentiment = sentiment_words(list(split["text"]), list(split["label"]), exclude=WORDS)
    kinds = [token_kinds(record, word, sentiment) for record, word in zip(records, words, strict=True)]
    by_layer = measure(records, words).drop(columns="text").groupby("layer").mean()
    by_kind = masked_by_kind(records, kinds).groupby(["kind", "layer"], sort=False)["masked"].mean().unstack()
    return {
        "n": len(records),
        "divergence": float(divergence(records).mean()),
        "by_layer": {name: list(values) for name, values in by_layer.items()},
        "masked_by_kind": {kind: list(values) for kind, values in by_kind.iterrows()},
    }


if __name__ == "__main__":
    raise SystemExit(main())
