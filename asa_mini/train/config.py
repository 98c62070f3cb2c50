"""TrainConfig: the one home of every option of a training run."""

import dataclasses
import math
import sys
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Literal, get_args

from asa_mini.config import AsaConfig
from asa_mini.errors import InputError

if TYPE_CHECKING:
    import transformers

Prior = Literal["random_mask", "smoothing"]
Method = Literal["asa", "rdrop", "naive", Prior]
PRIORS: tuple[str, ...] = get_args(Prior)
METHODS: tuple[str, ...] = get_args(Method)


@dataclass
class TrainConfig:
    """Options of `train`, by the names of `transformers.TrainingArguments` where it has them.

    Args:
        method: asa; rdrop: two dropout passes and the same divergence, no mask; naive: plain training;
            random_mask, smoothing: plain training with a prior on attention, see `baselines.Prior`.
        asa: used by asa and rdrop; rdrop is ASA without a mask, `layers=()`.
        adversary_learning_rate: the adversaries' own rate (default: `learning_rate`).
        strength: of the prior, 0 to 1; used by random_mask and smoothing.
        num_train_epochs: passes over the training set, fractions allowed.
        learning_rate: peak rate of AdamW (linear warm-up over the first tenth, then linear decay to zero).
        per_device_train_batch_size: examples per step; an ASA step sees each of them twice.
        max_seq_length: longest sequence in tokens; longer texts are cut.
        seed: of the head, the adversaries, the order of the data and dropout.
        load_best_model_at_end: keep those of the lowest dev loss by epoch (default: the last step's weights).
        bf16: mixed precision by autocast (default: float32). Faster where the hardware has bfloat16.
        training: any other field of `transformers.TrainingArguments`, by its name.

    Raises:
        InputError: a value cannot be used.
    """

    # The reference's GLUE runs: 2e-5, batches of 32, 3 to 6 epochs, at most 128 tokens.
    method: Method = "asa"
    asa: AsaConfig = field(default_factory=AsaConfig)
    adversary_learning_rate: float | None = None  # there, both players have one rate
    strength: float = 0.1  # the better of the two that notebook 01 compares
    num_train_epochs: float = 3.0
    learning_rate: float = 2e-5
    per_device_train_batch_size: int = 32
    max_seq_length: int = 128
    seed: int = 0
    load_best_model_at_end: bool = False  # dev loss chooses among epochs: part of a comparison, so asked for
    bf16: bool = False  # float32 is the specification
    training: dict = field(default_factory=dict)

    def __post_init__(self):
        if self.method not in METHODS:
            raise InputError(f"unknown method {self.method!r}; choose one of {', '.join(METHODS)}")
        if not isinstance(self.asa, AsaConfig):
            raise InputError(f"asa must be an AsaConfig, but is {self.asa!r}")
        counts = "per_device_train_batch_size", "max_seq_length"
        for name in ("num_train_epochs", "learning_rate", "adversary_learning_rate", *counts):
            value = getattr(self, name)
            optional = value is None and name == "adversary_learning_rate"
            if not optional and (not _is_number(value) or value <= 0):
                raise InputError(f"{name} must be a finite number > 0, but is {value!r}")
        for name in (*counts, "seed"):
            if type(getattr(self, name)) is not int:
                raise InputError(f"{name} must be an integer, but is {getattr(self, name)!r}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed must be from 0 to {2**32 - 1}, but is {self.seed}")
        if not _is_number(self.strength) or not 0 <= self.strength <= 1:
            raise InputError(f"strength must be a number from 0 to 1, but is {self.strength!r}")
        for name in (*(f.name for f in dataclasses.fields(self)), "output_dir", "disable_tqdm"):
            if name in self.training:
                raise InputError(f"`training` cannot set {name}: TrainConfig or `train` itself does")

    def asa_config(self) -> AsaConfig:
        """What to wrap the model with, under the methods asa and rdrop."""
        return dataclasses.replace(self.asa, layers=()) if self.method == "rdrop" else self.asa

    def training_arguments(
        self, folder: str, keep: bool = True, progress: bool = True
    ) -> "transformers.TrainingArguments":
        """The TrainingArguments of a run that writes its checkpoints to `folder`.

        Args:
            keep: save after every epoch, so that a run that is stopped leaves something.
            progress: show bars, if stderr is a terminal.

        Raises:
            InputError: transformers refuses a name, a value or a combination of them.
        """
        import torch  # here, because --help does not wait for it
        import transformers

        cuda = torch.cuda.is_available()
        # Trainer passes over eval_steps and save_steps under the strategy "epoch".
        evaluating, saving = ("steps" if f"{x}_steps" in self.training else "epoch" for x in ("eval", "save"))
        defaults = {
            "warmup_steps": 0.1,  # a share of all steps
            "weight_decay": 0.01,
            "per_device_eval_batch_size": 2 * self.per_device_train_batch_size,  # no gradients to hold
            "train_sampling_strategy": "group_by_length",  # a third less padding to compute
            "eval_strategy": evaluating,
            "save_strategy": saving if keep or self.load_best_model_at_end else "no",
            "save_total_limit": 2,  # the last, and the best, or the one before in case the last is spoilt
            "restore_callback_states_from_checkpoint": True,  # an early stop counts on when the run goes on
            "metric_for_best_model": "eval_loss",  # says more than accuracy on a small dev set
            "logging_steps": 10,  # runs are short
            "logging_nan_inf_filter": False,  # a loss that is not finite stops the run instead
            "remove_unused_columns": False,  # there are none
            "dataloader_pin_memory": cuda,  # warns without a GPU
            # Trainer's way to allow bf16 on a CPU, and to join the processes of torchrun there.
            "use_cpu": not torch.accelerator.is_available() or (self.bf16 and not cuda),
            "report_to": "none",  # nothing leaves the machine unasked
        }
        known = {f.name for f in dataclasses.fields(transformers.TrainingArguments)}
        own = {name: value for name, value in vars(self).items() if name in known}
        # A bar in a file cannot be read.
        given = {**defaults, **self.training, **own, "disable_tqdm": not (progress and sys.stderr.isatty())}
        try:
            arguments = transformers.TrainingArguments(folder, **given)
        except (ValueError, TypeError, ImportError) as error:
            raise InputError(f"transformers.TrainingArguments refuses these options: {error}") from error
        absent = {*arguments.report_to} - {*transformers.integrations.get_available_reporting_integrations()}
        if absent:
            raise InputError(f"report_to: {', '.join(sorted(absent))} is unknown or not installed")
        return arguments


def _is_number(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
