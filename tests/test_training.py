"""`train`: what it measures, shows and writes, and that it repeats to the last digit."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest
import tiny_text
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoModelForSequenceClassification, TrainerCallback

from asa_mini import AsaConfig
from asa_mini.errors import DataFileError, InputError
from asa_mini.look.recording import read_masks
from asa_mini.train.evaluation import evaluate
from asa_mini.train.models import load_model
from asa_mini.train.run import TrainConfig
from asa_mini.train.run_folder import environment, load_adversaries

TIMED = {"seconds_per_step", "steps_per_second", "train_seconds", "date"}


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    """A finished ASA run: (result, output folder)."""
    output = tmp_path_factory.mktemp("runs") / "asa"
    return run("asa", output), output


def logits(model, tokenizer):
    batch = tokenizer(tiny_text.dataset()["test"]["text"][:], padding=True, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**batch).logits


def untimed(metrics):
    return {key: value for key, value in metrics.items() if key not in TIMED}


@pytest.mark.parametrize("method", ["asa", "rdrop", "naive", "random_mask", "smoothing"])
def test_metrics(run, method):
    result = run(method)
    metrics = result.metrics
    assert metrics["config"] == asdict(TrainConfig(method=method, **tiny_text.CONFIG))
    assert metrics["rows"] == {"train": 24, "dev": 10, "test": 9} and metrics["dataset"] == "tiny"
    assert metrics["steps"] == 6 and [row["epoch"] for row in metrics["by_epoch"]] == [1, 2]
    assert list(metrics["results"]) == ["dev", "test"]
    assert metrics["results"]["dev"]["accuracy"] == metrics["by_epoch"][-1]["dev_accuracy"]
    test = tiny_text.dataset()["test"]
    right = (logits(result.model, result.tokenizer).argmax(-1) == torch.tensor(test["label"][:])).sum().item()
    assert metrics["results"]["test"]["accuracy"] == right / 9
    assert metrics["results"]["test"]["low"] < right / 9 < metrics["results"]["test"]["high"]
    assert metrics["seconds_per_step"] > 0 and metrics["steps_per_second"] == 1 / metrics["seconds_per_step"]
    assert metrics["versions"]["torch"] == torch.__version__
    assert metrics["command"].startswith("python ") and metrics["command"] == environment()["command"]
    assert not any(hasattr(m, "adversaries") or m._forward_pre_hooks for m in result.model.modules())

    assert [record["step"] for record in metrics["terms"]] == [1, 2, 3, 4, 5, 6]
    for record in metrics["terms"]:
        if method not in ("asa", "rdrop"):
            assert set(record) == {"step", "loss"}
            continue
        assert record["loss"] == pytest.approx(record["task_loss"] + record["divergence"], rel=1e-5)
        assert record["divergence"] > 0
        if method == "asa":
            assert len(record["kept_share"]) == 2 and all(0 < share <= 1 for share in record["kept_share"])
            assert record["pay"] > 0
        else:
            assert record["pay"] == 0 and "kept_share" not in record
    json.dumps(metrics, allow_nan=False)


def test_a_prior_changes_training_and_no_prior_does_not(run):
    plain, *others = (
        run(method, strength=strength).metrics["terms"]
        for method, strength in [("naive", 0.1), ("smoothing", 0.0), ("smoothing", 0.3), ("random_mask", 0.3)]
    )
    losses = [[record["loss"] for record in terms] for terms in (plain, *others)]
    assert losses[1] == losses[0] and losses[0] not in losses[2:]


def test_same_seed_repeats_to_the_last_digit_and_another_does_not(run, finished):
    result, output = finished
    again = run("asa")
    assert untimed(again.metrics) == untimed(result.metrics)
    written = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    assert untimed(written) == {**untimed(result.metrics), "files": written["files"]}
    other = run("asa", seed=1)
    assert [r["loss"] for r in other.metrics["terms"]] != [r["loss"] for r in again.metrics["terms"]]


def test_output_is_a_plain_checkpoint_for_a_process_without_asa_mini(finished, tmp_path):
    result, output = finished
    assert {p.name for p in output.iterdir()} == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "training_args.bin"),
        *("asa_adversary.safetensors", "asa_adversary.json", "metrics.json", "predictions.npz"),
    }
    code = """if True:
        import sys
        sys.modules["asa_mini"] = None  # importing it would raise
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        folder, output, *texts = sys.argv[1:]
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            torch.save(model(**batch).logits, output)
    """
    texts = tiny_text.dataset()["test"]["text"][:]
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run(
        [sys.executable, "-c", code, output, tmp_path / "logits", *texts],
        check=True,
        cwd=tmp_path,
        env=env,
    )
    assert torch.equal(torch.load(tmp_path / "logits"), logits(result.model, result.tokenizer))


def test_adversaries_round_trip(finished, model_folder, tmp_path):
    _, output = finished
    trained = AutoModelForSequenceClassification.from_pretrained(output)
    wrapped = load_adversaries(trained, output)
    assert (wrapped.asa_config.temperature, wrapped.asa_config.layers) == (0.3, [0, 1])
    fresh = load_model(model_folder)[0]
    with pytest.raises(DataFileError, match="holds no adversaries"):
        load_adversaries(fresh, model_folder)
    narrow, _ = load_model(tiny_text.save_model(tmp_path / "narrow", hidden_size=16))
    with pytest.raises(InputError, match="do not fit this model"):
        load_adversaries(narrow, output)
    load_adversaries(fresh, output)  # a failure leaves nothing behind, and fitting ones still load
    weights = output / "asa_adversary.safetensors"
    (tmp_path / "asa_adversary.json").write_bytes((output / "asa_adversary.json").read_bytes())
    (tmp_path / weights.name).write_bytes(weights.read_bytes()[:40])
    with pytest.raises(InputError, match="cannot be read"):
        load_adversaries(load_model(model_folder)[0], tmp_path)


def test_loaded_adversaries_attack_as_the_trained_ones_did(run, tmp_path):
    attacked = {}

    class Attack(TrainerCallback):
        def on_train_end(self, args, state, control, model=None, **kwargs):
            attacked["masks"] = read_masks(model, input_ids=torch.arange(5, 17).reshape(2, 6))

    result = run(
        "asa", tmp_path / "run", callbacks=[Attack()], asa=AsaConfig(0.0), adversary_learning_rate=1e-2
    )
    loaded = load_adversaries(result.model, tmp_path / "run")
    again = read_masks(loaded, input_ids=torch.arange(5, 17).reshape(2, 6))
    assert all(torch.equal(a, b) for a, b in zip(again, attacked["masks"], strict=True))
    assert 0 < torch.stack(again).float().mean() < 1


def test_the_log_shows_the_loss_without_the_pay_and_layers_by_number(run):
    result = run(
        "asa", asa=AsaConfig(3.0, alpha=0.5, layers=[1]), num_train_epochs=4.0
    )  # a line every 10 steps
    (row,) = [row for row in result.trainer.state.log_history if "loss" in row]
    assert row["loss"] == pytest.approx(row["task_loss"] + 0.5 * row["divergence"], rel=1e-4)
    assert "kept_share_1" in row and "kept_share_0" not in row
    # Ours are the units of one layer, at most 30 x 30 of them.
    first = result.trainer.terms[0]
    assert 10 < first["pay"] < 9 * 30 * 30 and first["loss"] < 2


def test_environment_names_the_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("mps"))
    assert environment()["device"] == "MPS"
    assert environment(torch.device("cpu"))["device"].startswith("CPU, ")


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_or_not_at_all(run, tmp_path, capfd, monkeypatch, terminal):
    run("asa", tmp_path / "quiet", progress=False)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    run("asa", tmp_path / "loud", progress=True, num_train_epochs=4.0)
    out, err = capfd.readouterr()
    for name in ("task_loss", "divergence", "pay", "kept_share_1", "eval_accuracy"):
        assert name in out
    assert len([line for line in out.splitlines() if "eval_loss" in line]) == 4  # the epochs, not the end
    assert "shards" not in err and "Warning" not in err
    assert ("12/12" in err and "it/s" in err) if terminal else err == ""


@pytest.mark.parametrize(
    ("split", "rows", "message"),
    [
        ("train", None, "no split 'train'"),
        ("dev", {"text": ["a film"]}, "no column 'label'"),
        ("dev", {"text": [], "label": []}, "split 'dev' is empty"),
        ("train", {"text": ["a film", None], "label": [0, 1]}, "row 1: the text is None"),
        ("train", {"text": [3, 4], "label": [0, 1]}, "row 0: the text is 3"),
        (
            "test",
            {"text": ["a film", "a cast"], "label": [0, 2]},
            r"row 1: label 2 is not an integer in 0\.\.1",
        ),
        (
            "train",
            {"text": ["a film", "a cast"], "label": [False, True]},
            "row 0: label False is not an integer",
        ),
    ],
)
def test_unusable_data_raises_from_python(run, tmp_path, split, rows, message):
    data = {name: rows for name, rows in tiny_text.dataset().items() if name != split}
    data |= {} if rows is None else {split: Dataset.from_dict(rows)}
    with pytest.raises(InputError, match=message):
        run("naive", tmp_path / "run", data=DatasetDict(data))
    assert not (tmp_path / "run").exists()


def test_evaluate_repeats_what_train_measured(finished):
    result, output = finished
    model, tokenizer = load_model(str(output), trained=True)
    scores = evaluate(model, tokenizer, tiny_text.dataset(), batch_size=16, max_length=30, progress=False)
    for split in ("dev", "test"):
        assert scores[split] == pytest.approx(result.metrics["results"][split])
