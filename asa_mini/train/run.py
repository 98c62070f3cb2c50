"""Fine-tuning a model of text: plain, under ASA, under the R-Drop control, or with a prior on attention."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from datasets import DatasetDict
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, set_seed
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import ExportableState

from asa_mini.config import AsaConfig
from asa_mini.errors import InputError, NonFiniteLossError
from asa_mini.model import AsaModel, wrap
from asa_mini.train.baselines import attention_prior
from asa_mini.train.checkpoints import last_checkpoint, read_progress
from asa_mini.train.config import PRIORS, TrainConfig
from asa_mini.train.evaluation import evaluate_splits, model_inputs, scorer_of
from asa_mini.train.models import check_max_length, given_back, name_labels, quiet_transformers
from asa_mini.train.run_folder import (
    environment,
    finish_run,
    is_writer,
    run_options,
    start_run,
    stopped_run,
    training_folder,
)
from asa_mini.train.tokenizing import collator, describe, label_names
from asa_mini.train.trainer import AsaTrainer


@dataclass
class TrainResult:
    """What `train` returns.

    Attributes:
        model: the trained plain model, in evaluation mode. tokenizer: its tokenizer.
        metrics: as in metrics.json; config; kind (of task), metrics (their names), labels (in the model's
            order); rows (per split); steps; by_epoch (epoch, dev_loss, and dev_accuracy or what the metrics
            are called); results (per split, what `evaluate` returns for `model`); terms (see `AsaTrainer`);
            seconds_per_step (median), steps_per_second, train_seconds (sum of the steps); processes; and
            `environment`. With `load_best_model_at_end` also best_epoch and results_last, the results of the
            weights after the last step, so that one run gives both rows of a table.
        predictions: of every evaluated example, by "SPLIT/labels" and "SPLIT/predictions".
        trainer: the AsaTrainer; `trainer.terms` and `trainer.state.log_history` tell how it went.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    metrics: dict
    predictions: dict[str, np.ndarray]
    trainer: AsaTrainer


def train(
    dataset: DatasetDict,
    config: TrainConfig,
    load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
    output: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
    about: dict | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    resume: bool = False,
    metrics: Sequence[str] = (),
) -> TrainResult:
    """Fine-tune a model and evaluate it on every split but "train".

    Started by torchrun, every process trains on its share of each batch; the first one writes.

    Args:
        dataset: splits "train", "dev" and any others, columns as of `data.load`.
        config: a `TrainConfig`. `training={"resume_from_checkpoint": FOLDER}` starts from a checkpoint, under
            these options; {"full_determinism": True} repeats a run on a GPU to the last digit, at the price
            of slower steps (it waits for every kernel).
        load: called after seeding, returns (model, tokenizer); usually a `functools.partial` of `load_model`.
        output: folder for the plain checkpoint, the adversaries, metrics.json and predictions.npz (see
            `TrainResult`); None writes nothing.
        overwrite: replace the run that is already in `output`, once the new one is complete.
        progress: show a progress bar and log lines.
        about: entries to add to the metrics, e.g. the dataset's name; `columns` are also shown.
        resume: go on from the last complete checkpoint that a stopped run left in `output`, or start anew if
            there is none; a line on stderr says which. On a CPU, one process and the same number of threads
            give what a run that was never stopped gives, to the last digit.
        metrics: names of `metrics.FUNCTIONS`; () takes those of the kind of task.

    Raises:
        InputError: the data or the configuration cannot be used, or the stopped run had other options.
        OutputExistsError: `output` holds something.
        NonFiniteLossError: a loss term became NaN or infinite. Its last checkpoint stays in
            `output`/unfinished, as after Ctrl-C (KeyboardInterrupt); the message names it.
    """
    # 1. Options: what can be refused is refused before anything is loaded or written.
    output, options = output and Path(output), {}
    if output:
        options = run_options(config, dataset, about or {})
    elif resume:
        raise InputError("to resume a run, give its output folder")
    given = config.training.get("resume_from_checkpoint")
    checkpoint = (stopped_run(output, options) if resume else None) or given
    if checkpoint:
        read_progress(checkpoint)
    with _process_restored(), training_folder(output, overwrite, resume, checkpoint) as folder:
        arguments = config.training_arguments(str(folder), keep=output is not None, progress=progress)
        arguments.load_best_model_at_end = False  # done in _metrics, once the last weights are measured
        if arguments.world_size > 1 and not output:
            raise InputError("several processes need one folder to train in: give train an output folder")

        # 2. Data and model
        set_seed(config.seed)
        model, tokenizer = load()
        tokens = model_inputs(dataset, model, tokenizer, config.max_seq_length, needed=("train", "dev"))
        name_labels(model.config, label_names(dataset))
        scorer = scorer_of(model, dataset, metrics)

        with given_back(model), _under(config, model) as player, quiet_transformers():
            # 3. Trainer
            trainer = AsaTrainer(
                model=player,
                args=arguments,
                train_dataset=tokens["train"],
                eval_dataset=tokens["dev"],
                processing_class=tokenizer,
                data_collator=collator(scorer.kind, tokenizer),
                compute_metrics=scorer,
                callbacks=[StepClock(), *callbacks],
                adversary_learning_rate=config.adversary_learning_rate,
            )
            if not progress:
                trainer.remove_callback(PrinterCallback)
            start_run(folder, resume, checkpoint, options)
            if progress and is_writer():
                print(describe(dataset, tokens, config.max_seq_length, (about or {}).get("columns")))
            try:
                trainer.train(resume_from_checkpoint=checkpoint)
            except (NonFiniteLossError, KeyboardInterrupt) as error:
                kept = output and last_checkpoint(folder)
                message = str(error) or "interrupted"
                raise type(error)(f"{message}; the last checkpoint is {kept}" if kept else message) from error
            finally:  # what comes now is no part of the log; and an error's message needs a line of its own
                clock, shown = map(trainer.pop_callback, (StepClock, DEFAULT_PROGRESS_CALLBACK))
                if getattr(shown, "training_bar", None) is not None:
                    shown.training_bar.close()
                trainer.callback_handler.callbacks.clear()

            # 4. Run folder
            results, kept = _metrics(trainer, tokens, config, clock.seconds)
            results |= about or {}
            if output:
                trainer.save_model(str(folder / "final"))
                finish_run(output, folder / "final", results, kept)
                trainer.accelerator.wait_for_everyone()
    return TrainResult(model.eval(), tokenizer, results, kept, trainer)


class StepClock(TrainerCallback, ExportableState):
    """Seconds of every optimisation step, evaluation and saving left out."""

    def __init__(self):
        self.seconds: list[float] = []

    def state(self) -> dict:  # Trainer keeps it in a checkpoint
        return {"args": {}, "attributes": {"seconds": self.seconds}}

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self.seconds.append(time.perf_counter() - self.start)


@contextmanager
def _under(config: TrainConfig, model: PreTrainedModel) -> Iterator[nn.Module]:
    """What the Trainer trains under the method of `config`; afterwards `model` is plain again."""
    if config.method in PRIORS:
        with attention_prior(model, config.method, config.strength):
            yield model
    elif config.method == "naive":
        yield model
    else:
        wrapped = wrap(model, config.asa_config())
        try:
            yield wrapped
        finally:
            wrapped.unwrap()


@contextmanager
def _process_restored() -> Iterator[None]:
    """Undo what TrainingArguments and Trainer set for the whole process: variables, and determinism."""
    variables, cudnn = dict(os.environ), torch.backends.cudnn
    flags = cudnn.deterministic, cudnn.benchmark
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        for name in os.environ.keys() - variables.keys():
            del os.environ[name]
        os.environ.update(variables)
        cudnn.deterministic, cudnn.benchmark = flags
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)


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
        steps, learning_rate: updates by AdamW, and their rate.
        seed: of the adversaries' first weights.

    Returns:
        The wrapped model in evaluation mode; `unwrap()` gives back the plain one.
    """
    if not len(texts) or min(steps, batch_size) < 1:
        raise InputError("train_adversary needs at least one text, one step and one text in a batch")
    check_max_length(model, max_length)
    with ExitStack() as undo:  # on a failure; else the caller gets the wrapped model
        undo.enter_context(given_back(model))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            wrapped = wrap(model, AsaConfig(temperature))
        undo.callback(wrapped.unwrap)
        wrapped.train().model.eval()  # the adversarial pass runs in training mode, the dropout does not
        players = list(wrapped.adversaries.parameters())
        optimizer = torch.optim.AdamW(players, lr=learning_rate)
        options = {"truncation": True, "max_length": max_length, "padding": True, "return_tensors": "pt"}
        for first in range(0, steps * batch_size, batch_size):
            chosen = [texts[(first + i) % len(texts)] for i in range(min(batch_size, len(texts)))]
            batch = tokenizer(chosen, **options).to(model.device)
            # Any labels do: the task loss that they enter does not depend on the adversaries.
            labels = torch.zeros(len(chosen), dtype=torch.long, device=model.device)
            gradients = torch.autograd.grad(wrapped(**batch, labels=labels).loss, players)
            for player, gradient in zip(players, gradients, strict=True):
                player.grad = gradient
            optimizer.step()
        undo.pop_all()
    return wrapped.eval()


def _metrics(
    trainer: AsaTrainer, tokens: DatasetDict, config: TrainConfig, seconds: list[float]
) -> tuple[dict, dict[str, np.ndarray]]:
    state, pace = trainer.state, median(seconds or [0.0])
    evaluations = [row for row in state.log_history if "eval_loss" in row]
    scorer = trainer.compute_metrics
    results = {}
    results["results"], kept = evaluate_splits(trainer, tokens, scorer)
    if config.load_best_model_at_end:
        (epoch,) = (row["epoch"] for row in evaluations if row["step"] == state.best_global_step)
        results |= {"results_last": results["results"], "best_epoch": epoch}
        if state.best_global_step != state.global_step:
            trainer._load_best_model()
            results["results"], kept = evaluate_splits(trainer, tokens, scorer)
    found = {
        "config": asdict(config),
        "kind": scorer.kind,
        "metrics": list(scorer.metrics),
        "labels": scorer.names,
        "rows": {split: len(rows) for split, rows in tokens.items()},
        "steps": state.global_step,
        "by_epoch": [
            {"epoch": row["epoch"]}
            | {f"dev_{name}": row[f"eval_{name}"] for name in ("loss", *scorer.metrics)}
            for row in evaluations
        ],
        **results,
        "terms": trainer.terms,
        "seconds_per_step": pace,
        "steps_per_second": pace and 1 / pace,
        "train_seconds": sum(seconds),
        "processes": trainer.args.world_size,
        **environment(trainer.args.device),
    }
    return found, kept
