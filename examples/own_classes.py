"""Your own CSV with any number of classes: columns `review` and `topic`.

python examples/own_classes.py [FOLDER with train.csv and dev.csv] [MODEL]
"""

import sys
from functools import partial

from asa_mini import AsaConfig
from asa_mini.train.data import load_files
from asa_mini.train.models import load_model
from asa_mini.train.run import TrainConfig, train


def main(folder: str = ".", model: str = "default", **training):
    files = {"train": f"{folder}/train.csv", "dev": f"{folder}/dev.csv"}
    task, dataset = load_files(files, text="review", label="topic")
    load = partial(load_model, model, len(task.labels), kind=task.kind)
    config = TrainConfig(asa=AsaConfig(temperature=0.3), num_train_epochs=3, training=training)
    result = train(dataset, config, load, output=f"{folder}/run")  # a plain checkpoint, and metrics.json
    print(task.labels, result.metrics["results"]["dev"])


if __name__ == "__main__":
    main(*sys.argv[1:])
