"""Training by several processes, as torchrun starts them: two of them, on the CPU, over gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_text

RUN = """if True:
    import json, os, sys
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

    result = train(tiny_text.dataset(), config, partial(load_model, folder), output, callbacks=[Copy()])
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
