"""The command line: what `train` and `evaluate` do, print and write."""

import json
import re
import signal

import pytest
import tiny_text
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from asa_mini.cli import main
from asa_mini.train import run as training


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


def test_a_loss_that_is_not_finite(train, tmp_path, capsys):
    assert train("--learning_rate", 1e30, "--num_train_epochs", 3) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("asa_mini: error: ") and "at step" in last and "learning rate" in last
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_stops_and_resume_goes_on(train, tmp_path, capsys, monkeypatch, number, code, word):
    def stop(clock, args, state, control, **kwargs):
        if state.global_step == last:
            signal.raise_signal(number)

    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(training.StepClock, "on_pre_optimizer_step", stop, raising=False)
        last = 0
        assert train("--save_steps", 1) == code
        assert capsys.readouterr().err.splitlines()[-1] == f"asa_mini: {word}"
        assert not (tmp_path / "run").exists()
        last = 2
        assert train("--save_steps", 1) == code
        kept = tmp_path / "run" / "unfinished" / "checkpoint-2"
        assert capsys.readouterr().err.splitlines()[-1] == f"asa_mini: {word}; the last checkpoint is {kept}"
    assert signal.getsignal(signal.SIGTERM) == handler
    assert train("--save_steps", 1, "--resume", "--quiet") == 0
    assert capsys.readouterr().out.startswith("split ")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))["steps"] == 3


def test_tasks_are_listed_with_what_is_on_this_machine(tmp_path, capsys):
    tiny_text.write_files(tmp_path / "sst2")
    (tmp_path / "cola").mkdir()
    (tmp_path / "cola" / "dev.tsv").write_text("a\n", encoding="utf-8")
    assert main(["tasks", "--data_dir", str(tmp_path)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert f"{tmp_path}/sst2: train 24, dev 10, test 9" in lines["sst2"]
    assert "train.tsv is missing" in lines["cola"] and "matthews_correlation, accuracy" in lines["cola"]
    assert "hub: nyu-mll/glue at bcdcba7" in lines["mrpc"] and "bring a local folder" in lines["hans"]
    assert main(["tasks", "--data_dir", str(tmp_path / "nowhere")]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train_file", "a.csv"], "training needs the split 'dev', .* give --validation_file"),
        (["--dataset_name", "hans"], "training needs the split 'train', but there is only test"),
        (["--dataset_name", "imdb"], "unknown dataset 'imdb'; choose one of shortcut, sst2"),
        (["--dataset_name", "rte", "--kind", "tokens"], "the columns of task rte are known; --kind is for"),
        (["--dataset_name", "rte", "--dataset_revision", "x"], "are of a hub's user/name"),
        (["--dataset_name", "rte", "--train_file", "a.csv"], "exclude each other"),
        (["--dataset_name", "user/name"], "user/name at revision main cannot be fetched"),
    ],
)
def test_data_that_cannot_be_trained_on(refused, tmp_path, monkeypatch, options, message):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert re.search(message, refused(main(["train", "--output_dir", str(tmp_path / "run"), *options])))
