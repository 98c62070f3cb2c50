"""A tiny text classifier in a folder, and the sentences it can read: what the training tests run on."""

from functools import partial

from datasets import Dataset, DatasetDict
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    TrainerCallback,
    set_seed,
)

from asa_mini import AsaConfig
from asa_mini.train.models import load_model, quiet_transformers
from asa_mini.train.run import TrainConfig, TrainResult, train

GOOD, BAD = ("fine", "bright", "lovely"), ("dull", "poor", "weak")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("a", "very", "and", "film", "story", "cast", "meanwhile", "recently", *GOOD, *BAD, "##s")


def sentences(n: int, offset: int = 0) -> dict[str, list]:
    """`n` sentences of different lengths; the label is 1 where the adjective is good."""
    texts, labels = [], []
    for i in range(offset, offset + n):
        label = i % 2
        adjective = (GOOD if label else BAD)[i // 2 % 3]
        noun = ("film", "story", "cast")[i // 6 % 3]
        texts.append(f"a {'very ' * (i % 3)}{adjective} {noun}{' and a story' * (i % 4)}")
        labels.append(label)
    return {"text": texts, "label": labels}


def dataset() -> DatasetDict:
    """Splits train (24 rows), dev (10) and test (9)."""
    sizes = {"train": (24, 0), "dev": (10, 24), "test": (9, 40)}
    return DatasetDict({split: Dataset.from_dict(sentences(*size)) for split, size in sizes.items()})


def tokenizer() -> BertTokenizerFast:
    """Knows `WORDS`, and that "films" is "film" and "##s"."""
    return BertTokenizerFast(vocab={word: index for index, word in enumerate((*SPECIAL, *WORDS))})


def save_model(folder, model_class=BertForSequenceClassification, **options) -> str:
    """Write a random BERT (2 layers, 32 wide, 40 positions, 2 labels) and its tokenizer to `folder`."""
    words = tokenizer()
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    set_seed(0)
    config = BertConfig(**{"vocab_size": len(words), "max_position_embeddings": 40, **size, **options})
    with quiet_transformers():
        model_class(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def write_files(folder) -> str:
    """Write the dataset to `folder` in the format of sst2."""
    folder.mkdir(exist_ok=True)
    for split, rows in dataset().items():
        lines = (f"{row['text']}\t{row['label']}\n" for row in rows)
        (folder / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")
    return str(folder)


CONFIG = {
    "asa": AsaConfig(temperature=0.3),
    "num_train_epochs": 2.0,
    "per_device_train_batch_size": 8,
    "max_seq_length": 30,
    "learning_rate": 1e-3,
}


def run(folder, method="asa", output=None, data=None, load=None, **options) -> TrainResult:
    """A training run of 6 steps, with the model of `folder`; `options` of `train` or of TrainConfig."""
    given = {name: options.pop(name) for name in ("overwrite", "callbacks", "resume") if name in options}
    shown = options.pop("progress", False)
    config = TrainConfig(method=method, **{**CONFIG, **options})
    load = load or partial(load_model, folder)
    return train(data or dataset(), config, load, output, progress=shown, about={"dataset": "tiny"}, **given)


class At(TrainerCallback):
    """Calls `action(model)` at the begin of one step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 == self.step:
            self.action(model)
