"""`wrap`: Adversarial Self-Attention around any Hugging Face encoder, without forking its code."""

from transformers import PreTrainedModel

from asa_mini.config import AsaConfig
from asa_mini.errors import InputError
from asa_mini.hf import AdversaryHook, find_self_attention
from asa_mini.model import AsaModel
from asa_mini.objective import check_head, head_name


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
    found = len(widths)
    if wrong := [layer for layer in config.layers or () if layer >= found]:
        raise InputError(f"layers {wrong} are out of range: the model has layers 0 to {found - 1}")
    decoder = any(getattr(module, "is_causal", False) for module in widths)
    one_by_one = decoder and head_name(model) == "ForSequenceClassification"
    if config.joint_pass and one_by_one and model.config.pad_token_id is None:
        raise InputError(
            "without a pad_token_id transformers classifies one sequence at a time, and a joint pass has "
            "two: set model.config.pad_token_id, or AsaConfig(joint_pass=False) for batches of one"
        )
    return AsaModel(model, config, widths)
