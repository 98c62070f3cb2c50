"""The measurements behind results/NAME.json, NAME being what is given here.

    python results/experiments.py shortcut       [--seeds 0 1 2] [--bf16]
    python results/experiments.py sst2           --data-dir DIR [--seeds 0 1 2] [--bf16]
    python results/experiments.py planted        --data-dir DIR [--seeds 0 1 2 3 4] [--bf16]
    python results/experiments.py priors         [--seeds 0 1 2] [--bf16]
    python results/experiments.py attention      [--seeds 0 1 2] [--bf16]
    python results/experiments.py attention_sst2 --data-dir DIR [--seeds 0 1 2] [--bf16]

Every finished run is written at once; started again, the command goes on with the runs that are missing.
"""

import argparse
import copy
import json
import math
import shlex
import sys
import tempfile
from functools import partial
from pathlib import Path

from datasets import DatasetDict
from transformers import TrainerCallback

from asa_mini.look.capture import capture
from asa_mini.look.measures import divergence, masked_by_kind, measure, sentiment_words, token_kinds
from asa_mini.train.baselines import PRIORS
from asa_mini.train.data import load
from asa_mini.train.files import write_json
from asa_mini.train.models import load_model
from asa_mini.train.planting import WORDS
from asa_mini.train.run import TrainConfig, environment, evaluate, train
from asa_mini.train.run_folder import load_adversaries
from asa_mini.wrap import AsaModel

FOLDER = Path(__file__).parent
LEARNING_RATES = (2e-5, 5e-5, 1e-4)  # tried on dev with plain training, seed 0
TEMPERATURES = (0.1, 0.3, 0.5)
SENTENCES = 1500  # training sentences of the planted experiment
AGREEMENT = 0.9
WHOLE_MODEL = partial(load_model, "default")


class BestWeights(TrainerCallback):
    """Keeps a copy of the weights of the epoch with the lowest dev loss."""

    def __init__(self):
        self.loss, self.seen = float("inf"), None

    def on_evaluate(self, args, state, control, metrics=None, model=None, **kwargs):
        # Dev comes first after every epoch; what is evaluated later at the same step are the test splits.
        if state.global_step == self.seen:
            return
        self.seen = state.global_step
        if metrics["eval_loss"] < self.loss:
            plain = model.model if isinstance(model, AsaModel) else model
            self.loss, self.epoch = metrics["eval_loss"], state.epoch
            self.weights = copy.deepcopy(plain.state_dict())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    experiments = shortcut, sst2, planted, priors, attention, attention_sst2
    experiments = {experiment.__name__: experiment for experiment in experiments}
    parser.add_argument("what", choices=experiments)
    parser.add_argument("--data-dir", help="folder with sst2/train.tsv, dev.tsv, test.tsv; else the hub")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--bf16", action="store_true")
    arguments = parser.parse_args()
    experiments[arguments.what](arguments)


def shortcut(arguments) -> None:
    """The shipped corpus in the regime of notebook 04: four layers, frozen embeddings, 2 epochs and 4."""
    table = Table("shortcut", arguments, partial(load, "shortcut"), small_model())
    bare = Table("shortcut_unplanted", arguments, unplanted, small_model())
    for seed in arguments.seeds:
        bare.run(seed, method="naive", learning_rate=1e-4, epochs=2.0)
        for epochs in (2.0, 4.0):
            table.run(seed, method="naive", learning_rate=1e-4, epochs=epochs)
        table.run(seed, method="rdrop", learning_rate=1e-4, epochs=2.0)
        for temperature in TEMPERATURES:
            table.run(seed, method="asa", temperature=temperature, learning_rate=1e-4, epochs=2.0)


def small_model():
    return partial(load_model, "default", num_layers=4, freeze_embeddings=True)


def unplanted(seed: int) -> DatasetDict:
    """Trained without the shortcut, tested with it: all splits of the corpus, train and dev bare."""
    bare, corpus = load("shortcut", planted=False), load("shortcut")
    return DatasetDict({**corpus, "train": bare["train"], "dev": bare["dev"]})


def sst2(arguments) -> None:
    """All sentences, 3 epochs: plain at each learning rate, then ASA at each temperature at the best."""
    table = Table("sst2", arguments, lambda seed: load("sst2", arguments.data_dir))
    for rate in LEARNING_RATES:
        table.run(0, method="naive", learning_rate=rate, epochs=3.0)
    naive = [row for row in table.rows if row["config"]["method"] == "naive" and row["config"]["seed"] == 0]
    rate = max(naive, key=lambda row: row["results"]["dev"]["accuracy"])["config"]["learning_rate"]
    for seed in arguments.seeds:
        table.run(seed, method="naive", learning_rate=rate, epochs=3.0)
        for temperature in TEMPERATURES:
            table.run(seed, method="asa", temperature=temperature, learning_rate=rate, epochs=3.0)


def planted(arguments) -> None:
    """A planted shortcut word: 3 epochs, and 7, which cost a plain run about what 3 cost ASA."""
    table = Table("planted", arguments, partial(planted_sst2, arguments))
    for seed in arguments.seeds:
        for epochs in (3.0, 7.0):
            table.run(seed, method="naive", learning_rate=5e-5, epochs=epochs)
            table.run(seed, method="rdrop", learning_rate=5e-5, epochs=epochs)
            for temperature in (0.1, 0.3):
                table.run(seed, method="asa", temperature=temperature, learning_rate=5e-5, epochs=epochs)


def planted_sst2(arguments, seed: int) -> DatasetDict:
    return load("sst2", arguments.data_dir, AGREEMENT, seed, SENTENCES)


def priors(arguments) -> None:
    """The shipped corpus without its shortcut, little of it: 100 steps whatever the number of sentences."""
    for rows in (100, 400, 1600):
        table = Table("priors", arguments, partial(few, rows=rows), small_model())
        options = dict(learning_rate=1e-4, epochs=100 / math.ceil(rows / 32))
        for seed in arguments.seeds:
            table.run(seed, method="naive", **options)
            for method in PRIORS:
                for strength in (0.1, 0.3):
                    table.run(seed, method=method, strength=strength, **options)


def few(seed: int, rows: int) -> DatasetDict:
    return load("shortcut", planted=False, limit=rows, seed=seed)


def attention(arguments) -> None:
    """What attention looks like after the runs of `shortcut`, measured on the split `neutral`."""
    table = Table("attention", arguments, partial(load, "shortcut"), small_model(), look_at="neutral")
    for seed in arguments.seeds:
        table.run(seed, method="naive", learning_rate=1e-4, epochs=2.0)
        table.run(seed, method="rdrop", learning_rate=1e-4, epochs=2.0)
        for temperature in (0.1, 0.3):
            table.run(seed, method="asa", temperature=temperature, learning_rate=1e-4, epochs=2.0)


def attention_sst2(arguments) -> None:
    """The same for the longest runs of `planted`."""
    table = Table("attention_sst2", arguments, partial(planted_sst2, arguments), look_at="neutral")
    for seed in arguments.seeds:
        table.run(seed, method="naive", learning_rate=5e-5, epochs=7.0)
        table.run(seed, method="rdrop", learning_rate=5e-5, epochs=7.0)
        table.run(seed, method="asa", temperature=0.3, learning_rate=5e-5, epochs=7.0)


class Table:
    """Rows of one experiment, kept in results/NAME.json."""

    def __init__(self, name: str, arguments, dataset, model=WHOLE_MODEL, look_at: str | None = None):
        self.path = FOLDER / f"{name}.json"
        self.rows = json.loads(self.path.read_text())["rows"] if self.path.exists() else []
        self.bf16, self.dataset, self.model, self.look_at = arguments.bf16, dataset, model, look_at

    def run(self, seed: int, **options) -> None:
        config = TrainConfig(seed=seed, bf16=self.bf16, max_length=64, **options)
        # An older row does not have the options that came later, which then had their default values.
        if any(vars(TrainConfig()) | row["config"] == vars(config) for row in self.rows):
            return
        print(f"{self.path.stem}: {options}, seed {seed}", flush=True)
        dataset = self.dataset(seed=seed)
        best = BestWeights()
        with tempfile.TemporaryDirectory() as scratch:
            output = Path(scratch, "run")
            result = train(dataset, config, self.model, output, progress=False, callbacks=[best])
            model = load_adversaries(result.model, output) if config.method == "asa" else result.model
        looks = {}
        if self.look_at is not None:
            looks["attention"] = look(model, result.tokenizer, dataset[self.look_at])
        if config.method == "asa":
            model.unwrap()
        metrics = result.metrics
        last_epoch = metrics["terms"][-metrics["steps"] // round(config.epochs) :]
        row = {key: metrics[key] for key in ("config", "rows", "steps", "results", "by_epoch")}
        # From the median, so that a machine that was paused or busy for a while does not count.
        seconds = metrics["seconds_per_step"]
        row |= {"seconds_per_step": seconds, "train_seconds": seconds * metrics["steps"], **looks}
        if "kept_share" in last_epoch[0]:
            shares = [term["kept_share"] for term in last_epoch]
            row["kept_share_last_epoch"] = [sum(layer) / len(layer) for layer in zip(*shares, strict=True)]
        if best.epoch == config.epochs:
            row["best"] = {"epoch": best.epoch, "results": metrics["results"]}
        else:
            result.model.load_state_dict(best.weights)
            scores = evaluate(result.model, result.tokenizer, dataset, max_length=64, progress=False)
            row["best"] = {"epoch": best.epoch, "results": scores}
        self.rows.append(row)
        about = environment() | {"command": shlex.join(["python", *sys.argv])}
        write_json(self.path, {**about, "rows": self.rows})


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
    main()
