"""`train` that is stopped, refused or fails: nothing is lost, nothing is left, the model comes back."""

import json
import os
import signal

import pytest
import torch
from tiny import trace
from tiny_text import At
from transformers import AutoModelForSequenceClassification

import asa_mini.train.run
from asa_mini import AsaConfig
from asa_mini.errors import InputError, NonFiniteLossError, OutputExistsError
from asa_mini.train.models import load_model
from asa_mini.train.run import TrainConfig
from asa_mini.train.run_folder import load_adversaries
from asa_mini.train.trainer import AsaTrainer


def poison(model):
    """The head's weights become NaN: so does the task loss, and with it the total."""
    next(p for name, p in model.named_parameters() if "classifier" in name).data.fill_(float("nan"))


def interrupt(model):
    signal.raise_signal(signal.SIGINT)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(run, tmp_path):
    output = tmp_path / "run"
    with pytest.raises(NonFiniteLossError, match=r"task_loss is nan at step 5: .*unfinished/checkpoint-3"):
        run("asa", output, callbacks=[At(5, poison)])
    assert [p.name for p in output.iterdir()] == ["unfinished"]
    kept = output / "unfinished" / "checkpoint-3"
    model = load_adversaries(AutoModelForSequenceClassification.from_pretrained(kept), kept)
    assert all(p.isfinite().all() for p in model.parameters())
    with pytest.raises(OutputExistsError, match="what a stopped run left"):
        run("asa", output)
    run("asa", output, overwrite=True)
    assert (output / "metrics.json").is_file() and not (output / "unfinished").exists()


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(run, tmp_path):
    def spoil(model):
        head = next(p for name, p in model.named_parameters() if "classifier" in name)
        head.register_hook(lambda grad: grad * float("inf"))

    with pytest.raises(NonFiniteLossError, match=r"the gradient norm is (nan|inf) at step 6"):
        run("naive", tmp_path / "run", callbacks=[At(6, spoil)])
    assert [p.name for p in (tmp_path / "run").glob("unfinished/checkpoint-*")] == ["checkpoint-3"]


def test_ctrl_c_leaves_no_finished_run(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run("naive", tmp_path / "early", callbacks=[At(2, interrupt)])
    assert not (tmp_path / "early").exists()  # nothing was worth keeping
    with pytest.raises(
        KeyboardInterrupt, match=r"interrupted; the last checkpoint is .*unfinished/checkpoint-3"
    ):
        run("naive", tmp_path / "late", callbacks=[At(5, interrupt)])
    assert [p.name for p in (tmp_path / "late").iterdir()] == ["unfinished"]


@pytest.mark.parametrize("what", ["arguments", "trainer", "data"])
def test_a_failure_before_training_leaves_nothing_and_takes_nothing(run, tmp_path, monkeypatch, what):
    def fail(*args, **kwargs):
        raise InputError("refused")

    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        target = {
            "arguments": (TrainConfig, "training_arguments"),
            "trainer": (AsaTrainer, "_check"),
            "data": (asa_mini.train.run, "model_inputs"),
        }[what]
        patch.setattr(*target, fail)
        with pytest.raises(InputError, match="refused"):
            run("asa", output)
        assert not output.exists()
        (output / "unfinished" / "checkpoint-3").mkdir(parents=True)
        with pytest.raises(InputError, match="refused"):
            run("asa", output, overwrite=True)
    assert (output / "unfinished" / "checkpoint-3").is_dir()


@pytest.mark.parametrize("method", ["asa", "random_mask"])
def test_the_callers_model_and_process_come_back_after_a_failure(run, model_folder, method):
    model, tokenizer = load_model(model_folder)
    model.train().bert.pooler.eval()
    before, variables = trace(model), dict(os.environ)
    seen = []

    def fail(model):
        seen.extend([torch.are_deterministic_algorithms_enabled(), "CUDA_LAUNCH_BLOCKING" in os.environ])
        raise RuntimeError("a callback fails")

    options = {"bf16": True, "training": {"full_determinism": True}, "callbacks": [At(2, fail)]}
    with pytest.raises(RuntimeError, match="a callback fails"):
        run(method, load=lambda: (model, tokenizer), **options)
    assert seen == [True, True]
    assert trace(model) == before and "forward" not in vars(model) and model.config.use_cache
    assert all(p.requires_grad for p in model.parameters())
    assert os.environ == variables and not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic


def test_no_determinism_that_slows_a_gpu_unless_asked_for(run):
    seen = []
    run("naive", callbacks=[At(2, lambda model: seen.append("CUDA_LAUNCH_BLOCKING" in os.environ))])
    assert seen == [False]


def test_bf16_leaves_no_autocast_on_the_model(run):
    result = run("naive", bf16=True)
    assert "forward" not in vars(result.model)
    assert result.model(input_ids=torch.arange(5, 11)[None]).logits.dtype == torch.float32


def test_overwrite_loses_nothing_before_the_new_run_is_complete(run, tmp_path):
    output = tmp_path / "run"
    first = run("asa", output).metrics
    (output / "notes.txt").write_text("mine", encoding="utf-8")
    before = {p.name: p.read_bytes() for p in output.iterdir()}
    with pytest.raises(OutputExistsError, match=r"already holds a run; .*--overwrite"):
        run("naive", output)
    with pytest.raises(InputError, match=r"layers .* out of range"):
        run("asa", output, overwrite=True, asa=AsaConfig(layers=[2]))
    with pytest.raises(KeyboardInterrupt):
        run("naive", output, overwrite=True, callbacks=[At(2, interrupt)])
    assert {p.name: p.read_bytes() for p in output.iterdir()} == before
    second = run("naive", output, overwrite=True).metrics
    assert (
        json.loads((output / "metrics.json").read_text(encoding="utf-8"))["config"]
        == second["config"]
        != first["config"]
    )
    # Adversaries of the old run would be taken for the new one's.
    assert {p.name for p in output.iterdir()} == set(before) - {
        "asa_adversary.json",
        "asa_adversary.safetensors",
    }
    assert (output / "notes.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("name", ["thesis.txt", "metrics.json"])
def test_a_folder_that_is_not_a_run_is_refused_even_with_overwrite(run, tmp_path, name):
    (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(OutputExistsError, match="files that are not a run"):
        run("naive", tmp_path, overwrite=True)
    with pytest.raises(OutputExistsError, match="is a file"):
        run("naive", tmp_path / name, overwrite=True)
    assert (tmp_path / name).read_text(encoding="utf-8") == "{}"
