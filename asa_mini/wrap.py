"""`wrap`: Adversarial Self-Attention around any Hugging Face encoder, without forking its code."""

import inspect
import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from numbers import Real
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from asa_mini.adversary import Adversary
from asa_mini.attention import BACKENDS, choose_backend
from asa_mini.errors import InputError
from asa_mini.hf import AdversaryHook, AsaPass, max_positions, probe_attention
from asa_mini.objective import AsaOutput, asa_objective, check_head, head_name, task_loss

logger = logging.getLogger(__name__)

# Keywords with a row for each example, which a joint pass doubles, and tensors without, which its halves share.
PER_EXAMPLE = [
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "task_type_ids",
    "position_ids",
    "inputs_embeds",
    "encoder_hidden_states",
    "encoder_attention_mask",
]
SHARED = ("cache_position", "head_mask", "logits_to_keep")


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
            other, in half the memory. The result is the same.
        backend: attention backend, see `choose_backend`; with "auto", a model with sliding windows uses the
            reference on a GPU, too. `AsaModel.asa_backend` and the log say which it is.

    Raises:
        InputError: a value cannot be used.
    """

    temperature: float = 0.5  # the authors' GLUE runs; they pay for 128 padded rows, see `asa_objective`
    alpha: float = 1.0  # theirs, too: the divergence is added as it is
    layers: list[int] | None = None  # they attack all; a part of them is cheaper, and weaker
    gradient_reversal_scale: float = 1.0  # theirs; the adversary's learning rate does more
    joint_pass: bool = True  # feeds the device better than two passes
    backend: Literal["auto", "reference", "triton"] = "auto"  # the fastest that can compute it

    def __post_init__(self):
        for name in ("temperature", "alpha", "gradient_reversal_scale"):
            value = getattr(self, name)
            number = isinstance(value, Real) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value < 0:
                raise InputError(f"{name} must be a finite number >= 0, but is {value!r}")
        if not isinstance(self.joint_pass, bool):
            raise InputError(f"joint_pass must be True or False, but is {self.joint_pass!r}")
        if self.backend not in BACKENDS:
            raise InputError(
                f"unknown attention backend {self.backend!r}; choose one of {', '.join(BACKENDS)}"
            )
        if self.layers is None:
            return
        if not isinstance(self.layers, Iterable) or isinstance(self.layers, str):
            raise InputError(f"layers must be a list of layer indices, but is {self.layers!r}")
        self.layers = list(self.layers)
        wrong = [layer for layer in self.layers if type(layer) is not int or layer < 0]
        if wrong:
            raise InputError(f"layers must be indices counted from 0, but {wrong} are not")
        if len(set(self.layers)) < len(self.layers):
            raise InputError(f"each layer can be attacked once, but layers is {self.layers}")


class AsaModel(nn.Module):
    """A Hugging Face model under Adversarial Self-Attention; made by `wrap`.

    In training mode it returns an `AsaOutput`; in evaluation mode it is the plain model, bit for bit. Every
    attribute that it does not have itself is the plain model's (config, device, get_input_embeddings,
    gradient_checkpointing_enable, ...), and so are its class, as `isinstance` and `__class__` tell it, and the
    signature of `forward`: what reads these of a model, Trainer above all, finds what it looks for.

    Attributes:
        model: the original model. adversaries: one `Adversary` per attacked layer, keyed by layer index.
        asa_config: the `AsaConfig`. self_attention_modules: number of self-attention modules found.
    """

    # Trainer sees **kwargs in forward and would stop dividing the loss by its accumulation steps.
    accepts_loss_kwargs = False

    def __init__(self, model: PreTrainedModel, config: AsaConfig, widths: dict[nn.Module, int]):
        super().__init__()
        std = getattr(model.config, "initializer_range", 0.02)
        adversaries = {}
        for index, (module, width) in enumerate(widths.items()):
            if config.layers is None or index in config.layers:
                weight = next(module.parameters())
                dtype = torch.promote_types(weight.dtype, torch.float32)  # see `Adversary`
                adversaries[str(index)] = Adversary(width, std).to(weight.device, dtype).train(model.training)
        self.model = model
        self.adversaries = nn.ModuleDict(adversaries)
        self.asa_config = config
        self.self_attention_modules = len(widths)
        # Hooked even where no adversary is, so that a second wrap can see the first.
        self._hooks = [
            module.register_forward_pre_hook(AdversaryHook(adversaries.get(str(index))), with_kwargs=True)
            for index, module in enumerate(widths)
        ]
        self._wrapped = True  # the hooks themselves would break torch.compile's graph
        self._logged_backend = None
        self.training = model.training
        self._use_asa(model.training)

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model" or name.startswith("__"):
                raise
            return getattr(self.model, name)

    def __dir__(self):
        return [*super().__dir__(), *dir(AsaModel)]

    def __reduce__(self):  # pickle cannot find the class that `_class_around` makes
        return _empty, (type(self.model),), self.__dict__

    def _get_name(self) -> str:
        return "AsaModel"

    @property
    def asa_backend(self) -> str:
        """The attention backend of the adversarial pass where the model is now: "reference" or "triton"."""
        config = self.model.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        windows = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
        return choose_backend(
            self.asa_config.backend,
            device=self.model.device.type,
            dtypes={self.model.dtype},
            head_dim=head_dim,
            value_dim=head_dim,
            mask_rows=2 if windows else 1,
        )

    def _use_asa(self, on: bool) -> None:
        """Switch the attention implementation; off gives back the one that was there before."""
        current = self.model.config._attn_implementation
        if on and current != "asa":
            self._plain_attention = current
            self.model.set_attn_implementation("asa")
        elif not on and current == "asa":
            self.model.set_attn_implementation(self._plain_attention)

    def train(self, mode: bool = True) -> "AsaModel":
        super().train(mode)
        if self._wrapped:  # afterwards the model is no longer ours to change
            self._use_asa(mode)
        return self

    def _check_wrapped(self) -> None:
        if not self._wrapped:
            raise InputError("this model was unwrapped; call asa_mini.wrap again to train it with ASA")

    def unwrap(self) -> PreTrainedModel:
        """Remove every trace of ASA and return the original model, the same module objects."""
        for hook in self._hooks:
            hook.remove()
        if self._wrapped:
            self._wrapped = False
            self._use_asa(False)
        return self.model

    def save_pretrained(
        self, save_directory, is_main_process: bool = True, state_dict=None, **kwargs
    ) -> None:
        """Write the plain model's checkpoint, which loads without asa_mini; it holds no adversaries."""
        if state_dict is not None:  # of the wrapped model, from Trainer
            inside = {n.removeprefix("model."): x for n, x in state_dict.items() if n.startswith("model.")}
            state_dict = inside
        self.model.save_pretrained(save_directory, is_main_process, state_dict, **kwargs)

    def load_state_dict(self, state_dict, *args, **kwargs):
        """The wrapped model's own, or the plain model's, as a checkpoint has it: the adversaries then stay."""
        if state_dict and state_dict.keys() <= self.model.state_dict().keys():
            logger.warning(
                "this checkpoint holds no adversaries; they stay as they are (AsaTrainer saves them)"
            )
            return self.model.load_state_dict(state_dict, *args, **kwargs)
        return super().load_state_dict(state_dict, *args, **kwargs)

    def forward(self, labels: Tensor | None = None, **batch):
        """Any argument of the model. In training: input_ids (B, L), attention_mask (B, L), labels (B, ...).

        Raises:
            InputError: the sequences are longer than the model's position table; in training, labels are
                missing, the adversaries are frozen, a joint pass does not know a keyword's first dimension,
                or (checked on the CPU) an example is all padding.
        """
        batch = {name: value for name, value in batch.items() if value is not None}
        size = _check_inputs(self.model, batch)
        if not self.training:
            return self.model(**batch, **({} if labels is None else {"labels": labels}))
        self._check_wrapped()
        if labels is None:
            raise InputError("ASA needs labels in training mode; pass labels=..., or call .eval() to predict")
        check_padding(batch.get("attention_mask"))
        self._check_trainable()
        logits, adversarial_logits, kept_units, kept_share = self._both_passes(batch, size)
        config, task = self.asa_config, task_loss(self.model, logits, labels)
        out = asa_objective(task, logits, adversarial_logits, kept_units, config.alpha, config.temperature)
        return AsaOutput(**{**out, "kept_share": kept_share})

    def _check_trainable(self) -> None:
        frozen = [
            layer
            for layer, adversary in self.adversaries.items()
            if not all(x.requires_grad for x in adversary.parameters())
        ]
        if frozen:
            raise InputError(
                f"the adversaries of layers {', '.join(frozen)} are frozen, wholly or in part; LoRA and the "
                "like belong into the model before it is wrapped (or call adversaries.requires_grad_(); for "
                "an adversary that does not learn, set gradient_reversal_scale=0)"
            )

    @contextmanager
    def attackable(self) -> Iterator[PreTrainedModel]:
        """The plain model, dropout off, while a call of it with `asa=AsaPass(...)` meets the adversaries."""
        self._check_wrapped()
        modes = {module: module.training for module in self.modules()}
        used_asa = self.model.config._attn_implementation == "asa"
        try:
            self.eval()
            self._use_asa(True)
            yield self.model
        finally:
            for module, training in modes.items():
                module.training = training
            if self._wrapped:
                self._use_asa(used_asa)

    @torch.no_grad()
    def masks(self, **batch: Tensor) -> list[Tensor]:
        """What the adversaries would switch off in a batch, dropout off.

        Args:
            batch: keywords of the model without labels, input_ids (B, L) and so on.

        Returns:
            Per layer (B, L, L), boolean, True = kept and allowed; a layer that is not attacked keeps all.
        """
        asa = AsaPass(joint=False, backend=self._pass_backend(), masks=[])
        with self.attackable() as model:
            model(**batch, asa=asa)
        return asa.masks

    def _pass_backend(self) -> str:
        """Of an `AsaPass`: with "auto", a single batch may still need the reference, say for a dense mask."""
        return "reference" if self.asa_backend == "reference" else self.asa_config.backend

    def _both_passes(self, batch: dict, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        config, batch = self.asa_config, {**batch, "return_dict": True}
        asa = AsaPass(config.joint_pass, self._pass_backend(), config.gradient_reversal_scale)
        if not torch.compiler.is_compiling() and self._logged_backend != self.asa_backend:
            self._logged_backend = self.asa_backend
            logger.info("ASA attention backend: %s, on %s", self.asa_backend, self.model.device)
        if asa.joint:
            both = {name: _double(name, value, size) for name, value in batch.items()}
            logits, adversarial_logits = self.model(**both, asa=asa).logits.chunk(2)
        else:
            logits = self.model(**batch).logits
            adversarial_logits = self.model(**batch, asa=asa).logits
        kept_units = torch.stack(asa.kept_units).sum() if asa.kept_units else logits.new_zeros(())
        kept_share = torch.stack(asa.kept_share) if asa.kept_share else None
        asa.kept_units.clear()  # gradient checkpointing makes the graph hold `asa`: break the cycle
        return logits, adversarial_logits, kept_units, kept_share


@cache
def _class_around(model_class: type) -> type:
    """AsaModel, for models of one class: with the signature of its `forward`, and passing for it.

    Trainer drops the columns of a dataset that the signature does not name, and saves as a checkpoint what
    `isinstance` calls a PreTrainedModel.
    """
    signature = inspect.signature(model_class.forward)
    names = list(signature.parameters)[1:]

    def forward(self, *args, **kwargs):
        return AsaModel.forward(self, **dict(zip(names, args, strict=False)), **kwargs)

    forward.__signature__ = signature
    forward.__doc__ = AsaModel.forward.__doc__
    return type(
        "AsaModel", (AsaModel,), {"forward": forward, "__class__": property(lambda self: model_class)}
    )


def _empty(model_class: type) -> AsaModel:
    return object.__new__(_class_around(model_class))


def _double(name: str, value, size: int):
    """A keyword of a joint pass, from that of one half with `size` examples."""
    if not isinstance(value, Tensor) or value.ndim == 0 or name in SHARED:
        return value
    if name not in PER_EXAMPLE:
        raise InputError(
            f"a joint pass does not know whether the rows of {name!r}, {tuple(value.shape)}, are examples; "
            "use AsaConfig(joint_pass=False), which passes it on as it is"
        )
    # One row for all examples, as in position_ids (1, L), serves both halves.
    return torch.cat([value, value]) if value.ndim > 1 and value.shape[0] == size else value


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
            wrapped already, `config` is no AsaConfig, or its `layers` are out of range. The model is then as
            it was before.
    """
    if not isinstance(config, AsaConfig | None):
        kind = type(config).__name__
        raise InputError(f"wrap takes an AsaConfig, not a {kind}: wrap(model, AsaConfig(temperature=0.3))")
    if not isinstance(model, PreTrainedModel):
        name, kind = (
            (model, "name") if isinstance(model, str) else ("bert-base-uncased", type(model).__name__)
        )
        raise InputError(
            f"wrap takes a transformers model with a head, not a {kind}; load one by "
            f"AutoModelForSequenceClassification.from_pretrained({name!r}), or take the one inside"
        )
    if any(isinstance(h, AdversaryHook) for m in model.modules() for h in m._forward_pre_hooks.values()):
        raise InputError("this model is wrapped already; call unwrap() on the wrapped model first")
    config = config or AsaConfig()
    check_head(model)
    widths = probe_attention(model)
    wrong = [layer for layer in config.layers or () if layer >= len(widths)]
    if wrong:
        last = len(widths) - 1
        raise InputError(
            f"layers {wrong} are out of range: this model has {last + 1} attention layers, 0 to {last}"
        )
    causal = any(getattr(module, "is_causal", False) for module in widths)
    classifies = head_name(model) == "ForSequenceClassification"
    if config.joint_pass and causal and classifies and model.config.pad_token_id is None:
        raise InputError(
            "this decoder has no pad_token_id, without which transformers classifies one sequence at a time, "
            "and a joint pass has two: set model.config.pad_token_id, or AsaConfig(joint_pass=False)"
        )
    return _class_around(type(model))(model, config, widths)
