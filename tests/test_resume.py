"""A run that was stopped goes on, and ends as one that was never stopped, to the last digit."""

import random
import re
from contextlib import suppress
from pathlib import Path

import pytest
import tiny_text
from killed_runs import killed, outcome
from transformers import EarlyStoppingCallback, TrainerCallback

from asa_mini.errors import InputError, OutputExistsError
from asa_mini.train.checkpoints import last_checkpoint, read_progress

STEPS = {"save_steps": 2}  # of 3 in an epoch
LONG = {"num_train_epochs": 2.3, "training": STEPS}  # 7 steps; the last epoch ends in its middle


def interrupt(model):
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def straight(run, tmp_path_factory):
    """The outcome of a run that was not stopped."""
    output = tmp_path_factory.mktemp("runs") / "straight"
    run("asa", output, **LONG)
    return outcome(output)


@pytest.fixture
def stopped(run, tmp_path):
    """The output of a run that was stopped at the begin of step 6."""
    with pytest.raises(KeyboardInterrupt):
        run("asa", tmp_path / "run", training=STEPS, callbacks=[tiny_text.At(6, interrupt)])
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("where", "at", "said"),
    [
        ("step", 4, "^going on from .*checkpoint-2"),
        ("step", 7, "^going on from .*checkpoint-6"),  # between two epochs
        ("saving", 110_000, "^checkpoint-6 is incomplete; going on from .*checkpoint-4"),
        ("finishing", 1_000, "^going on from .*checkpoint-7"),
    ],
)
def test_a_killed_run_ends_as_if_never_stopped(
    run, model_folder, straight, tmp_path, caplog, where, at, said
):
    assert killed(model_folder, tmp_path / "run", where, at, **LONG)
    with pytest.raises(OutputExistsError, match="what a stopped run left; pass --resume"):
        run("asa", tmp_path / "run", **LONG)
    resumed = run("asa", tmp_path / "run", resume=True, **LONG)
    assert outcome(tmp_path / "run") == straight
    assert len(caplog.messages) == 1 and re.search(said, caplog.messages[0])
    assert len(resumed.trainer.state.stateful_callbacks["StepClock"]["attributes"]["seconds"]) == 7


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_killed_at_random_and_again(run, model_folder, tmp_path, seed):
    draw = random.Random(seed)
    options = {
        "method": draw.choice(["asa", "asa", "naive", "random_mask"]),
        "num_train_epochs": draw.choice([2.0, 3.0, 1.6]),
        "load_best_model_at_end": draw.random() < 0.3,
        "adversary_learning_rate": draw.choice([None, 1e-2]),
        "training": {
            "train_sampling_strategy": draw.choice(["group_by_length", "random"]),
            "gradient_accumulation_steps": draw.choice([1, 1, 2]),
            **draw.choice([{}, {"save_steps": 1, "eval_steps": 1}, {"save_steps": 2, "eval_steps": 2}]),
        },
    }
    run(output=tmp_path / "straight", **options)
    output, kills = tmp_path / "run", 0
    while kills < 3 and not (output / "metrics.json").exists():
        where = draw.choice(["step", "saving", "finishing"][: 3 if kills else 2])
        at = draw.randint(1, {"step": 3, "saving": 75_000, "finishing": 3_500}[where])
        kills += killed(model_folder, output, where, at, resume=True, **options)
    with suppress(OutputExistsError):  # it was finished, but for its tidying up
        run(output=output, resume=True, **options)
    assert kills and outcome(output) == outcome(tmp_path / "straight")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "asa_progress.json", "trainer_state.json"]
)
def test_a_damaged_checkpoint_is_passed_over(stopped, name):
    file = stopped / "unfinished" / "checkpoint-4" / name
    assert last_checkpoint(file.parents[1]) == file.parent
    file.write_bytes(file.read_bytes()[:-9])
    assert last_checkpoint(file.parents[1]).name == "checkpoint-2"
    file.unlink()
    assert last_checkpoint(file.parents[1]).name == "checkpoint-2"
    with pytest.raises(InputError, match="checkpoint-4 is not a complete checkpoint"):
        read_progress(file.parent)


def test_other_options_are_refused_by_name(run, stopped):
    other = tiny_text.dataset()
    other["train"] = other["train"].select(range(1, 24))
    options = {"learning_rate": 1e-4, "data": other, "training": {**STEPS, "weight_decay": 0.1}}
    with pytest.raises(InputError, match="other options") as caught:
        run("asa", stopped, resume=True, **options)
    names = re.findall(r"[:,] (\w+(?: data)?) \(", str(caught.value))
    assert names == ["learning_rate", "train data", "weight_decay"]
    assert last_checkpoint(stopped / "unfinished").name == "checkpoint-4"
    given = {**STEPS, "resume_from_checkpoint": str(stopped / "unfinished" / "checkpoint-2")}
    longer = run("asa", stopped, learning_rate=1e-4, num_train_epochs=3.0, training=given)
    assert longer.metrics["steps"] == 9 and len(longer.trainer.terms) == 9  # asked for by name


def test_nothing_to_resume(run, tmp_path, caplog):
    with pytest.raises(InputError, match="give its output folder"):
        run("naive", resume=True)
    run("naive", tmp_path / "run", resume=True)
    assert "starting anew" in caplog.text
    with pytest.raises(OutputExistsError, match="already holds a run"):  # it is finished
        run("naive", tmp_path / "run", resume=True)
    missing = {"resume_from_checkpoint": str(tmp_path / "checkpoint-3")}
    with pytest.raises(InputError, match="checkpoint-3 is not a complete checkpoint"):
        run("naive", tmp_path / "other", training=missing)


class Writes(TrainerCallback):
    """Logs as TensorBoard's callback does: into a folder of its own for every start."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        file = Path(args.output_dir, "runs", f"from {self.first}", "events")
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as events:
            events.write(" ".join([str(state.global_step), *logs]) + "\n")

    def on_train_begin(self, args, state, control, **kwargs):
        self.first = state.global_step


def test_what_a_run_reports_is_kept(run, tmp_path):
    """Its terms too, and not the evaluations after the last step, which have the names of those on dev."""
    options = {"training": {**STEPS, "logging_steps": 2}}
    with pytest.raises(KeyboardInterrupt):
        run("asa", tmp_path, callbacks=[Writes(), tiny_text.At(6, interrupt)], **options)
    run("asa", tmp_path, callbacks=[Writes()], resume=True, **options)
    logs = {path.parent.name: path.read_text("utf-8").splitlines() for path in tmp_path.glob("runs/*/events")}
    steps = {name: [int(line.split()[0]) for line in lines] for name, lines in logs.items()}
    assert steps == {"from 0": [2, 3, 4], "from 4": [6, 6, 6]}
    assert {"task_loss", "divergence", "pay", "kept_share_0", "kept_share_1"} <= set(
        logs["from 4"][0].split()
    )


def test_an_early_stop_counts_on(run, tmp_path):
    """The loss on dev never falls by a whole unit: training stops after the second evaluation without it."""

    def patience():
        return EarlyStoppingCallback(early_stopping_patience=2, early_stopping_threshold=1.0)

    options = {"num_train_epochs": 5.0, "load_best_model_at_end": True}
    with pytest.raises(KeyboardInterrupt):
        run("naive", tmp_path / "run", callbacks=[patience(), tiny_text.At(8, interrupt)], **options)
    run("naive", tmp_path / "run", callbacks=[patience()], resume=True, **options)
    straight = run("naive", tmp_path / "straight", callbacks=[patience()], **options)
    assert straight.metrics["steps"] == 9 and outcome(tmp_path / "run") == outcome(tmp_path / "straight")
