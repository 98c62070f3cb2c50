"""Every kind of task through the command line, on files of one's own: train, evaluate again, predict."""

import csv
import json

import numpy as np
import pytest
import tiny_text
from datasets import ClassLabel, Dataset, DatasetDict
from transformers import AutoConfig, BertModel

from asa_mini.cli import main
from asa_mini.train import tokenizing
from asa_mini.train.evaluation import evaluate, predict
from asa_mini.train.metrics import Scorer
from asa_mini.train.models import load_model
from asa_mini.train.tokenizing import collator, tokenize

SENTENCES = [
    f"a {'very ' * (i % 3)}{word} film" for i, word in enumerate((*tiny_text.GOOD, *tiny_text.BAD) * 4)
]
STARS = [str(i % 4 + 1) for i in range(24)]
TAGS = ["O", "B-film"]
ROWS = {  # kind -> rows, suffix, options
    "classification": (
        [{"review": text, "stars": star} for text, star in zip(SENTENCES, STARS, strict=True)],
        ("csv", "--text_column", "review", "--label_column", "stars"),
    ),
    "regression": (
        [{"a": text, "b": "a film", "label": i / 4} for i, text in enumerate(SENTENCES)],
        ("tsv", "--text_column", "a", "--text_pair_column", "b"),
    ),
    "multi_label": (
        [{"text": text, "label": ["good", "long"][i % 2 : 1 + i % 3]} for i, text in enumerate(SENTENCES)],
        ("jsonl",),
    ),
    "tokens": (
        [{"tokens": text.split(), "label": [TAGS[w == "film"] for w in text.split()]} for text in SENTENCES],
        ("jsonl",),
    ),
    "multiple_choice": (
        [
            {"text": text, "choices": ["a film", "a very dull story"], "label": i % 2}
            for i, text in enumerate(SENTENCES)
        ],
        ("jsonl",),
    ),
}
EXPECTED = {  # kind -> labels, metrics, ending of the model's name
    "classification": (["1", "2", "3", "4"], ["accuracy", "f1_macro"], "SequenceClassification"),
    "regression": (["LABEL_0"], ["spearman", "pearson"], "SequenceClassification"),
    "multi_label": (["good", "long"], ["f1_micro", "f1_macro"], "SequenceClassification"),
    "tokens": (["B-film", "O"], ["entity_f1"], "TokenClassification"),
    "multiple_choice": (["LABEL_0"], ["accuracy"], "MultipleChoice"),
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny_text.save_model(tmp_path_factory.mktemp("encoder"), model_class=BertModel)


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="," if path.suffix == ".csv" else "\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


def command(*words):
    return main([str(word) for word in words])


@pytest.mark.parametrize("kind", ROWS)
def test_train_evaluate_predict(encoder, tmp_path, capsys, kind):
    rows, (suffix, *columns) = ROWS[kind]
    files = {
        split: write(tmp_path / f"{split}.{suffix}", rows[start:])
        for split, start in (("train", 0), ("dev", 9))
    }
    run, options = tmp_path / "run", ("--max_seq_length", 12)
    given = ["--train_file", files["train"], "--validation_file", files["dev"], *columns, *options]
    given += ["--model_name_or_path", encoder, "--output_dir", run, "--max_steps", 2]
    assert command("train", *given, "--per_device_train_batch_size", 8) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(f"read as {kind} (") and "rows train 24, dev 15;" in first

    labels, metrics, head = EXPECTED[kind]
    written = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert (written["kind"], written["labels"], written["metrics"]) == (kind, labels, metrics)
    assert set(written["terms"][0]) >= {"task_loss", "divergence", "pay"}, "it was trained under ASA"
    config = AutoConfig.from_pretrained(run)
    assert config.architectures[0].endswith(head) and [*config.id2label.values()] == labels
    kept = np.load(run / "predictions.npz")
    assert len(kept["dev/predictions"]) == len(kept["dev/labels"]) == 15

    # The columns, lengths and names of the run, and nothing but the file that is evaluated.
    output = tmp_path / "scores.json"
    given = "--model_name_or_path", run, "--test_file", files["dev"], "--output_file", output
    assert command("evaluate", *given, "--quiet") == 0
    again = json.loads(output.read_text(encoding="utf-8"))["results"]["test"]
    # Untrained scores differ by less than rounding, so that ranks may change.
    assert again == pytest.approx(written["results"]["dev"], rel=1e-4, abs=0.05 * (kind == "regression"))

    table = kind in ("classification", "regression", "multi_label")
    output = tmp_path / ("out.csv" if table else "out.jsonl")
    command("predict", "--model_name_or_path", run, "--test_file", files["dev"], "--output_file", output)
    if table:
        found = list(csv.DictReader(output.open(newline="", encoding="utf-8")))
    else:
        found = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert len(found) == 15
    predictions = [row["prediction"] for row in found]
    if kind == "classification":
        assert predictions == [labels[i] for i in kept["dev/predictions"]]
        assert [labels[i] for i in kept["dev/labels"]] == STARS[9:], "in the order of the file"
        assert found[0]["text"] == SENTENCES[9]
        assert sum(float(found[0][f"probability {label}"]) for label in labels) == pytest.approx(1)
    if kind == "tokens":
        tagged = [
            [labels[i] for i in row[real >= 0]]
            for row, real in zip(kept["dev/predictions"], kept["dev/labels"], strict=True)
        ]
        assert predictions == tagged and len(predictions[0]) == len(rows[9]["tokens"])


def test_labels_of_words_stand_at_their_first_pieces(encoder):
    _, tokenizer = load_model(encoder, kind="tokens")
    words = Dataset.from_dict({"tokens": [["a", "films", "story"]], "label": [[0, 1, 2]]})
    rows = tokenize(DatasetDict({"test": words}), tokenizer, 5)["test"]
    assert tokenizer.convert_ids_to_tokens(rows[0]["input_ids"]) == ["[CLS]", "a", "film", "##s", "[SEP]"]
    assert (rows[0]["labels"], rows[0]["length"]) == ([-100, 0, 1, -100, -100], 6)
    assert collator("tokens", tokenizer)([rows[0]])["labels"].tolist() == [[-100, 0, 1, -100, -100]]


def test_words_that_were_cut_have_no_prediction(encoder):
    model, tokenizer = load_model(encoder, kind="tokens")
    rows = Dataset.from_dict({"tokens": [["a", "films", "story"]]})
    (found,) = predict(model, tokenizer, rows, max_length=5, progress=False)
    assert [tag is None for tag in found["prediction"]] == [False, False, True]


def test_tokens_are_kept_on_disk_where_that_pays(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizing.datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(tokenizing, "CACHED_ROWS", 20)
    _, tokenizer = load_model(encoder)
    dataset, calls = tiny_text.dataset(), []
    encode = tokenizing._encode
    monkeypatch.setattr(tokenizing, "_encode", lambda *given: calls.append(1) or encode(*given))
    first, again = (tokenize(dataset, tokenizer, 12) for _ in range(2))
    assert len(calls) == 1 + 2 + 2, "the training set once, dev and test, which are smaller, twice"
    assert first["train"].to_dict() == again["train"].to_dict() and len([*tmp_path.rglob("*.arrow")]) == 1
    shorter = tokenize(dataset, tokenizer, 5)["train"]
    assert max(map(len, shorter["input_ids"])) == 5, "another length is another file"


def test_hans_is_scored_in_two_classes_and_by_group(encoder):
    names = {0: "neutral", 1: "entailment", 2: "contradiction"}
    model, tokenizer = load_model(encoder, num_labels=3)
    model.config.id2label = names
    features = {"text": ["a film"] * 4, "text_pair": ["a story"] * 4, "group": list("xxyy")}
    hans = Dataset.from_dict(features | {"label": [0, 1, 1, 1]})
    hans = hans.cast_column("label", ClassLabel(names=["entailment", "non-entailment"]))
    model.classifier.weight.data.zero_()
    model.classifier.bias.data = model.classifier.bias.data.new_tensor([0.0, 0.0, 1.0])  # contradiction
    scores = evaluate(model, tokenizer, DatasetDict({"test": hans}), max_length=12, progress=False)["test"]
    assert scores["accuracy"] == 0.75 and scores["by_group"] == {"x": 0.5, "y": 1.0}


def test_metrics():
    class Prediction:
        def __init__(self, predictions, labels):
            self.predictions, self.label_ids = np.array(predictions), np.array(labels)

    two = Prediction([[1, 0], [0, 1], [0, 1], [1, 0]], [0, 1, 0, 0])
    scores = Scorer("classification", "ab", ("accuracy", "f1", "matthews_correlation"))(two)
    assert scores == pytest.approx({"accuracy": 0.75, "f1": 2 / 3, "matthews_correlation": 3**-0.5})
    scores = Scorer("regression", ["x"])(Prediction([[1], [3], [2.0]], [0.0, 5.0, 1.0]))
    assert scores == pytest.approx({"spearman": 1.0, "pearson": 0.9449112}, rel=1e-6)
    assert Scorer("regression", ["x"])(Prediction([[1], [1.0]], [0.0, 5.0])) == {"spearman": 0, "pearson": 0}
    assert Scorer("multi_label", "ab", ("f1_micro",))(Prediction([[1, -1], [1, 1]], [[1, 0], [0, 1]])) == {
        "f1_micro": pytest.approx(0.8)
    }
    tags = np.eye(3)[[[0, 1, 2, 0], [1, 0, 0, 1]]]  # B-x I-x, and a piece and padding that do not count
    labels = [[-100, 1, 2, 0], [1, 0, 2, -100]]
    assert Scorer("tokens", ["O", "B-x", "I-x"])(Prediction(tags, labels)) == {
        "entity_f1": pytest.approx(0.8)
    }
