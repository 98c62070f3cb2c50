"""AsaTrainer: `transformers.Trainer` with what a two-player objective needs, and nothing else."""

import logging
import math
import os
from pathlib import Path
from statistics import fmean

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import rotate_checkpoints

from asa_mini.errors import InputError, NonFiniteLossError
from asa_mini.model import AsaModel
from asa_mini.train.checkpoints import PROGRESS, last_checkpoint, read_progress, write_progress
from asa_mini.train.run_folder import ADVERSARY_WEIGHTS, save_adversaries

logger = logging.getLogger(__name__)

# What AsaTrainer overrides or reads. Were one renamed in Trainer, ours would be passed over without a word.
NEEDED = ("compute_loss", "create_optimizer", "log", "_get_train_sampler", "_clip_grad_norm", "_save")
NEEDED += ("_load_from_checkpoint", "_load_best_model", "model_accepts_loss_kwargs", "label_smoother")
NEEDED += ("compute_loss_func", "train", "_save_checkpoint", "_run_epoch", "_get_output_dir")
NEEDED += ("_get_eval_sampler",)
TERMS = ("task_loss", "divergence", "pay")


class SameOrderSampler(LengthGroupedSampler):
    """The order of an epoch follows from the seed and the epoch alone.

    Drawn from torch's global generator it would depend on how many numbers dropout took before, so that two
    methods would see different batches from the second epoch on, and so would two processes of one run.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths[:], generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(1000 * self.seed + epoch)


class SaveAfterEvaluation(TrainerCallback):
    """Puts off what Trainer saves by steps at the end of an epoch, or of the run, until that is evaluated.

    Who went on from a checkpoint in between would never evaluate that epoch.
    """

    due = False

    def on_step_end(self, args, state, control, **kwargs):
        self.due = control.should_save and (control.should_training_stop or state.epoch.is_integer())
        control.should_save &= not self.due

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_save |= self.due
        self.due = False


class AsaTrainer(Trainer):
    """A Trainer for wrapped models (and, as the baseline, for plain ones).

    What it adds: the adversaries have their own learning rate and are clipped apart from the encoder, because
    their gradients carry the factor 10000 of the mask and would otherwise set the encoder's step size; the
    terms of the loss are recorded and logged; a term that is not finite stops the run before it reaches the
    weights; checkpoints are plain Hugging Face checkpoints with the adversaries in a side file, and a run
    that goes on from one ends as if it had never stopped. Trainer's `label_smoothing_factor` and
    `compute_loss_func` act on the task loss.

    Args:
        adversary_learning_rate: None takes the encoder's.

    Attributes:
        terms: one dict per forward pass in training, "step" and as floats "loss" (the task loss and alpha
            times the divergence), "task_loss", "divergence", "pay" (temperature^2 times the kept units, which
            the adversaries alone feel); "kept_share" is a list. The means over all processes.

    Raises:
        InputError: there are several GPUs and no launcher, or options that exclude each other.
    """

    def __init__(self, *args, adversary_learning_rate: float | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.adversary_learning_rate = adversary_learning_rate
        self._check()
        # Classification losses do not divide by num_items_in_batch; believing they do multiplies loss and
        # gradient by the number of accumulation steps.
        self.model_accepts_loss_kwargs = False
        self.terms: list[dict] = []
        self._logged, self._warned, self._ended = 0, False, None
        self.add_callback(SaveAfterEvaluation())

    def _check(self) -> None:
        gpus, started = self.args.n_gpu, int(os.environ.get("WORLD_SIZE", 1))
        missing = [name for name in NEEDED if not hasattr(Trainer, name) and name not in vars(self)]
        if missing:
            need = f"AsaTrainer needs Trainer.{missing[0]}; transformers {transformers.__version__} has none"
            raise InputError(f"{need}: pip install 'transformers>=5.17,<5.24'")
        if gpus > 1:
            way = f"`torchrun --nproc_per_node {gpus} -m asa_mini train ...` or set CUDA_VISIBLE_DEVICES=0"
            raise InputError(f"{gpus} GPUs without a launcher share one adversary (DataParallel): run {way}")
        if self.args.world_size < started:
            way = "without a GPU, TrainingArguments need use_cpu=True to join them"
            raise InputError(f"{started} processes were started, but each would train its own model: {way}")
        if self._asa_model() is None:
            return
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise InputError("ASA trains on several devices by DDP (torchrun), not by FSDP or DeepSpeed")
        if self.optimizer is not None and self.adversary_learning_rate is not None:
            way = "give your optimizer a group with the adversaries' rate"
            raise InputError(f"optimizers= and adversary_learning_rate exclude each other: {way}")

    def _asa_model(self) -> AsaModel | None:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model if isinstance(model, AsaModel) else None

    def _adversary_parameters(self) -> list[nn.Parameter]:
        model = self._asa_model()
        return [] if model is None else list(model.adversaries.parameters())

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        """Trainer's. What was recorded up to the checkpoint is there again; True is the last complete one.

        Raises:
            InputError: the checkpoint is not complete.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(Path(self.args.output_dir)) or self.args.output_dir
        progress = read_progress(resume_from_checkpoint) if resume_from_checkpoint else {}
        self.terms, self._ended = progress.get("terms", []), progress.get("ended")
        self._logged = len(self.terms)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _run_epoch(self, *args, **kwargs):
        if self._ended == self.state.max_steps:  # at the checkpoint; Trainer would take one step more
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """One forward pass of the game; Trainer's backward pass then moves both players."""
        if model.training and "labels" not in inputs:
            raise InputError("the training data has no column 'labels'")
        asa = self._asa_model()
        if asa is None:  # the baseline: all of it is Trainer's
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            terms = {"loss": loss}
        else:
            outputs = model(**inputs)  # both passes in one forward, so that DDP sees one
            loss = self._task_loss(asa, outputs, inputs.get("labels"), num_items_in_batch)
        if asa is not None and model.training:
            # Trainer divides a loss by the accumulation steps, but leaves that of a compute_loss_func alone.
            steps = 1 if self.compute_loss_func is None else self.current_gradient_accumulation_steps
            divergence = outputs.divergence / steps
            pay = asa.asa_config.temperature**2 * outputs.kept_units / steps
            terms = dict(zip(TERMS, (loss, divergence, pay), strict=True))
            terms["loss"] = loss = loss + asa.asa_config.alpha * divergence
            # The pay's gradient is the adversaries' alone. Its value, a thousand times the rest, stays out.
            loss = loss + (pay - pay.detach())
        if model.training:
            self._record(terms, outputs.get("kept_share"))
        return (loss, outputs) if return_outputs else loss

    def _task_loss(self, asa: AsaModel, outputs, labels: Tensor, num_items_in_batch) -> Tensor:
        """The task loss of a wrapped model's clean logits, by the rules of `Trainer.compute_loss`."""
        if self.compute_loss_func is not None:
            loss = self.compute_loss_func(outputs, labels, num_items_in_batch=num_items_in_batch)
            whole = num_items_in_batch is not None and self.args.average_tokens_across_devices
            return loss * self.accelerator.num_processes if whole else loss
        if self.label_smoother is not None:
            causal = type(asa.model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
            return self.label_smoother(outputs, labels, shift_labels=causal)
        return outputs["task_loss" if "task_loss" in outputs else "loss"]

    def _record(self, terms: dict[str, Tensor], kept_share: Tensor | None) -> None:
        numbers = [*terms.values(), *([] if kept_share is None else [kept_share])]
        numbers = torch.cat([x.detach().float().reshape(-1) for x in numbers])
        numbers = self.accelerator.reduce(numbers, "mean").tolist()  # one transfer
        record = {"step": self.state.global_step + 1, **dict(zip(terms, numbers, strict=False))}
        for name in terms:  # the total last: name the term that spoilt it
            self._check_finite(name, record[name])
        if kept_share is not None:
            record["kept_share"] = numbers[len(terms) :]
        self.terms.append(record)

    def _check_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            what = f"{name} is {value} at step {self.state.global_step + 1}"
            way = "lower the learning rate, or look at the batch"
            raise NonFiniteLossError(f"{what}: training stopped before the weights changed; {way}")

    def create_optimizer(self, model=None):
        """Trainer's groups, and two of the adversaries, which have their own rate: with and without decay."""
        apart = self.optimizer is None and self.adversary_learning_rate is not None
        adversary = [p for p in self._adversary_parameters() if apart and p.requires_grad]
        try:
            for p in adversary:  # Trainer's own groups take what requires a gradient
                p.requires_grad_(False)
            optimizer = super().create_optimizer(model)
        finally:
            for p in adversary:
                p.requires_grad_(True)
        for matrices, decay in ((True, self.args.weight_decay), (False, 0.0)):
            if parameters := [p for p in adversary if (p.ndim > 1) == matrices]:
                group = {"params": parameters, "lr": self.adversary_learning_rate, "weight_decay": decay}
                optimizer.add_param_group(group)
        return optimizer

    def _clip_grad_norm(self, model):
        asa, limit = self._asa_model(), self.args.max_grad_norm
        encoder = model if asa is None else asa.model
        norm = self.accelerator.clip_grad_norm_(encoder.parameters(), limit)  # also unscales, under fp16
        adversary_norm = nn.utils.clip_grad_norm_(self._adversary_parameters(), limit)
        if not self.args.fp16:  # there the scaler skips such a step and lowers its scale
            self._check_finite("the gradient norm", float(norm + adversary_norm))
        return norm

    def _get_train_sampler(self, train_dataset=None):
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            return SameOrderSampler(sampler.batch_size, sampler.lengths, seed)
        return sampler

    def log(self, logs, start_time=None):
        """Adds the means of the terms since the last log; warns once of adversaries that play no game."""
        fresh = self.terms[self._logged :] if "loss" in logs else []
        self._logged += len(fresh)
        if fresh:  # Trainer logs the loss itself
            logs = {**logs, **{name: fmean(r[name] for r in fresh) for name in TERMS if name in fresh[0]}}
            logs |= {f"kept_share_{layer}": share for layer, share in self._kept_shares(fresh).items()}
        shares = self._kept_shares(fresh or self.terms[-10:])
        idle = {layer: share for layer, share in shares.items() if not 0.01 <= share <= 0.99}
        # At once where no layer has an opponent, at the end where some have none.
        if idle and not self._warned and (len(idle) == len(shares) or "train_loss" in logs):
            self._warned = True
            if self.is_world_process_zero():
                layers, kept = ", ".join(map(str, idle)), ", ".join(f"{share:.1%}" for share in idle.values())
                logger.warning(
                    f"after {self.state.global_step} steps the adversaries of layers {layers} keep {kept} of "
                    "their units: above 99 % they attack nothing (lower the temperature), below 1 % they "
                    "leave nothing (raise it)"
                )
        super().log(logs, start_time)

    def _kept_shares(self, records: list[dict]) -> dict[int, float]:
        """Means by layer."""
        shares = list(map(fmean, zip(*(record.get("kept_share", []) for record in records), strict=True)))
        layers = sorted(int(key) for key in self._asa_model().adversaries) if shares else []
        # ALBERT calls one layer many times; there each call has its own share.
        layers = layers if len(layers) == len(shares) else range(len(shares))
        return dict(zip(layers, shares, strict=True))

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)  # the plain model's checkpoint
        if self._asa_model() is not None and self.args.should_save:  # of several processes, one
            save_adversaries(self._asa_model(), Path(output_dir or self.args.output_dir))

    def _save_checkpoint(self, model, trial):
        """Trainer's, and a last file that says that all is there; only then an older checkpoint goes."""
        folder = Path(self._get_output_dir(trial))
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        (checkpoint / PROGRESS).unlink(missing_ok=True)  # of an earlier run in this folder
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()  # every process writes its random state
        if self.args.should_save and not self.args.save_only_model:  # no run goes on from a model alone
            ended = (
                self.state.max_steps if self.control.should_training_stop else None
            )  # planned, reached or not
            write_progress(checkpoint, terms=self.terms, ended=ended)
            rotate_checkpoints(str(folder), limit, self.state.best_model_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        asa = self._asa_model()
        super()._load_from_checkpoint(resume_from_checkpoint, model if asa is None else asa.model)
        if asa is not None:
            weights = load_file(Path(resume_from_checkpoint, ADVERSARY_WEIGHTS), device=str(asa.device))
            asa.adversaries.load_state_dict(weights)

    def _load_best_model(self):
        # The path is not recorded where a run goes on in another working directory.
        step = self.state.best_global_step
        best = self.state.best_model_checkpoint or Path(self.args.output_dir, f"checkpoint-{step}")
        self._load_from_checkpoint(best)
