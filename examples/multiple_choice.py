"""Multiple choice: columns `text`, `choices` (a list of texts) and `label` (from 0), in JSON lines.

python examples/multiple_choice.py [FOLDER with train.jsonl and dev.jsonl] [MODEL]
"""

import sys
from functools import partial

from asa_mini.train.data import load_files
from asa_mini.train.models import load_model
from asa_mini.train.run import TrainConfig, train


def main(folder: str = ".", model: str = "default", **training):
    files = {"train": f"{folder}/train.jsonl", "dev": f"{folder}/dev.jsonl"}
    task, dataset = load_files(files, kind="multiple_choice")
    # Every choice is a sequence of its own, so a batch of 8 with 4 choices is as large as one of 32 texts.
    config = TrainConfig(per_device_train_batch_size=8, training=training)
    result = train(dataset, config, partial(load_model, model, kind=task.kind), output=f"{folder}/run")
    print(result.metrics["results"]["dev"])


if __name__ == "__main__":
    main(*sys.argv[1:])
