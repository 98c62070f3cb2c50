"""The measurements behind results/shortcut.json, results/sst2.json and results/planted.json.

    python results/experiments.py shortcut [--seeds 0 1 2] [--bf16]
    python results/experiments.py sst2     --data-dir DIR [--seeds 0 1 2] [--bf16]
    python results/experiments.py planted  --data-dir DIR [--seeds 0 1 2 3 4] [--bf16]

Every finished run is written at once; started again, the command goes on with the runs that are missing.
"""

import argparse
import copy
import json
import shlex
import sys
from functools import partial
from pathlib import Path

from datasets import DatasetDict
from transformers import TrainerCallback

from asa_mini.checkpoint import write_json
from asa_mini.data import load
from asa_mini.models import load_model
from asa_mini.training import TrainConfig, environment, evaluate, train
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
    parser.add_argument("what", choices=["shortcut", "sst2", "planted"])
    parser.add_argument("--data-dir", help="folder with sst2/train.tsv, dev.tsv, test.tsv; else the hub")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--bf16", action="store_true")
    arguments = parser.parse_args()
    {"shortcut": shortcut, "sst2": sst2, "planted": planted}[arguments.what](arguments)


def shortcut(arguments) -> None:
    """The shipped corpus in the regime of notebook 04: four layers, frozen embeddings, 2 epochs and 4."""
    small = partial(load_model, "default", num_layers=4, freeze_embeddings=True)
    table = Table("shortcut", arguments, partial(load, "shortcut"), small)
    bare = Table("shortcut_unplanted", arguments, unplanted, small)
    for seed in arguments.seeds:
        bare.run(seed, method="naive", learning_rate=1e-4, epochs=2.0)
        for epochs in (2.0, 4.0):
            table.run(seed, method="naive", learning_rate=1e-4, epochs=epochs)
        table.run(seed, method="rdrop", learning_rate=1e-4, epochs=2.0)
        for temperature in TEMPERATURES:
            table.run(seed, method="asa", temperature=temperature, learning_rate=1e-4, epochs=2.0)


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
    table = Table(
        "planted", arguments, lambda seed: load("sst2", arguments.data_dir, AGREEMENT, seed, SENTENCES)
    )
    for seed in arguments.seeds:
        for epochs in (3.0, 7.0):
            table.run(seed, method="naive", learning_rate=5e-5, epochs=epochs)
            table.run(seed, method="rdrop", learning_rate=5e-5, epochs=epochs)
            for temperature in (0.1, 0.3):
                table.run(seed, method="asa", temperature=temperature, learning_rate=5e-5, epochs=epochs)


class Table:
    """Rows of one experiment, kept in results/NAME.json."""

    def __init__(self, name: str, arguments, dataset, model=WHOLE_MODEL):
        self.path = FOLDER / f"{name}.json"
        self.rows = json.loads(self.path.read_text())["rows"] if self.path.exists() else []
        self.bf16, self.dataset, self.model = arguments.bf16, dataset, model

    def run(self, seed: int, **options) -> None:
        config = TrainConfig(seed=seed, bf16=self.bf16, max_length=64, **options)
        if any(row["config"] == vars(config) for row in self.rows):
            return
        print(f"{self.path.stem}: {options}, seed {seed}", flush=True)
        dataset = self.dataset(seed=seed)
        best = BestWeights()
        result = train(dataset, config, self.model, progress=False, callbacks=[best])
        metrics = result.metrics
        last_epoch = metrics["terms"][-metrics["steps"] // round(config.epochs) :]
        row = {key: metrics[key] for key in ("config", "rows", "steps", "results", "by_epoch")}
        # From the median, so that a machine that was paused or busy for a while does not count.
        seconds = metrics["seconds_per_step"]
        row |= {"seconds_per_step": seconds, "train_seconds": seconds * metrics["steps"]}
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


if __name__ == "__main__":
    main()
