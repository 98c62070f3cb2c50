"""Named entities from CoNLL files: a word and its tag on each line, an empty line between sentences.

python examples/tagger.py [FOLDER with train.conll and dev.conll] [MODEL]
"""

import sys
from functools import partial

from asa_mini import AsaConfig
from asa_mini.train.data import load_files
from asa_mini.train.models import load_model
from asa_mini.train.run import TrainConfig, train


def main(folder: str = ".", model: str = "default", **training):
    task, dataset = load_files({"train": f"{folder}/train.conll", "dev": f"{folder}/dev.conll"})
    load = partial(load_model, model, len(task.labels), kind=task.kind)
    asa = AsaConfig(divergence_over="real_tokens")  # padding takes no part, and length does not matter
    result = train(dataset, TrainConfig(asa=asa, training=training), load, output=f"{folder}/run")
    print(task.labels, result.metrics["results"]["dev"])  # F1 of whole entities


if __name__ == "__main__":
    main(*sys.argv[1:])
