"""Training runs in processes that kill themselves, as a power cut or a scheduler would."""

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

TIMED = {"seconds_per_step", "steps_per_second", "train_seconds", "date", "command"}


def killed(folder, output, where: str, at: int, **options) -> bool:
    """Start `tiny_text.run` with `output` in a process of its own; whether SIGKILL ended it.

    Args:
        where: "step": in its step number `at`, before the weights change; "saving" or "finishing": at the
            call number `at` of a Python or C function in writing checkpoints, or the finished run.
    """
    context = multiprocessing.get_context("forkserver")  # torch is imported once, not by every process
    context.set_forkserver_preload(["asa_mini.train.run"])
    process = context.Process(target=_run, args=(folder, output, where, at, options))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def _run(folder, output, where: str, at: int, options: dict) -> None:
    import tiny_text

    import asa_mini.train.run
    from asa_mini.train.trainer import AsaTrainer

    count = _countdown(at)
    if where == "step":
        asa_mini.train.run.StepClock.on_pre_optimizer_step = lambda *args, **kwargs: count()
    elif where == "saving":
        AsaTrainer._save_checkpoint = _counted(AsaTrainer._save_checkpoint, count)
    else:
        asa_mini.train.run.finish_run = _counted(asa_mini.train.run.finish_run, count)
    tiny_text.run(folder, output=output, **options)


def _countdown(at: int):
    def count():
        nonlocal at
        at -= 1
        if at == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return count


def _counted(function, count):
    """`function`, with `count` called at every call in it."""

    def counted(*args, **kwargs):
        sys.setprofile(lambda frame, event, argument: count() if event in ("call", "c_call") else None)
        try:
            return function(*args, **kwargs)
        finally:
            sys.setprofile(None)

    return counted


def outcome(output: Path) -> dict:
    """All of a finished run that must not depend on whether it was stopped."""
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    weights = {file.name: file.read_bytes() for file in output.glob("*.safetensors")}
    assert not (output / "unfinished").exists()
    return {**{name: value for name, value in metrics.items() if name not in TIMED}, **weights}
