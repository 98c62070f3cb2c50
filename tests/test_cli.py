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
from safetensors.torch import load_file, save_file
from transformers import BertModel

import asa_mini
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
        basic = {"--model_name_or_path": model, "--dataset_name": "sst2", "--output_dir": tmp_path / "run"}
        basic |= {"--num_train_epochs": 1, "--per_device_train_batch_size": 8, "--max_seq_length": 30}
        basic |= {"--data_dir": data} if data_dir else {}
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
    assert (
        train("--plant", 0.9, "--max-train-samples", 10, "--temperature", 0.2, "--layers", 1, "--seed", 3)
        == 0
    )
    out = capsys.readouterr().out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["rows"]["train"] == 10 and metrics["dataset_name"] == "sst2" and metrics["plant"] == 0.9
    config = metrics["config"]
    assert (config["method"], config["seed"]) == ("asa", 3)
    assert (config["asa"]["temperature"], config["asa"]["layers"]) == (0.2, [1])
    expected = {split: f"{row['accuracy']:.1%}" for split, row in metrics["results"].items()}
    assert table(out) == expected and list(expected) == ["dev", "iid", "neutral", "flipped"]
    assert "95 % interval" in out and f"written to {tmp_path / 'run'}" in out

    again = ["evaluate", "--model_name_or_path", tmp_path / "run", "--dataset_name", "sst2", "--plant", 0.9]
    again += ["--data_dir", tmp_path / "data", "--seed", 3, "--max_seq_length", 30]
    again += ["--output_file", tmp_path / "scores.json"]
    assert main(list(map(str, again))) == 0
    assert table(capsys.readouterr().out) == expected
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))["results"]
    for split, row in metrics["results"].items():
        assert scores[split] == pytest.approx(row)


def test_every_option_of_asa_and_of_training_arguments_reaches_the_run(train, tmp_path, capsys):
    asa = {"alpha": 0.5, "gradient_reversal_scale": 2.0, "backend": "reference", "joint_pass": False}
    given = [word for name, value in asa.items() for word in (f"--{name}", value)]
    more = [
        "--weight_decay",
        0.1,
        "--gradient-accumulation-steps",
        2,
        "--max_steps",
        1,
        "--report_to",
        "none",
    ]
    assert train(*given, *more, "--quiet") == 0
    out, err = capsys.readouterr()
    assert err == "" and out.startswith("split ")
    config = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))["config"]
    assert {name: config["asa"][name] for name in asa} == asa
    expected = {"weight_decay": 0.1, "gradient_accumulation_steps": 2, "max_steps": 1, "report_to": "none"}
    assert config["training"] == expected
    assert json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))["steps"] == 1


def test_a_model_with_the_labels_in_another_order(train, tmp_path, capsys):
    """evaluate compares labels by their names; train writes them into the checkpoint."""
    assert train("--method", "naive", "--learning_rate", 5e-3, "--num_train_epochs", 8, "--quiet") == 0
    right = table(capsys.readouterr().out)
    assert float(right["test"].strip("%")) > 60
    file = tmp_path / "run" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    assert config["id2label"] == {"0": "negative", "1": "positive"}
    other = {"id2label": {"0": "positive", "1": "negative"}, "label2id": {"positive": 0, "negative": 1}}
    file.write_text(json.dumps(config | other), encoding="utf-8")
    weights = load_file(tmp_path / "run" / "model.safetensors")
    turned = {n: v.flip(0).contiguous() if n.startswith("classifier") else v for n, v in weights.items()}
    save_file(turned, tmp_path / "run" / "model.safetensors", {"format": "pt"})
    again = ["evaluate", "--model_name_or_path", tmp_path / "run", "--dataset_name", "sst2"]
    again += ["--data_dir", tmp_path / "data", "--max_seq_length", 30]
    assert main(list(map(str, again))) == 0
    assert table(capsys.readouterr().out) == right


def test_data_folder_from_the_environment(train, tmp_path, monkeypatch):
    monkeypatch.setenv("ASA_DATA_DIR", str(tmp_path / "data"))
    assert train("--method", "smoothing", "--strength", 0.2, data_dir=False) == 0


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
            ["train.tsv, line 2: label 2 is not an integer in 0..1"],
        ),
        ("train.tsv", "a fine film\tgood\n", ["line 1: label 'good' is not an integer"]),
        (
            "train.tsv",
            "a fine film\na dull film\n",
            ["train.tsv, line 1 has 1 tab-separated column(s)", "label"],
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


def test_a_loss_that_is_not_finite(train, tmp_path, capsys):
    assert train("--learning_rate", 1e30, "--num_train_epochs", 3) == 2
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
    line = refused(train("--model_name_or_path", "someone/some-model"))
    assert "'someone/some-model'" in line and "hub that can be reached" in line
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    line = refused(train(data_dir=False))
    assert "cannot be fetched" in line and "--data_dir" in line
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert "hub that can be reached" in refused(train("--model_name_or_path", "someone/some-model"))
    assert pauses == [], "the hub's client retried"


def test_evaluate_refuses(model, refused, tmp_path):
    data = tiny_text.write_files(tmp_path / "data")
    common = ["evaluate", "--model_name_or_path", model, "--dataset_name", "sst2", "--data_dir", data]
    sizes = ["--max_seq_length", "30", "--per_device_eval_batch_size", "0"]
    assert "batch_size" in refused(main([*common, *sizes]))
    assert "40 positions" in refused(main(common))
    assert "max_seq_length" in refused(main([*common, "--max_seq_length", "0"]))
    assert "no folder" in refused(main([*common, "--output_file", str(tmp_path / "no" / "scores.json")]))
    encoder = tiny_text.save_model(tmp_path / "encoder", model_class=BertModel)
    assert "no trained classification head" in refused(main([*common, "--model_name_or_path", encoder]))


def test_a_damaged_notebook_and_a_missing_one(refused, tmp_path):
    pytest.importorskip("papermill")
    (tmp_path / "bad.ipynb").write_text("not a notebook", encoding="utf-8")
    main = pytest.importorskip("asa_classroom.cli").main
    assert "bad.ipynb is not a valid notebook" in refused(main(["notebooks", str(tmp_path / "bad.ipynb")]))
    assert "no notebook" in refused(main(["notebooks", str(tmp_path / "none.ipynb")]))


@pytest.mark.parametrize(
    ("arguments", "command", "words"),
    [
        ("", "", "COMMAND"),
        ("trian", "", "trian"),
        ("train", "train", "--output_dir"),
        ("train --output_dir x --dataset_name imdb", "train", "choose from 'shortcut', 'sst2'"),
        ("train --output_dir x --method freelb", "train", "choose from 'asa', 'rdrop', 'naive'"),
        ("train --output_dir x --num_train_epochs many", "train", "invalid float value: 'many'"),
        ("train --output_dir x --max_steps 2.5", "train", "invalid int value: '2.5'"),
        ("train --output_dir x --learning_rte 1", "train", "did you mean --learning_rate or"),
        ("train --output_dir x --weight_dekay 1", "train", "did you mean --weight_decay"),
        ("evaluate", "evaluate", "--model_name_or_path"),
        ("evaluate --model_name_or_path x --fp16", "evaluate", "unrecognized arguments: --fp16"),
        ("bench steps", "bench", "steps"),
    ],
)
def test_mistyped_commands(capsys, arguments, command, words):
    with pytest.raises(SystemExit) as caught:
        main(arguments.split())
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert "error: " in lines[-1] and words in lines[-1], lines
    assert lines[0].startswith(f"usage: python -m asa_mini {command}"), "the usage of the command"


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out == f"asa_mini {asa_mini.__version__}\n"


def test_help_explains_every_command_and_option_with_its_default(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    (commands,) = [a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    assert set(commands.choices) == {"train", "evaluate", "bench"}
    for command in commands.choices:
        assert re.search(rf"\n    {command}\s+[a-z]", text)
    for command in ("train", "evaluate"):
        parser = commands.choices[command]
        for action in parser._actions:
            shown = parser._get_formatter()._expand_help(action)
            assert len(shown) > 10, action.dest
            negation = any(name.startswith("--no_") for name in action.option_strings)
            assert action.dest == "help" or negation or "(default: " in shown or "(required)" in shown, (
                action.dest
            )
            if not any(action.default is value for value in (None, False, argparse.SUPPRESS)):
                assert f"(default: {action.default})" in shown
            assert "None" not in shown
    assert "Every other option of transformers.TrainingArguments" in commands.choices["train"].format_help()
    assert "--per-device" not in commands.choices["train"].format_help(), "each option once"


def test_help_loads_neither_data_nor_trainer():
    code = """if True:
        import sys
        import asa_mini
        before = {*sys.modules}  # what the method itself needs
        from asa_mini.cli import main
        try:
            main(["train", "--help"])
        except SystemExit:
            heavy = {"datasets", "pandas", "sklearn", "scipy", "accelerate"}
            print(*heavy & {*sys.modules} - before, file=sys.stderr)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.returncode == 0 and done.stderr.strip() == ""


def environment():
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


def test_as_a_program(tmp_path):
    """What only a process of its own shows: the exit code, and that importing prints nothing."""
    command = [sys.executable, "-m", "asa_mini", "train", "--seed", "-1", "--output_dir", tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "asa_mini: error: seed must be from 0 to 4294967295, but is -1\n"
