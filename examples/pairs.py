"""Pairs of texts and their class: columns `premise`, `hypothesis` and `label`, in JSON lines.

python examples/pairs.py [FOLDER with train.jsonl and dev.jsonl] [MODEL]
"""

import sys
from functools import partial

from asa_mini.train.data import load_files
from asa_mini.train.models import load_model
from asa_mini.train.run import TrainConfig, train


def main(folder: str = ".", model: str = "default", **training):
    files = {"train": f"{folder}/train.jsonl", "dev": f"{folder}/dev.jsonl"}
    task, dataset = load_files(files, text="premise", text_pair="hypothesis")
    load = partial(load_model, model, len(task.labels), kind=task.kind)
    result = train(dataset, TrainConfig(training=training), load, output=f"{folder}/run")
    print(task.labels, result.metrics["results"]["dev"])


if __name__ == "__main__":
    main(*sys.argv[1:])
