"""`wrap`: Adversarial Self-Attention around any Hugging Face encoder, without forking its code."""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from asa_mini.adversary import Adversary
from asa_mini.attention import BACKENDS
from asa_mini.errors import InputError
from asa_mini.hf import AdversaryHook, AsaPass, choose_backend, find_self_attention
from asa_mini.objective import AsaOutput, asa_objective, check_head, task_loss
from asa_mini.train.models import max_positions

logger = logging.getLogger(__name__)


@dataclass
class AsaConfig:
    """Options of Adversarial Self-Attention; the defaults are the reference's.

    Args:
        temperature: tau, how much the adversary is paid for each unit it keeps (tau^2).
        alpha: weight of the divergence between the clean and the adversarial prediction.
        layers: indices of the attacked layers, counted from 0 (default: all). With no layer attacked,
            `layers=()`, two dropout passes and the divergence remain: the R-Drop control.
        gradient_reversal_scale: strength of the reversal in front of the adversaries.
        joint_pass: run the clean and the adversarial half as one batch of 2B; False runs them one after the
            other. The result is the same.
        backend: attention backend, see `asa_attention`; with "auto", a model with sliding windows uses the
            reference on a GPU, too. `AsaModel.asa_backend` and the log say which it is.
    """

    temperature: float = 0.5
    alpha: float = 1.0
    layers: Sequence[int] | None = None
    gradient_reversal_scale: float = 1.0
    joint_pass: bool = True
    backend: str = "auto"

    def __post_init__(self):
        for name in ("temperature", "alpha", "gradient_reversal_scale"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not math.isfinite(value) or value < 0:
                raise InputError(f"{name} must be a finite number >= 0, but is {value!r}")
        if self.backend not in BACKENDS:
            raise InputError(
                f"unknown attention backend {self.backend!r}; choose one of {', '.join(BACKENDS)}"
            )


class AsaModel(nn.Module):
    """A Hugging Face model under Adversarial Self-Attention; made by `wrap`.

    In training mode it returns an `AsaOutput`; in evaluation mode it is the plain model, bit for bit.

    Attributes:
        model: the original model. adversaries: one `Adversary` per attacked layer, keyed by layer index.
        asa_config: the `AsaConfig`. self_attention_modules: number of self-attention modules found.
    """

    # Trainer sees **kwargs in forward and would stop dividing the loss by its accumulation steps.
    accepts_loss_kwargs = False

    def __init__(self, model: PreTrainedModel, config: AsaConfig):
        super().__init__()
        self.model = model
        self.asa_config = config
        self._plain_attention = model.config._attn_implementation
        modules = find_self_attention(model)
        layers = _check_layers(config.layers, len(modules))
        self.self_attention_modules = len(modules)
        self.adversaries = nn.ModuleDict()
        self._hooks = []
        for index, module in enumerate(modules):
            adversary = None
            if index in layers:
                weight = next(module.parameters())
                std = getattr(model.config, "initializer_range", 0.02)
                adversary = Adversary(model.config.hidden_size, std).to(weight.device, weight.dtype)
                self.adversaries[str(index)] = adversary
            # Hooked even where no adversary is, so that a second wrap can see the first.
            self._hooks.append(module.register_forward_pre_hook(AdversaryHook(adversary), with_kwargs=True))
        self._logged_backend = None
        self._wrapped = True  # the hooks themselves would break torch.compile's graph
        self.train(model.training)

    @property
    def config(self):
        return self.model.config

    @property
    def asa_backend(self) -> str:
        """The attention backend of the adversarial pass: "reference" or "triton"."""
        return choose_backend(self.asa_config.backend, self.model)

    @property
    def device(self) -> torch.device:
        return self.model.device

    # What Trainer calls on a model: by the first names up to transformers 5.17, by the others in 5.23.
    def gradient_checkpointing_enable(self, *args, **kwargs) -> None:
        self.model.gradient_checkpointing_enable(*args, **kwargs)

    def gradient_checkpointing_disable(self) -> None:
        self.model.gradient_checkpointing_disable()

    def activation_checkpointing_enable(self, *args, **kwargs) -> None:
        self.model.activation_checkpointing_enable(*args, **kwargs)

    def activation_checkpointing_disable(self) -> None:
        self.model.activation_checkpointing_disable()

    def train(self, mode: bool = True) -> "AsaModel":
        super().train(mode)
        if self._wrapped:  # afterwards the model is no longer ours to change
            self._set_attention("asa" if mode else self._plain_attention)
        if mode and self._wrapped and self._logged_backend != self.asa_backend:  # it may have moved to a GPU
            self._logged_backend = self.asa_backend
            logger.info("ASA attention backend: %s, on %s", self.asa_backend, self.device)
        return self

    def _check_wrapped(self) -> None:
        if not self._wrapped:
            raise InputError("this model was unwrapped; call asa_mini.wrap again to train it with ASA")

    def _set_attention(self, implementation: str) -> None:
        if self.config._attn_implementation != implementation:
            self.model.set_attn_implementation(implementation)

    def unwrap(self) -> PreTrainedModel:
        """Remove every trace of ASA and return the original model, the same module objects."""
        if self._wrapped:
            self._set_attention(self._plain_attention)
            self._wrapped = False
        for hook in self._hooks:
            hook.remove()
        return self.model

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, labels=None, **kwargs):
        """Any keyword of the model. In training: input_ids (B, L), attention_mask (B, L), labels (B, ...).

        Raises:
            InputError: the sequences are longer than the model's position table; in training, labels are
                missing or (checked on the CPU) an example is all padding.
        """
        batch = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            **kwargs,
        }
        batch = {name: value for name, value in batch.items() if value is not None}
        size = _check_inputs(self.model, batch)
        if not self.training:
            return self.model(**batch, **({} if labels is None else {"labels": labels}))
        self._check_wrapped()
        if labels is None:
            raise InputError("ASA needs labels in training mode; pass labels=..., or call .eval() to predict")
        check_padding(attention_mask)
        logits, adversarial_logits, kept_units, kept_share = self._both_passes(batch, size)
        terms = asa_objective(
            task_loss(self.model, logits, labels),
            logits,
            adversarial_logits,
            kept_units,
            self.asa_config.alpha,
            self.asa_config.temperature,
        )
        return AsaOutput(
            loss=terms.loss,
            logits=logits,
            adversarial_logits=adversarial_logits,
            task_loss=terms.task_loss,
            divergence=terms.divergence,
            kept_units=terms.kept_units,
            kept_share=kept_share,
        )

    @contextmanager
    def attackable(self) -> Iterator[PreTrainedModel]:
        """The plain model, dropout off, while a call of it with `asa=AsaPass(...)` meets the adversaries."""
        self._check_wrapped()
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            self._set_attention("asa")
            yield self.model
        finally:
            self.train(modes[self])  # sets the attention, too
            for module, training in modes.items():
                module.training = training

    @torch.no_grad()
    def masks(self, **batch: Tensor) -> list[Tensor]:
        """What the adversaries would switch off in a batch, dropout off.

        Args:
            batch: keywords of the model without labels, input_ids (B, L) and so on.

        Returns:
            Per layer (B, L, L), boolean, True = kept and allowed; a layer that is not attacked keeps all.
        """
        asa = AsaPass(joint=False, backend=self.asa_backend, masks=[])
        with self.attackable() as model:
            model(**batch, asa=asa)
        return asa.masks

    def _both_passes(self, batch: dict, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        config, batch = self.asa_config, {**batch, "return_dict": True}
        asa = AsaPass(config.joint_pass, self.asa_backend, config.gradient_reversal_scale)
        if asa.joint:
            # What does not count the examples is shared by both halves, e.g. position_ids (1, L).
            both = {
                name: torch.cat([x, x]) if isinstance(x, Tensor) and x.ndim and x.shape[0] == size else x
                for name, x in batch.items()
            }
            logits, adversarial_logits = self.model(**both, asa=asa).logits.chunk(2)
        else:
            logits = self.model(**batch).logits
            adversarial_logits = self.model(**batch, asa=asa).logits
        kept_units = torch.stack(asa.kept_units).sum() if asa.kept_units else logits.new_zeros(())
        kept_share = torch.stack(asa.kept_share) if asa.kept_share else None
        asa.kept_units.clear()  # gradient checkpointing makes the graph hold `asa`: break the cycle
        return logits, adversarial_logits, kept_units, kept_share


def _check_inputs(model: PreTrainedModel, batch: dict) -> int:
    """The batch size; InputError if there is no input, or if it is too long for the model."""
    if "asa" in batch:
        raise InputError(
            "the keyword `asa` is set by the wrapped model itself; to give your own, call .model"
        )
    if "input_ids" in batch:
        size, length = batch["input_ids"].shape[0], batch["input_ids"].shape[-1]
    elif "inputs_embeds" in batch:
        size, length = batch["inputs_embeds"].shape[0], batch["inputs_embeds"].shape[-2]
    else:
        raise InputError("the model needs input_ids or inputs_embeds")
    positions = max_positions(model)
    if positions is not None and length > positions:
        raise InputError(f"sequences of {length} tokens are longer than the model's {positions} positions")
    return size


def check_padding(attention_mask: Tensor | None) -> None:
    """Raise InputError if an example has no real token; only on the CPU, where looking costs no wait."""
    if attention_mask is None or attention_mask.device.type != "cpu" or torch.compiler.is_compiling():
        return
    empty = (attention_mask == 0).all(-1)  # (B,), or (B, choices)
    if attention_mask.ndim <= 3 and empty.any():
        raise InputError(
            f"example {int(empty.nonzero()[0, 0])} of the batch is all padding: its attention_mask has no 1"
        )


def wrap(model: PreTrainedModel, config: AsaConfig | None = None) -> AsaModel:
    """Put Adversarial Self-Attention around a Hugging Face model.

    Args:
        model: an encoder (or causal decoder) with a classification, token classification, multiple choice
            or language modelling head, whose attention goes through transformers' `AttentionInterface`.
        config: an `AsaConfig`; the reference's settings by default.

    Raises:
        InputError (a ValueError): the model's family does not support it, it has no such head, it is
            wrapped already, `config` is no AsaConfig, or its `layers` are out of range.
    """
    if not isinstance(config, AsaConfig | None):
        kind = type(config).__name__
        raise InputError(f"wrap takes an AsaConfig, not a {kind}: wrap(model, AsaConfig(temperature=0.3))")
    if isinstance(model, AsaModel) or any(
        isinstance(hook, AdversaryHook) for m in model.modules() for hook in m._forward_pre_hooks.values()
    ):
        raise InputError("this model is wrapped already; call unwrap() on the wrapped model first")
    check_head(model)
    return AsaModel(model, config or AsaConfig())


def _check_layers(layers: Sequence[int] | None, found: int) -> set[int]:
    if layers is None:
        return set(range(found))
    if not isinstance(layers, Iterable) or isinstance(layers, str):
        raise InputError(f"layers must be a list of layer indices, but is {layers!r}")
    wrong = [layer for layer in layers if not isinstance(layer, int) or not 0 <= layer < found]
    if wrong:
        raise InputError(
            f"layers {wrong} are out of range: this model has {found} attention layers, 0 to {found - 1}"
        )
    if len(set(layers)) < len(layers):
        raise InputError(f"layers {list(layers)} name a layer twice")
    return set(layers)
