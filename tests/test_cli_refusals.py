"""Everything that a user of the command line can get wrong is one line and exit code 2."""

import sys
import time

import pytest
import tiny_text
from huggingface_hub import constants
from transformers import BertModel

from asa_mini.cli import main


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model_name_or_path", "/no/such/folder"], ["cannot load model '/no/such/folder'"]),
        (["--method", "smoothing", "--strength", 2], ["strength must be a number from 0 to 1, but is 2.0"]),
        (["--temperature", "-0.5"], ["temperature must be a finite number >= 0", "-0.5"]),
        (["--temperature", "nan"], ["temperature must be a finite number >= 0", "nan"]),
        (["--layers", 0, 2], ["layers [2] are out of range", "0 to 1"]),
        (["--layers", -1], ["layers must be indices counted from 0, but are [-1]"]),
        (["--layers", 1, 1], ["a layer is attacked once, but layers are [1, 1]"]),
        (["--max_seq_length", 41], ["max_seq_length 41", "40 positions", "lower it"]),
        (["--max_seq_length", 0], ["max_seq_length must be a finite number > 0"]),
        (["--per_device_train_batch_size", 0], ["per_device_train_batch_size must be a finite number > 0"]),
        (["--num_train_epochs", "nan"], ["num_train_epochs must be a finite number > 0", "nan"]),
        (["--learning_rate", "inf"], ["learning_rate must be a finite number > 0"]),
        (["--adversary_learning_rate", 0], ["adversary_learning_rate must be a finite number > 0"]),
        (["--max_train_samples", 0], ["max_train_samples is 0", "at least 1"]),
        (["--seed", -1], ["seed must be from 0 to 4294967295", "-1"]),
        (["--seed", 2**32], ["seed must be from 0 to 4294967295"]),
        (["--plant", 1.5], ["agreement", "1.5"]),
        (["--plant", "nan"], ["agreement", "nan"]),
        (["--dataset_name", "shortcut", "--plant", 0.9], ["comes with planted words"]),
        (["--data_dir", "/no/such/folder"], ["no folder /no/such/folder"]),
        (
            ["--load_best_model_at_end", "--save_strategy", "no"],
            ["TrainingArguments refuses", "save_strategy"],
        ),
        (["--report_to", "no_such_tracker"], ["report_to: no_such_tracker", "not installed"]),
    ],
    ids=lambda value: "_".join(str(word).strip("-") for word in value).replace("/", "")[:40],
)
def test_unusable_options(train, refused, tmp_path, options, words):
    line = refused(train(*options))
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("dev.tsv", None, ["dev.tsv is missing"]),
        ("train.tsv", "", ["train.tsv is empty"]),
        (
            "train.tsv",
            "a fine film\t1\na dull film\t2\n",
            ["train.tsv, line 2: the label is '2'; it must be one of negative, positive, 0, 1"],
        ),
        ("train.tsv", "a fine film\tgood\n", ["line 1: the label is 'good'"]),
        (
            "train.tsv",
            "a fine film\na dull film\n",
            ["train.tsv, line 1 has 1 column(s)", "label"],
        ),
        ("test.tsv", "a fine film\t1\n\t0\n", ["test.tsv, line 2: the text is ''"]),
    ],
)
def test_unusable_data(train, refused, tmp_path, file, content, words):
    path = tmp_path / "data" / file
    path.unlink()
    if content is not None:
        path.write_text(content, encoding="utf-8")
    line = refused(train())
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


def test_output_that_is_taken_or_cannot_be_made(train, refused, tmp_path, capsys):
    assert train("--method", "naive") == 0
    before = (tmp_path / "run" / "metrics.json").read_bytes()
    capsys.readouterr()
    assert "already holds a run; choose another folder, or pass --overwrite_output_dir" in refused(train())
    again = "--overwrite_output_dir"
    assert "cannot load model" in refused(train(again, "--model_name_or_path", "/no/such/folder"))
    assert "files that are not a run" in refused(train(again, "--output_dir", tmp_path / "data"))
    file = tmp_path / "data" / "dev.tsv"
    assert "is a file" in refused(train("--output_dir", file))
    assert "dev.tsv" in refused(train("--output_dir", file / "run"))
    assert (tmp_path / "run" / "metrics.json").read_bytes() == before
    assert train(again, "--method", "rdrop") == 0
    assert (tmp_path / "run" / "metrics.json").read_bytes() != before


def test_no_network(train, refused, tmp_path, monkeypatch):
    monkeypatch.delenv("ASA_DATA_DIR", raising=False)
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    line = refused(train("--model_name_or_path", "someone/some-model"))
    assert "'someone/some-model'" in line and "hub that can be reached" in line
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    line = refused(train(data_dir=False))
    assert "cannot be fetched" in line and "--data_dir" in line
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert "hub that can be reached" in refused(train("--model_name_or_path", "someone/some-model"))
    assert pauses == [], "the hub's client retried"


def test_evaluate_refuses(model_folder, refused, tmp_path):
    data = tiny_text.write_files(tmp_path / "data")
    common = ["evaluate", "--model_name_or_path", model_folder, "--dataset_name", "sst2", "--data_dir", data]
    sizes = ["--max_seq_length", "30", "--per_device_eval_batch_size", "0"]
    assert "batch_size" in refused(main([*common, *sizes]))
    assert "40 positions" in refused(main(common))
    assert "max_seq_length" in refused(main([*common, "--max_seq_length", "0"]))
    assert "no folder" in refused(main([*common, "--output_file", str(tmp_path / "no" / "scores.json")]))
    encoder = tiny_text.save_model(tmp_path / "encoder", model_class=BertModel)
    assert "no trained head for classification" in refused(main([*common, "--model_name_or_path", encoder]))


def test_a_damaged_notebook_and_a_missing_one(refused, tmp_path):
    pytest.importorskip("papermill")
    (tmp_path / "bad.ipynb").write_text("not a notebook", encoding="utf-8")
    main = pytest.importorskip("asa_classroom.cli").main
    assert "bad.ipynb is not a valid notebook" in refused(main(["notebooks", str(tmp_path / "bad.ipynb")]))
    assert "no notebook" in refused(main(["notebooks", str(tmp_path / "none.ipynb")]))


def test_missing_extra(refused, tmp_path, monkeypatch):
    """`pip install .` alone brings the method; None stands for a package that is not installed."""
    monkeypatch.delitem(sys.modules, "asa_mini.train.run")
    monkeypatch.setitem(sys.modules, "datasets", None)
    code = main(["train", "--output_dir", str(tmp_path / "run"), "--weight_decay", "0.1"])
    assert "this needs datasets: pip install 'asa_mini[train]'" in refused(code)
