"""AsaTrainer: `transformers.Trainer` with what a two-player objective needs, and nothing else."""

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from asa_mini.errors import InputError, NonFiniteLossError
from asa_mini.train.run_folder import ADVERSARY_WEIGHTS, save_adversaries
from asa_mini.wrap import AsaModel

TERMS = ("loss", "task_loss", "divergence", "kept_units")


class SameOrderSampler(LengthGroupedSampler):
    """The order of an epoch follows from the seed and the epoch alone.

    Drawn from torch's global generator it would depend on how many numbers dropout took before, so that two
    methods would see different batches from the second epoch on.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(1000 * self.seed + epoch)


class AsaTrainer(Trainer):
    """A Trainer for wrapped models (and, as the baseline, for plain ones).

    What it adds: the adversaries have their own learning rate and are clipped apart from the encoder, because
    their gradients carry the factor 10000 of the mask and would otherwise set the encoder's step size; the
    terms of the loss are recorded and logged; a term that is not finite stops the run before it reaches the
    weights; checkpoints are plain Hugging Face checkpoints with the adversaries in a side file.

    Args:
        adversary_learning_rate: None takes the encoder's.

    Attributes:
        terms: one dict per forward pass in training, "step" and the terms as floats, "kept_share" a list.
    """

    def __init__(self, *args, adversary_learning_rate: float | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        # Classification losses do not divide by num_items_in_batch; believing they do multiplies loss and
        # gradient by the number of accumulation steps.
        self.model_accepts_loss_kwargs = False
        self.adversary_learning_rate = adversary_learning_rate
        self.terms: list[dict] = []
        self._logged, self._log_time, self._log_step = 0, None, 0

    def _asa_model(self) -> AsaModel | None:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model if isinstance(model, AsaModel) else None

    def _adversary_parameters(self) -> list[nn.Parameter]:
        model = self._asa_model()
        return [] if model is None else list(model.adversaries.parameters())

    def _get_train_sampler(self, train_dataset=None):
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            return SameOrderSampler(sampler.batch_size, sampler.lengths, self.args.seed)
        return sampler

    def create_optimizer(self, model=None):
        ready = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if ready or self.adversary_learning_rate is None:
            return optimizer
        adversary = {id(p) for p in self._adversary_parameters()}
        for group in list(optimizer.param_groups):
            moved = [p for p in group["params"] if id(p) in adversary]
            if moved:
                group["params"] = [p for p in group["params"] if id(p) not in adversary]
                optimizer.add_param_group({**group, "params": moved, "lr": self.adversary_learning_rate})
        return optimizer

    def _clip_grad_norm(self, model):
        adversary = self._adversary_parameters()
        ids = {id(p) for p in adversary}
        encoder = [p for p in model.parameters() if id(p) not in ids]
        limit = self.args.max_grad_norm
        norm = self.accelerator.clip_grad_norm_(encoder, limit)  # also unscales, under fp16
        adversary_norm = nn.utils.clip_grad_norm_(adversary, limit)
        if not self.args.fp16:  # there the scaler skips such a step and lowers its scale
            self._check_finite("the gradient norm", float(norm + adversary_norm))
        return norm

    def _check_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            raise NonFiniteLossError(
                f"{name} is {value} at step {self.state.global_step + 1}: training stopped before that step "
                "changed the weights; lower the learning rate, or look at the batch"
            )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if model.training and "labels" not in inputs:
            raise InputError("the training data has no column 'labels'")
        if self._log_time is None:
            self._log_time, self._log_step = time.perf_counter(), self.state.global_step
        outputs = model(**inputs)
        if model.training:
            self._record(outputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _record(self, outputs) -> None:
        names = [name for name in TERMS if outputs.get(name) is not None]
        values = [outputs[name].detach().float().reshape(1) for name in names]
        share = outputs.get("kept_share")
        numbers = torch.cat([*values, *([] if share is None else [share.float()])]).tolist()  # one transfer
        terms = dict(zip(names, numbers, strict=False))
        for name in [*names[1:], "loss"]:  # the total last: name the term that spoilt it
            self._check_finite(name, terms[name])
        record = {"step": self.state.global_step + 1, **terms}
        if share is not None:
            record["kept_share"] = numbers[len(names) :]
        self.terms.append(record)

    def log(self, logs, start_time=None):
        fresh = self.terms[self._logged :]
        if "loss" in logs and fresh:
            sums = defaultdict(float)
            for record in fresh:
                for name in TERMS[1:]:
                    if name in record:
                        sums[name] += record[name]
                shares = record.get("kept_share", [])
                for layer, share in zip(self._layers(len(shares)), shares, strict=True):
                    sums[f"kept_share_{layer}"] += share
            logs = logs | {name: total / len(fresh) for name, total in sums.items()}
            now = time.perf_counter()
            logs["steps_per_second"] = (self.state.global_step - self._log_step) / (now - self._log_time)
            self._logged, self._log_time, self._log_step = len(self.terms), now, self.state.global_step
        super().log(logs, start_time)

    def _layers(self, calls: int) -> Sequence[int]:
        """The attacked layers' numbers; ALBERT calls one layer many times, there each call has its own."""
        layers = sorted(int(key) for key in self._asa_model().adversaries) if calls else []
        return layers if len(layers) == calls else range(calls)

    def _save(self, output_dir=None, state_dict=None):
        asa = self._asa_model()
        if asa is None:
            return super()._save(output_dir, state_dict)
        self._with_plain_model(super()._save, output_dir)
        save_adversaries(asa, Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        self._with_plain_model(super()._load_from_checkpoint, resume_from_checkpoint)
        self._load_adversaries(resume_from_checkpoint)

    def _load_best_model(self):
        self._with_plain_model(super()._load_best_model)
        self._load_adversaries(self.state.best_model_checkpoint)

    def _with_plain_model(self, method, *args):
        """Run a method of Trainer's that reads or writes `self.model` on the model inside the wrapper."""
        wrapped, asa = self.model, self._asa_model()
        self.model = wrapped if asa is None else asa.model
        try:
            method(*args)
        finally:
            self.model = wrapped

    def _load_adversaries(self, folder) -> None:
        asa = self._asa_model()
        if asa is not None:
            asa.adversaries.load_state_dict(
                load_file(Path(folder) / ADVERSARY_WEIGHTS, device=str(asa.device))
            )
