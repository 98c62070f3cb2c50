"""Fine-tuning a text classifier: plain, under ASA, under the R-Drop control, or with a prior on attention."""

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
import transformers
from datasets import DatasetDict
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from asa_mini.errors import InputError, NonFiniteLossError
from asa_mini.train.baselines import Prior, attention_prior
from asa_mini.train.config import METHODS, PRIORS, TrainConfig
from asa_mini.train.data import label_names, tokenize
from asa_mini.train.evaluation import (
    CheckedPadding,
    accuracy,
    check_dataset,
    check_max_length,
    evaluate,
    evaluate_splits,
)
from asa_mini.train.models import align_labels, name_labels, quiet_transformers
from asa_mini.train.run_folder import check_output, environment, finish_run, leave_run, start_run
from asa_mini.train.trainer import AsaTrainer
from asa_mini.wrap import AsaConfig, AsaModel, wrap

__all__ = ["METHODS", "TrainConfig", "TrainResult", "environment", "evaluate", "train", "train_adversary"]


@dataclass
class TrainResult:
    """The trained plain model, its tokenizer, the metrics (as in metrics.json) and the trainer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    metrics: dict
    trainer: AsaTrainer


class StepClock(TrainerCallback):
    """Seconds of every optimisation step, evaluation and saving left out."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.start)


def train(
    dataset: DatasetDict,
    config: TrainConfig,
    load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
    output: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
    about: dict | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainResult:
    """Fine-tune a classifier and evaluate it on every split but "train".

    Args:
        dataset: splits "train", "dev" and any others, columns `text` and `label`, see `data.load`.
        config: a `TrainConfig`.
        load: called after seeding, returns (model, tokenizer); usually a `functools.partial` of `load_model`.
        output: folder for the plain checkpoint, the adversaries and metrics.json; None writes nothing.
        overwrite: replace the run that is already in `output`, once the new one is complete.
        progress: show progress bars and log lines.
        about: entries to add to the metrics, e.g. the dataset's name.
        callbacks: more callbacks for the Trainer.

    Raises:
        InputError: the data or the configuration cannot be used. OutputExistsError: `output` holds something.
        NonFiniteLossError: a loss term became NaN or infinite; the last checkpoint stays in
            `output`/unfinished, as after Ctrl-C.
    """
    if output is not None:
        check_output(Path(output), overwrite)
    set_seed(config.seed)
    model, tokenizer = load()
    check_max_length(model, config.max_seq_length)
    check_dataset(dataset, model.config.num_labels, needed=("train", "dev"))
    plain = model
    if config.method in ("asa", "rdrop"):
        model = wrap(model, config.asa_config())
    prior = (
        attention_prior(model, Prior(config.method, config.strength))
        if config.method in PRIORS
        else nullcontext()
    )
    names = label_names(dataset)
    name_labels(model.config, names)
    tokens = tokenize(dataset, tokenizer, config.max_seq_length, align_labels(model.config, names))
    scratch = tempfile.TemporaryDirectory() if output is None else nullcontext(str(start_run(Path(output))))
    with scratch as folder, quiet_transformers():
        clock = StepClock()
        trainer = AsaTrainer(
            model=model,
            args=config.training_arguments(folder, output is not None, progress),
            train_dataset=tokens["train"],
            eval_dataset=tokens["dev"],
            processing_class=tokenizer,
            data_collator=CheckedPadding(tokenizer),
            compute_metrics=accuracy,
            callbacks=[clock, *callbacks],
            adversary_learning_rate=config.adversary_learning_rate,
        )
        trainer.remove_callback(transformers.PrinterCallback)
        try:
            with prior:
                trainer.train()
            metrics = _metrics(trainer, tokens, config, clock) | (about or {})
            if output is not None:
                trainer.save_model(f"{folder}/final")
                finish_run(Path(output), Path(folder, "final"), metrics)
        except NonFiniteLossError as error:
            kept = output and get_last_checkpoint(folder)
            raise NonFiniteLossError(
                f"{error}; the last good checkpoint is {kept}" if kept else str(error)
            ) from error
        finally:
            for callback in trainer.callback_handler.callbacks:
                if getattr(callback, "training_bar", None) is not None:
                    callback.training_bar.close()  # else the message of an error lands on the bar's line
            if output is not None:
                leave_run(Path(output))
            if plain is not model:
                model.unwrap()
    return TrainResult(plain.eval(), tokenizer, metrics, trainer)


def train_adversary(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    temperature: float,
    steps: int = 20,
    learning_rate: float = 3e-3,
    batch_size: int = 32,
    max_length: int = 128,
    seed: int = 0,
) -> AsaModel:
    """Let adversaries play alone against a trained model whose weights and dropout stand still.

    Args:
        model: a plain classifier; it is wrapped, and none of its weights changes.
        texts: read in this order, `batch_size` at a time, from the start again when they are used up.
        temperature: the adversaries' pay, see `AsaConfig`.
        steps, learning_rate: updates of the adversaries by AdamW, and their rate.
        seed: of the adversaries' first weights.

    Returns:
        The wrapped model in evaluation mode; `unwrap()` gives back the plain one.
    """
    if not len(texts) or min(steps, batch_size) < 1:
        raise InputError("train_adversary needs at least one text, one step and one text in a batch")
    check_max_length(model, max_length)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        wrapped = wrap(model, AsaConfig(temperature))
    wrapped.train().model.eval()  # the adversarial pass runs in training mode, the dropout does not
    players = list(wrapped.adversaries.parameters())
    optimizer = torch.optim.AdamW(players, lr=learning_rate)
    for step in range(steps):
        chosen = [texts[(step * batch_size + i) % len(texts)] for i in range(min(batch_size, len(texts)))]
        options = {"truncation": True, "max_length": max_length, "padding": True, "return_tensors": "pt"}
        batch = tokenizer(chosen, **options).to(model.device)
        # Any labels do: the task loss that they enter does not depend on the adversaries.
        labels = torch.zeros(len(chosen), dtype=torch.long, device=model.device)
        gradients = torch.autograd.grad(wrapped(**batch, labels=labels).loss, players)
        for player, gradient in zip(players, gradients, strict=True):
            player.grad = gradient
        optimizer.step()
    return wrapped.eval()


def _metrics(trainer: AsaTrainer, tokens: DatasetDict, config: TrainConfig, clock: StepClock) -> dict:
    by_epoch = [
        {"epoch": row["epoch"], "dev_loss": row["eval_loss"], "dev_accuracy": row["eval_accuracy"]}
        for row in trainer.state.log_history
        if "eval_loss" in row
    ]
    seconds = median(clock.seconds)
    return {
        "config": asdict(config),
        "rows": {split: len(rows) for split, rows in tokens.items()},
        "steps": trainer.state.global_step,
        "by_epoch": by_epoch,
        "results": evaluate_splits(trainer, tokens),
        "terms": trainer.terms,
        "seconds_per_step": seconds,
        "steps_per_second": 1 / seconds,
        "train_seconds": sum(clock.seconds),
        **environment(),
    }
