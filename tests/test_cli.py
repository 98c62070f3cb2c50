"""The command line: what it prints, and that everything a user can get wrong is one line and exit code 2."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_text
from huggingface_hub import constants
from transformers import BertModel

from asa_mini.cli import build_parser, main
from asa_mini.train import run as training


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_text.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def train(model, tmp_path):
    """train(option, value, ...): run `train` on the tiny model and the files in `data`."""
    data = tiny_text.write_files(tmp_path / "data")

    def train(*options, data_dir=True):
        basic = {"--model": model, "--dataset": "sst2", "--output": tmp_path / "run"}
        basic |= {"--epochs": 1, "--batch-size": 8, "--max-length": 30}
        basic |= {"--data-dir": data} if data_dir else {}
        return main(["train", *(str(word) for pair in basic.items() for word in pair), *map(str, options)])

    return train


@pytest.fixture
def refused(capsys):
    """refused(exit code): the error's line, after checking that there is no other."""

    def refused(code):
        assert code == 2
        out, err = capsys.readouterr()
        assert out == "" and len(err.splitlines()) == 1 and err.startswith("asa_mini: error: ")
        return err

    return refused


def table(text: str) -> dict[str, str]:
    """Accuracy by split, from what a command printed."""
    lines = text[text.index("split ") :].splitlines()[1:]
    return {line.split()[0]: line.split()[2] for line in lines if "%" in line}


def test_train_then_evaluate(train, tmp_path, capsys):
    assert train("--plant", 0.9, "--limit", 10, "--temperature", 0.2, "--layers", 1, "--seed", 3) == 0
    out = capsys.readouterr().out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["rows"]["train"] == 10 and metrics["dataset"] == "sst2" and metrics["plant"] == 0.9
    config = metrics["config"]
    assert (config["method"], config["temperature"], config["layers"], config["seed"]) == ("asa", 0.2, [1], 3)
    expected = {split: f"{row['accuracy']:.1%}" for split, row in metrics["results"].items()}
    assert table(out) == expected and list(expected) == ["dev", "iid", "neutral", "flipped"]
    assert "95 % interval" in out and f"written to {tmp_path / 'run'}" in out

    again = ["evaluate", "--model", tmp_path / "run", "--dataset", "sst2", "--data-dir", tmp_path / "data"]
    again += ["--plant", 0.9, "--seed", 3, "--max-length", 30, "--output", tmp_path / "scores.json"]
    assert main(list(map(str, again))) == 0
    assert table(capsys.readouterr().out) == expected
    scores = json.loads((tmp_path / "scores.json").read_text())["results"]
    for split, row in metrics["results"].items():
        assert scores[split] == pytest.approx(row)


def test_data_folder_from_the_environment(train, tmp_path, monkeypatch):
    monkeypatch.setenv("ASA_DATA_DIR", str(tmp_path / "data"))
    assert train("--method", "smoothing", "--strength", 0.2, data_dir=False) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dataset", "imdb"], ["unknown dataset 'imdb'", "shortcut, sst2"]),
        (["--model", "/no/such/folder"], ["cannot load model '/no/such/folder'"]),
        (["--method", "smoothing", "--strength", 2], ["strength of a prior must be from 0 to 1, but is 2.0"]),
        (["--method", "freelb"], ["unknown method 'freelb'", "asa, rdrop, naive"]),
        (["--select", "first"], ["select must be 'last' or 'best'"]),
        (["--temperature", "-0.5"], ["temperature must be a finite number >= 0", "-0.5"]),
        (["--temperature", "nan"], ["temperature must be a finite number >= 0", "nan"]),
        (["--layers", 0, 2], ["layers [2] are out of range", "0 to 1"]),
        (["--layers", -1], ["layers [-1] are out of range"]),
        (["--max-length", 41], ["max_length 41", "40 positions", "lower it"]),
        (["--max-length", 0], ["max_length must be a finite number > 0"]),
        (["--batch-size", 0], ["batch_size must be a finite number > 0", "0"]),
        (["--epochs", 0], ["epochs must be a finite number > 0"]),
        (["--epochs", "nan"], ["epochs must be a finite number > 0", "nan"]),
        (["--learning-rate", "inf"], ["learning_rate must be a finite number > 0"]),
        (["--adversary-learning-rate", 0], ["adversary_learning_rate must be a finite number > 0"]),
        (["--limit", 0], ["limit is 0", "at least 1"]),
        (["--seed", -1], ["seed must be from 0 to 4294967295", "-1"]),
        (["--seed", 2**32], ["seed must be from 0 to 4294967295"]),
        (["--plant", 1.5], ["agreement", "1.5"]),
        (["--plant", "nan"], ["agreement", "nan"]),
        (["--dataset", "shortcut", "--plant", 0.9], ["comes with planted words"]),
        (["--data-dir", "/no/such/folder"], ["no folder /no/such/folder"]),
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
        ("train.tsv", "a fine film\t1\na dull film\t2\n", ["train.tsv, line 2: label 2 is outside 0..1"]),
        ("train.tsv", "a fine film\tgood\n", ["line 1: label 'good' is not an integer"]),
        ("train.tsv", "a fine film\na dull film\n", ["train.tsv has 1 tab-separated column(s)", "label"]),
        ("test.tsv", "a fine film\t1\n\t0\n", ["test.tsv, line 2: the text is missing (or null)"]),
        ("dev.tsv", "a fine film\t1\n3.5\t0\n", ["dev.tsv, line 2: the text is the number '3.5'"]),
    ],
)
def test_unusable_data(train, refused, tmp_path, file, content, words):
    path = tmp_path / "data" / file
    path.unlink()
    if content is not None:
        path.write_text(content)
    line = refused(train())
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


def test_output_that_is_taken_or_cannot_be_made(train, refused, tmp_path, capsys):
    assert train("--method", "naive") == 0
    before = (tmp_path / "run" / "metrics.json").read_bytes()
    capsys.readouterr()
    assert "already holds a run; choose another folder, or pass --overwrite" in refused(train())
    assert "unknown dataset" in refused(train("--overwrite", "--dataset", "imdb"))
    assert "cannot load model" in refused(train("--overwrite", "--model", "/no/such/folder"))
    assert "files that are not a run" in refused(train("--overwrite", "--output", tmp_path / "data"))
    file = tmp_path / "data" / "dev.tsv"
    assert "is a file" in refused(train("--output", file))
    assert "dev.tsv" in refused(train("--output", file / "run"))
    assert (tmp_path / "run" / "metrics.json").read_bytes() == before
    assert train("--overwrite", "--method", "rdrop") == 0
    assert (tmp_path / "run" / "metrics.json").read_bytes() != before


def test_a_loss_that_is_not_finite(train, tmp_path, capsys):
    assert train("--learning-rate", 1e30, "--epochs", 3) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("asa_mini: error: ") and "at step" in last and "learning rate" in last
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_ctrl_c(train, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        training.StepClock, "on_step_end", lambda *args, **kwargs: signal.raise_signal(signal.SIGINT)
    )
    assert train() == 130
    assert capsys.readouterr().err.splitlines()[-1] == "asa_mini: interrupted"
    assert not (tmp_path / "run").exists()


def test_no_network(train, refused, tmp_path, monkeypatch):
    monkeypatch.delenv("ASA_DATA_DIR", raising=False)
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    line = refused(train("--model", "someone/some-model"))
    assert "'someone/some-model'" in line and "hub that can be reached" in line
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    line = refused(train(data_dir=False))
    assert "cannot be fetched from the hub" in line and "--data-dir" in line
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert "hub that can be reached" in refused(train("--model", "someone/some-model"))
    assert pauses == [], "the hub's client retried"


def test_evaluate_refuses(model, refused, tmp_path):
    data = tiny_text.write_files(tmp_path / "data")
    common = ["evaluate", "--model", model, "--dataset", "sst2", "--data-dir", data]
    assert "batch_size" in refused(main([*common, "--max-length", "30", "--batch-size", "0"]))
    assert "40 positions" in refused(main(common))
    assert "max_length" in refused(main([*common, "--max-length", "0"]))
    assert "no folder" in refused(main([*common, "--output", str(tmp_path / "no" / "scores.json")]))
    encoder = tiny_text.save_model(tmp_path / "encoder", model_class=BertModel)
    assert "no trained classification head" in refused(main([*common, "--model", encoder]))


def test_a_failed_notebook_is_1_and_a_missing_one_2(refused, tmp_path, capsys):
    pytest.importorskip("papermill")
    (tmp_path / "bad.ipynb").write_text("not a notebook")
    assert main(["notebooks", str(tmp_path / "bad.ipynb")]) == 1
    assert "bad.ipynb is not a valid notebook" in capsys.readouterr().err
    assert "no notebook" in refused(main(["notebooks", str(tmp_path / "none.ipynb")]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["trian"], "trian"),
        (["train"], "--output"),
        (["train", "--output", "x", "--epochs", "many"], "--epochs: invalid float value: 'many'"),
        (["train", "--output", "x", "--batch-size", "2.5"], "--batch-size: invalid int value: '2.5'"),
        (["train", "--output", "x", "--no-such-option"], "--no-such-option"),
        (["evaluate"], "--model"),
        (["bench", "steps"], "steps"),
    ],
)
def test_mistyped_commands(capsys, arguments, words):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in last and words in last


def test_help_explains_every_command_and_option_with_its_default(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    (commands,) = [a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    assert set(commands.choices) == {"train", "evaluate", "bench", "notebooks", "exercises", "grade"}
    for command in commands.choices:
        assert re.search(rf"\n    {command}\s+[a-z]", text)
    for command in ("train", "evaluate"):
        parser = commands.choices[command]
        for action in parser._actions:
            shown = parser._get_formatter()._expand_help(action)
            assert len(shown) > 10
            assert action.dest == "help" or "(default: " in shown or "(required)" in shown, action.dest
            if not any(action.default is value for value in (None, False, argparse.SUPPRESS)):
                assert f"(default: {action.default})" in shown
            assert "None" not in shown and "False" not in shown


def test_as_a_program(tmp_path):
    """What only a process of its own shows: the exit code, and that importing prints nothing."""
    command = [sys.executable, "-m", "asa_mini", "train", "--output", str(tmp_path / "run"), "--method", "x"]
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert (done.returncode, done.stdout) == (2, "")
    known = f"choose one of {', '.join(training.METHODS)}"
    assert done.stderr == f"asa_mini: error: unknown method 'x'; {known}\n"
