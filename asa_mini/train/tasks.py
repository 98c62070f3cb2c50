"""Every task by its name: columns, labels, metrics and files. A new one is one more entry of `TASKS`."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from asa_mini.errors import InputError

Kind = Literal["classification", "regression", "multi_label", "tokens", "multiple_choice"]
KINDS: tuple[str, ...] = get_args(Kind)
# Of a kind whose task names none. F1 beside accuracy, because classes of one's own are seldom balanced.
METRICS = {
    "classification": ("accuracy", "f1_macro"),
    "regression": ("spearman", "pearson"),
    "multi_label": ("f1_micro", "f1_macro"),
    "tokens": ("entity_f1",),
    "multiple_choice": ("accuracy",),
}


@dataclass(frozen=True)
class Hub:
    """Files of a dataset repository at one commit, for each split one or several that follow each other."""

    repo: str
    revision: str
    files: Mapping[str, str | tuple[str, ...]]

    def __post_init__(self):
        if not re.fullmatch("[0-9a-f]{40}", self.revision):
            raise InputError(f"{self.repo} needs a commit of 40 hex digits, but has {self.revision!r}")


@dataclass(frozen=True)
class Task:
    """What a dataset is read into, and how.

    Args:
        text, text_pair: columns of what is read; of tokens the words, of multiple choice the context.
        label: column of the class (name or number), score, list of classes, tags, or number of the choice.
        choices: column of the texts to choose from.
        labels: names of the labels 0, 1, ...; () finds them in the training set.
        metrics: of the evaluation, the first one first; () takes METRICS of the kind.
        files: of each split, in the folder `folder` (default: `name`) of the data folder. Several files
            follow each other, or in the format "parallel" hold one column each.
        format: see `reading.read_rows`. columns: of a table, by position; () takes its header's. A last "*"
            stands for any more. header: what the first line must say; () means that there is none.
        key: under which a JSON file holds the rows.
        scores: lowest and highest possible score.
        first_of: keep the first row of each value of this column.
        group: columns by which accuracy is reported, too.
        convert: makes the columns above of a row as it was read.
        note: a word for the list of tasks.
    """

    name: str
    kind: Kind | None  # None: found in the training set
    text: str = "sentence"
    text_pair: str | None = None
    label: str = "label"
    choices: str = "choices"
    labels: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    files: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    folder: str = ""
    format: str = "tsv"
    columns: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    key: str = ""
    scores: tuple[float, float] | None = None
    first_of: str = ""
    group: tuple[str, ...] = ()
    convert: Callable[[dict], dict] | None = None
    hub: Hub | None = None
    note: str = ""


def find_task(name: str) -> Task:
    """The task of this name; InputError names those that there are."""
    if name not in TASKS:
        raise InputError(f"unknown dataset {name!r}; choose one of {', '.join(TASKS)}, or a hub's user/name")
    return TASKS[name]


def iob(*entities: str) -> tuple[str, ...]:
    """Tags O, B-X, I-X, ... of entities X, in the order that the hub's copies number them."""
    return ("O", *(f"{place}-{entity}" for entity in entities for place in "BI"))


def as_tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def splits(suffix: str, *names: str) -> dict[str, str]:
    """File names by split, train.SUFFIX and so on."""
    return {name: f"{name}.{suffix}" for name in names or ("train", "dev", "test")}


def _dream(row: dict) -> dict:
    answers = [f"{row['question']} {choice}" for choice in row["choice"]]
    # An answer that is no choice stays as it is, and is refused as a label.
    label = row["choice"].index(row["answer"]) if row["answer"] in row["choice"] else row["answer"]
    return row | {"text": " ".join(row["dialogue"]), "choices": answers, "label": label}


def _swag(row: dict) -> dict:
    return row | {"choices": [f"{row['sent2']} {row[f'ending{i}']}" for i in range(4)]}


def _hub(repo: str, revision: str, pattern: str) -> Hub:
    theirs = {"train": "train", "dev": "validation", "test": "test"}
    return Hub(repo, revision, {split: pattern.format(name) for split, name in theirs.items()})


def _glue(config: str, dev: str = "validation", **more: str) -> Hub:
    names = {"train": "train", "dev": dev, **more}
    files = {split: f"{config}/{name}-00000-of-00001.parquet" for split, name in names.items()}
    return Hub("nyu-mll/glue", "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c", files)


def _anli() -> Hub:
    def file(split, turn):
        return f"plain_text/{split}_r{turn}-00000-of-00001.parquet"

    rounds = {f"{split}_r{turn}": file(split, turn) for turn in (1, 2, 3) for split in ("dev", "test")}
    whole = {split: tuple(file(split, turn) for turn in (1, 2, 3)) for split in ("train", "dev")}
    return Hub("facebook/anli", "8e4813d81f46d313dac7892e1c28076917cfcdf9", whole | rounds)


SENTIMENT = ("negative", "positive")
NLI = ("entailment", "neutral", "contradiction")
RTE = ("entailment", "not_entailment")
SAME = ("not_equivalent", "equivalent")
TWO = {"text": "sentence1", "text_pair": "sentence2"}
NLI_PAIR = {"text": "premise", "text_pair": "hypothesis", "labels": NLI, "metrics": ("accuracy",)}
PLAIN = {"labels": SENTIMENT, "metrics": ("accuracy",)}
CORPUS = ("text", "label", "position")
DREAM = Task(
    "dream", "multiple_choice", text="text", format="dream", files=splits("json"), convert=_dream,
    hub=_hub("dataset-org/dream", "ca4c45feaf089ecfc37579eb2c594375f70dbfd5", "plain_text/{}/0000.parquet"),
    note="every question",
)  # fmt: skip

_LIST = [
    Task(
        "shortcut", "classification", text="text", **PLAIN, columns=CORPUS, header=CORPUS,
        files=splits("tsv", "train", "dev", "iid", "neutral", "flipped"),
        note="shipped, generated, with a planted word",
    ),
    Task(
        "sst2", "classification", text="text", **PLAIN, columns=("text", "label"), files=splits("tsv"),
        hub=Hub("SetFit/sst2", "00ea8ccb7a54b4e3780a3e51aa3f80361ff849c0", splits("jsonl")),
        note="whole sentences",
    ),
    Task(
        "sst2_glue", "classification", **PLAIN, columns=("sentence", "label"), header=("sentence", "label"),
        files=splits("tsv"), hub=_glue("sst2"), note="phrases, as in GLUE",
    ),
    Task(
        "cola", "classification", labels=("unacceptable", "acceptable"), files=splits("tsv", "train", "dev"),
        metrics=("matthews_correlation", "accuracy"), columns=("source", "label", "mark", "sentence"),
        hub=_glue("cola"),
    ),
    Task(
        "mrpc", "classification", **TWO, labels=SAME, metrics=("accuracy", "f1"), files=splits("tsv"),
        columns=("label", "id1", "id2", "sentence1", "sentence2"),
        header=("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"), hub=_glue("mrpc", test="test"),
    ),
    Task(
        "qqp", "classification", "question1", "question2", labels=("not_duplicate", "duplicate"),
        metrics=("accuracy", "f1"), columns=("id", "qid1", "qid2", "question1", "question2", "label"),
        header=("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
        files=splits("tsv", "train", "dev"), hub=_glue("qqp"),
    ),
    Task(
        "mnli", "classification", **NLI_PAIR, format="jsonl",
        files={
            "train": "train.jsonl", "dev": "dev_matched.jsonl", "mismatched": "dev_mismatched.jsonl",
        },
        hub=_glue("mnli", "validation_matched", mismatched="validation_mismatched"),
        note="dev is matched",
    ),
    Task(
        "qnli", "classification", "question", "sentence", labels=RTE, metrics=("accuracy",),
        columns=("index", "question", "sentence", "label"), header=("index", "question", "sentence", "label"),
        files=splits("tsv", "train", "dev"), hub=_glue("qnli"),
    ),
    Task(
        "rte", "classification", **TWO, labels=RTE, metrics=("accuracy",),
        columns=("index", "sentence1", "sentence2", "label"),
        header=("index", "sentence1", "sentence2", "label"),
        files=splits("tsv", "train", "dev"), hub=_glue("rte"),
    ),
    Task(
        "stsb", "regression", **TWO, scores=(0, 5), files=splits("csv"),
        columns=("genre", "file", "year", "id", "label", "sentence1", "sentence2", "*"), hub=_glue("stsb"),
    ),
    Task("anli", "classification", **NLI_PAIR, format="jsonl", files={
        split: f"{split}.jsonl" for split in _anli().files
    }, hub=_anli(), note="all rounds, dev and test by round"),
    Task(
        "paws", "classification", **TWO, labels=SAME, metrics=("accuracy", "f1"), format="parquet",
        files=splits("parquet"), note="labelled as mrpc is",
        hub=_hub("google-research-datasets/paws", "161ece9501cf0a11f3e48bd356eaa82de46d6a09",
                 "labeled_final/{}-00000-of-00001.parquet"),
    ),
    Task(
        "pawsx_en", "classification", **TWO, labels=SAME, metrics=("accuracy", "f1"),
        columns=("sentence1", "sentence2", "label"), files=splits("tsv", "dev"), note="labelled as mrpc is",
    ),
    Task(
        "xnli_en", "classification", **NLI_PAIR, columns=("premise", "hypothesis", "label"),
        files=splits("tsv", "dev"),
        hub=Hub("facebook/xnli", "b8dd5d7af51114dbda02c0e3f6133f332186418e",
                {"dev": "en/validation-00000-of-00001.parquet"}),
    ),
    Task(
        "mnli_hard", "classification", **NLI_PAIR, format="parallel",
        columns=("premise", "hypothesis", "label"), files={"test": ("s1.test", "s2.test", "labels.test")},
    ),
    Task(
        "cad_imdb", "classification", text="Text", label="Sentiment", labels=("Negative", "Positive"),
        metrics=("accuracy",), format="quoted_tsv",
        files={
            "train": "orig-train.tsv", "dev": "orig-dev.tsv", "test": "orig-test.tsv",
            "revised": "new-test.tsv",
        },
        note="revised: the minimally edited test",
    ),
    Task(
        "cad_nli", "classification", **TWO, label="gold_label", labels=NLI, metrics=("accuracy",),
        format="quoted_tsv",
        files={
            "train": "original-train.tsv", "dev": "original-dev.tsv", "test": "original-test.tsv",
            "revised": "revised_combined-test.tsv",
        },
        note="SNLI; revised: the minimally edited test",
    ),
    Task(
        "hans", "classification", **TWO, label="gold_label", labels=("entailment", "non-entailment"),
        metrics=("accuracy",),
        group=("heuristic", "gold_label"), files=splits("tsv", "test"), note="by heuristic and label",
    ),
    *(
        Task(
            f"advglue_{key.replace('-', '_')}", "classification", *columns, labels=labels,
            metrics=("accuracy",), format="json", key=key, folder="advglue", files=splits("json", "dev"),
        )
        for key, columns, labels in (
            ("sst2", ("sentence",), SENTIMENT),
            ("qqp", ("question1", "question2"), ("not_duplicate", "duplicate")),
            ("mnli", ("premise", "hypothesis"), NLI),
            ("mnli-mm", ("premise", "hypothesis"), NLI),
            ("qnli", ("question", "sentence"), RTE),
            ("rte", ("sentence1", "sentence2"), RTE),
        )
    ),
    Task(
        "wnut17", "tokens", "tokens", label="ner_tags", format="conll", columns=("tokens", "ner_tags"),
        labels=iob("corporation", "creative-work", "group", "location", "person", "product"),
        files=splits("conll"),
        hub=_hub("leondz/wnut_17", "1ac0b6d18c8a1a1d1606b24bef78b8af2f92d2d9", "wnut_17/{}/0000.parquet"),
    ),
    Task(
        "conll2003", "tokens", "tokens", label="ner_tags", format="conll",
        labels=iob("PER", "ORG", "LOC", "MISC"), columns=("tokens", "pos", "chunk", "ner_tags"),
        files=splits("txt"),
        hub=_hub("lhoestq/conll2003", "19edcb426bfd625c275c17b9a99b2239243f4377",
                 "data/{}-00000-of-00001.parquet"),
    ),
    DREAM,
    replace(  # the authors' figure is of this one, on the test set, with sequences of 128 tokens
        DREAM, name="dream_first", folder="dream", first_of="dialogue_id",
        note="the authors' protocol: the first question of each dialogue, 128 tokens",
    ),
    Task(
        "hellaswag", "multiple_choice", "ctx", choices="endings", format="jsonl", files=splits("jsonl"),
        hub=Hub("Rowan/hellaswag", "218ec52e09a7e7462a5400043bb9a69a41d06b76", {
            "train": "data/train-00000-of-00001.parquet", "dev": "data/validation-00000-of-00001.parquet",
        }),
    ),
    Task(
        "swag", "multiple_choice", "sent1", format="csv", convert=_swag,
        files={"train": "train.csv", "dev": "val.csv"},
    ),
]  # fmt: skip
TASKS: dict[str, Task] = {task.name: task for task in _LIST}
