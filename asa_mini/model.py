"""`wrap` and AsaModel: a Hugging Face model that trains under attack and is itself to whoever looks at it."""

import inspect
import logging
from functools import cache

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from asa_mini.adversary import Adversary
from asa_mini.attention import choose_backend, gpu_capability
from asa_mini.config import AsaConfig
from asa_mini.errors import InputError
from asa_mini.heads import BY_TOKEN, LIKELIHOODS, check_head, head_name, predicted_by, task_loss
from asa_mini.hf import AdversaryHook, AsaPass, check_inputs, double, find_self_attention
from asa_mini.objective import AsaOutput, asa_objective

logger = logging.getLogger(__name__)


class AsaModel(nn.Module):
    """A Hugging Face model under Adversarial Self-Attention; made by `wrap`.

    In training mode it returns an `AsaOutput`; in evaluation mode it is the plain model, bit for bit. What
    it does not have itself is the plain model's: every attribute (config, dtype, get_input_embeddings, ...),
    the signature of `forward`, and its class, as `isinstance` sees it. So Trainer finds what it looks for.

    Attributes:
        model: the original model. adversaries: one `Adversary` per attacked layer, keyed by layer index.
        asa_config: the `AsaConfig`.
    """

    # Trainer sees **kwargs in forward and would stop dividing the loss by its accumulation steps.
    accepts_loss_kwargs = False

    def __new__(cls, model: PreTrainedModel, *_):
        return super().__new__(_class_around(type(model)))

    def __init__(self, model: PreTrainedModel, config: AsaConfig, widths: dict[nn.Module, int]):
        super().__init__()
        std = getattr(model.config, "initializer_range", 0.02)
        adversaries = {}
        for index, (module, width) in enumerate(widths.items()):
            if config.layers is None or index in config.layers:
                weight, adversary = next(module.parameters()), Adversary(width, std).train(model.training)
                wide = torch.promote_types(weight.dtype, torch.float32)  # float64 for a float64 model
                adversaries[str(index)] = adversary.to(weight.device, wide)
        self.model, self.asa_config = model, config
        self.adversaries = nn.ModuleDict(adversaries)
        # Hooked even where no adversary is, so that a second wrap can see the first.
        self._hooks = [
            module.register_forward_pre_hook(AdversaryHook(adversaries.get(str(index))), with_kwargs=True)
            for index, module in enumerate(widths)
        ]
        self._wrapped = True  # the hooks themselves would break torch.compile's graph
        self._logged_backend, self.training = None, model.training
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

    def __reduce__(self):  # pickle could not find the class that `_class_around` makes
        return AsaModel.__new__, (AsaModel, self.model), self.__dict__

    def _get_name(self) -> str:
        return "AsaModel"

    @property
    def asa_backend(self) -> str:
        """The attention backend of the adversarial pass where the model is now: "reference" or "triton"."""
        config, model = self.model.config, self.model
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        windows = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
        facts = dict(capability=gpu_capability(model.device), dtypes={model.dtype}, dims={dim})
        return choose_backend(self.asa_config.backend, **facts, mask_rows=2 if windows else 1)

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

    def check_wrapped(self) -> None:
        """Raise InputError after `unwrap`."""
        if not self._wrapped:
            raise InputError("this model was unwrapped; call asa_mini.wrap again to train it with ASA")

    def unwrap(self) -> PreTrainedModel:
        """Remove every trace of ASA and return the original model, the same module objects."""
        if self._wrapped:
            self._wrapped = False
            self._use_asa(False)
            for hook in self._hooks:
                hook.remove()
        return self.model

    def save_pretrained(self, save_directory, is_main_process=True, state_dict=None, **kwargs) -> None:
        """Write the plain model's checkpoint, which loads without asa_mini and holds no adversaries."""
        if state_dict is not None:  # the wrapped model's, from Trainer
            inside = (name for name in state_dict if name.startswith("model."))
            state_dict = {name.removeprefix("model."): state_dict[name] for name in inside}
        self.model.save_pretrained(save_directory, is_main_process, state_dict, **kwargs)

    def load_state_dict(self, state_dict, *args, **kwargs):
        """Load what `state_dict` gave, or a plain checkpoint, which leaves the adversaries as they are."""
        if state_dict and state_dict.keys() <= self.model.state_dict().keys():
            logger.warning("a checkpoint without adversaries: they stay as they are (AsaTrainer saves them)")
            return self.model.load_state_dict(state_dict, *args, **kwargs)
        return super().load_state_dict(state_dict, *args, **kwargs)

    def forward(self, labels: Tensor | None = None, **batch):
        """Any argument of the model. In training: input_ids (B, L), attention_mask (B, L), labels (B, ...).

        Raises:
            InputError: the sequences are longer than the model's position table; in training, labels are
                missing, an adversary is frozen, a joint pass cannot tell whether a keyword counts the
                examples, or (checked on the CPU) an example is all padding.
        """
        batch = {name: value for name, value in batch.items() if value is not None}
        size = check_inputs(self.model, batch, self.training)
        if not self.training:
            return self.model(**batch, **({} if labels is None else {"labels": labels}))
        self.check_wrapped()
        if labels is None:
            raise InputError("ASA needs labels in training mode; pass labels=..., or call .eval() to predict")
        players = self.adversaries.items()
        frozen = [key for key, player in players if not all(x.requires_grad for x in player.parameters())]
        if frozen:
            raise InputError(
                f"adversaries are frozen, in part at least, in layers {', '.join(frozen)}: add LoRA and the "
                "like before wrapping, or call adversaries.requires_grad_(); for adversaries that do not "
                "learn set gradient_reversal_scale=0"
            )
        return self._play(labels, {**batch, "return_dict": True}, size)

    def _play(self, labels: Tensor, batch: dict, size: int) -> AsaOutput:
        """Both passes, and the objective of both players."""
        config, backend = self.asa_config, self.asa_backend
        if backend != self._logged_backend and not torch.compiler.is_compiling():  # it may have moved
            self._logged_backend = backend
            logger.info("ASA attention backend: %s, on %s", backend, self.device)
        # With "auto", a batch can still need the reference where the model as such does not: a dense mask.
        backend = config.backend if backend == "triton" else backend
        asa = AsaPass(config.joint_pass, backend, config.gradient_reversal_scale, config.pay_over)
        if asa.joint:
            both = {name: double(name, value, size) for name, value in batch.items()}
            logits, adversarial_logits = self.model(**both, asa=asa).logits.chunk(2)
        else:
            logits = self.model(**batch).logits
            adversarial_logits = self.model(**batch, asa=asa).logits
        kept_units = torch.stack(asa.kept_units).sum() if asa.kept_units else logits.new_zeros(())
        kept_share = torch.stack(asa.kept_share) if asa.kept_share else None
        asa.kept_units.clear()  # gradient checkpointing makes the graph hold `asa`: break the cycle
        terms = task_loss(self.model, logits, labels), logits, adversarial_logits, kept_units
        likelihood, real = self._compared_by(logits, labels, batch)
        out = asa_objective(*terms, config.alpha, config.temperature, likelihood, real)
        return AsaOutput(**out, kept_share=kept_share)

    def _compared_by(self, logits: Tensor, labels: Tensor, batch: dict) -> tuple[str, Tensor | None]:
        """The likelihood of the divergence, and for predictions of tokens which of them are real, (B, L)."""
        predicted, config = predicted_by(self.model, labels), self.asa_config
        likelihood = config.regression_likelihood if predicted == "scores" else LIKELIHOODS[predicted]
        if config.divergence_over == "all_tokens" or predicted not in BY_TOKEN:
            return likelihood, None
        real = batch.get("attention_mask", logits.new_ones(logits.shape[:-1]))
        if real.shape != logits.shape[:-1]:
            raise InputError(
                f"divergence_over='real_tokens' needs an attention_mask of {tuple(logits.shape[:-1])}, one "
                f"number for each predicted token, not of {tuple(real.shape)}"
            )
        return likelihood, real


@cache
def _class_around(model_class: type[PreTrainedModel]) -> type[AsaModel]:
    """AsaModel with the signature of the class's `forward`, by which Trainer drops columns of a dataset, and
    an instance of the class to `isinstance`, by which it saves a checkpoint."""
    signature = inspect.signature(model_class.forward)
    names = list(signature.parameters)[1:]

    def forward(self, *args, **kwargs):
        return AsaModel.forward(self, **dict(zip(names, args, strict=False)), **kwargs)

    forward.__signature__ = signature
    own = {"forward": forward, "__class__": property(lambda self: model_class)}
    return type("AsaModel", (AsaModel,), own)


def wrap(model: PreTrainedModel, config: AsaConfig | None = None) -> AsaModel:
    """Put Adversarial Self-Attention around a Hugging Face model.

    Args:
        model: an encoder (or causal decoder) with a classification, token classification, multiple choice
            or language modelling head, whose attention goes through transformers' `AttentionInterface`.
        config: an `AsaConfig`; the authors' settings by default.

    Raises:
        InputError (a ValueError): the model's family does not support it, it has no such head, it is
            wrapped already, `config` is no AsaConfig, or its `layers` are out of range. The model is then as
            it was.
    """
    config = AsaConfig() if config is None else config
    if not isinstance(config, AsaConfig):
        kind = type(config).__name__
        raise InputError(f"wrap takes an AsaConfig, not a {kind}: wrap(model, AsaConfig(temperature=0.3))")
    if not isinstance(model, PreTrainedModel):
        name = model if isinstance(model, str) else "bert-base-uncased"
        raise InputError(
            f"wrap takes a transformers model with a head, not a {type(model).__name__}; load one with "
            f"AutoModelForSequenceClassification.from_pretrained({name!r}), or pass the one that is inside"
        )
    if any(isinstance(h, AdversaryHook) for m in model.modules() for h in m._forward_pre_hooks.values()):
        raise InputError("this model is wrapped already; call unwrap() on the wrapped model first")
    check_head(model)
    widths = find_self_attention(model)
    if wrong := [layer for layer in config.layers or () if layer >= len(widths)]:
        raise InputError(f"layers {wrong} are out of range: the model has layers 0 to {len(widths) - 1}")
    decoder = any(getattr(module, "is_causal", False) for module in widths)
    one_by_one = decoder and head_name(model) == "ForSequenceClassification"
    if config.joint_pass and one_by_one and model.config.pad_token_id is None:
        raise InputError(
            "without a pad_token_id transformers classifies one sequence at a time, and a joint pass has "
            "two: set model.config.pad_token_id, or AsaConfig(joint_pass=False) for batches of one"
        )
    return AsaModel(model, config, widths)
