"""A score for each pair of sentences; the divergence compares scores by their squared difference.

python examples/regression.py [FOLDER with train.tsv and dev.tsv] [MODEL]
"""

import sys
from functools import partial

from asa_mini import AsaConfig
from asa_mini.train.data import load_files
from asa_mini.train.models import load_model
from asa_mini.train.run import TrainConfig, train


def main(folder: str = ".", model: str = "default", **training):
    files = {"train": f"{folder}/train.tsv", "dev": f"{folder}/dev.tsv"}
    columns = {"text": "sentence1", "text_pair": "sentence2", "label": "score"}
    task, dataset = load_files(files, **columns, kind="regression")
    config = TrainConfig(asa=AsaConfig(regression_likelihood="gaussian"), training=training)
    result = train(dataset, config, partial(load_model, model, kind=task.kind), output=f"{folder}/run")
    print(result.metrics["results"]["dev"])  # Spearman and Pearson correlation


if __name__ == "__main__":
    main(*sys.argv[1:])
