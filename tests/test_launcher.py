"""Training by several processes, as torchrun starts them: two of them, on the CPU, over gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_text

RUN = """if True:
    import json, os, signal, sys
    from functools import partial

    import tiny_text
    from transformers import TrainerCallback
    from asa_mini.train.models import load_model
    from asa_mini.train.run import TrainConfig, train

    folder, output = sys.argv[1:]
    config = TrainConfig(
        num_train_epochs=2.0, per_device_train_batch_size=6, max_seq_length=30, learning_rate=1e-3,
        adversary_learning_rate=1e-2, load_best_model_at_end=True,
    )
    start = load_model(folder)[0]
    trained = {}

    class Copy(TrainerCallback):
        def on_train_end(self, args, state, control, model=None, **kwargs):
            trained.update({name: p.double().sum().item() for name, p in model.named_parameters()})

    die = tiny_text.At(int(os.environ.get("DIES_AT", 0)), lambda model: os.kill(os.getpid(), signal.SIGKILL))
    load = partial(load_model, folder)
    result = train(tiny_text.dataset(), config, load, output, callbacks=[Copy(), die], resume=True)
    seen = {"metrics": result.metrics, "weights": trained, "writer": result.trainer.is_world_process_zero()}
    seen["model"] = sum(p.double().sum().item() for p in result.model.parameters())
    with open(f"{output}.{os.environ['RANK']}.json", "w") as file:
        json.dump(seen, file)
"""


def launch(script, *arguments) -> subprocess.CompletedProcess:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [*torchrun, script, *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, env=env)


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """What both processes saw of one run: (output folder, first process, second process, stdout)."""
    root = tmp_path_factory.mktemp("launch")
    (root / "run.py").write_text(RUN, encoding="utf-8")
    folder = tiny_text.save_model(root / "model")
    done = launch(root / "run.py", folder, root / "output")
    assert done.returncode == 0, done.stderr
    first, second = (
        json.loads((root / f"output.{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)
    )
    return root / "output", first, second, done.stdout


def test_both_processes_train_one_model(launched):
    _, first, second, stdout = launched
    assert first["weights"] == second["weights"] and any("adversaries" in name for name in first["weights"])
    assert first["model"] == second["model"]  # after the best epoch was loaded
    assert first["metrics"]["terms"] == second["metrics"]["terms"]  # the means over both
    assert first["metrics"]["steps"] == 4 and first["metrics"]["processes"] == 2  # 24 rows, 2 x 6 a step
    assert stdout.count("train_loss") == 1


def test_one_process_writes_the_run(launched):
    output, first, second, _ = launched
    assert (first["writer"], second["writer"]) == (True, False)
    written = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    assert written["results"] == first["metrics"]["results"] == second["metrics"]["results"]
    assert {"model.safetensors", "asa_adversary.safetensors", "metrics.json"} < {
        p.name for p in output.iterdir()
    }
    assert not (output / "unfinished").exists()


@pytest.mark.slow
def test_both_processes_go_on_after_being_killed(launched, tmp_path, monkeypatch):
    root, first, second, _ = launched[0].parent, *launched[1:]
    monkeypatch.setenv("DIES_AT", "4")  # one checkpoint after each epoch of two steps
    assert launch(root / "run.py", root / "model", tmp_path / "output").returncode != 0
    monkeypatch.delenv("DIES_AT")
    done = launch(root / "run.py", root / "model", tmp_path / "output")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("going on from") == 1 and "checkpoint-2" in done.stderr
    for rank, straight in enumerate((first, second)):
        resumed = json.loads((tmp_path / f"output.{rank}.json").read_text(encoding="utf-8"))
        assert resumed["weights"] == straight["weights"] and resumed["model"] == straight["model"]
        for name in ("terms", "by_epoch", "results"):
            assert resumed["metrics"][name] == straight["metrics"][name]
