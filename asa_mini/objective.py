"""The training objective of ASA, its three terms visible."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.loss.loss_utils import LOSS_MAPPING
from transformers.utils import ModelOutput

from asa_mini.errors import InputError

# How transformers' classes with a head are called, and which of its losses they compute.
KNOWN = ("ForSequenceClassification", "ForTokenClassification", "ForMaskedLM", "ForCausalLM")
HEADS = {name: LOSS_MAPPING[name] for name in KNOWN}
HEADS["ForMultipleChoice"] = lambda logits, labels, **_: F.cross_entropy(logits, labels)  # not in its table
HEADS["LMHeadModel"] = LOSS_MAPPING["ForCausalLM"]  # what BERT and GPT-2 call theirs


def symmetric_divergence(logits: Tensor, adversarial_logits: Tensor) -> Tensor:
    """D = (KL[p || q] + KL[q || p]) / 2 between the two predictions, summed and divided by the batch size.

    Neither side is detached: both passes learn from it, and through the gradient reversal so does the
    adversary, which maximises it.

    The conventions of the authors' modeling/utils.py:38-46 are kept, odd ones included: a single regression
    output (B, 1) is squeezed (39-41), so that it is compared by a softmax *across the batch*; "batchmean"
    divides by B alone, so token predictions (B, L, C) are summed over all tokens, and padded ones are not
    left out (modeling/bert.py, BertForTokenClassification).

    Args:
        logits, adversarial_logits: (B, ..., C), or (B, 1) for regression.

    Returns:
        A scalar in nats.
    """
    if logits.shape[-1] == 1:
        logits, adversarial_logits = logits.squeeze(-1), adversarial_logits.squeeze(-1)
    log_p = logits.float().log_softmax(-1) if logits.dtype.itemsize < 4 else logits.log_softmax(-1)
    log_q = adversarial_logits.to(log_p.dtype).log_softmax(-1)
    p_q = F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    q_p = F.kl_div(log_p, log_q, log_target=True, reduction="batchmean")
    return (p_q + q_p) / 2


@dataclass
class AsaOutput(ModelOutput):
    """What a wrapped model returns in training mode.

    loss, task_loss, divergence: scalars. kept_units: scalar, attention units kept per example, summed over
    the layers. kept_share: kept / allowed units, without gradient, one entry per attacked layer (per call,
    where ALBERT calls one layer many times). logits, adversarial_logits: (B, ..., C).
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    adversarial_logits: Tensor | None = None
    task_loss: Tensor | None = None
    divergence: Tensor | None = None
    kept_units: Tensor | None = None
    kept_share: Tensor | None = None


def asa_objective(
    task: Tensor,
    logits: Tensor,
    adversarial_logits: Tensor,
    kept_units: Tensor,
    alpha: float,
    temperature: float,
) -> AsaOutput:
    """L = task + alpha * D + temperature^2 * kept units   (the adversary ascends the last two terms).

    The paper's constraint on the adversary is the last term: because of the gradient reversal the adversary
    is *paid* temperature^2 for each unit it keeps, so a high temperature means few masked units. As in the
    authors' modeling/bert.py, AsaBertForSequenceClassification.forward: loss + divergence + rloss * tau^2.

    Args:
        task: scalar, the task loss on the clean logits; the attacked pass has none, as there.
        logits, adversarial_logits: (B, ..., C).
        kept_units: scalar, units kept per sequence (mean over the batch), summed over the layers.

    Returns:
        The terms and both logits; kept_share is left to who knows the layers.
    """
    divergence = symmetric_divergence(logits, adversarial_logits)
    loss = task + alpha * divergence + temperature**2 * kept_units
    return AsaOutput(loss, logits, adversarial_logits, task, divergence, kept_units)


def task_loss(model: PreTrainedModel, logits: Tensor, labels: Tensor) -> Tensor:
    """The loss that the Hugging Face model itself computes from these logits, as a scalar.

    Asking the model would mean a third pass in joint mode, where its logits hold both halves.
    """
    loss = getattr(model, "_loss_function", None) or HEADS[head_name(model)]  # the first: set by a user
    options = dict(config=model.config, vocab_size=model.config.vocab_size)
    return loss(logits=logits, pooled_logits=logits, labels=labels, **options)


def check_head(model: PreTrainedModel) -> None:
    """Raise InputError unless `task_loss` knows the model's loss."""
    if hasattr(model, "_loss_function"):
        return
    name, head = type(model).__name__, head_name(model)
    if head is None:
        raise InputError(
            f"{name} has no head whose loss asa_mini knows; load the encoder with one of "
            f"AutoModel{', AutoModel'.join((*KNOWN, 'ForMultipleChoice'))}, or set model.loss_function"
        )
    first = next(cls for cls in type(model).__mro__ if "forward" in vars(cls) or cls.__name__.endswith(head))
    if not first.__name__.endswith(head):
        raise InputError(
            f"{name} has a forward of its own, so its loss may be another than that of {head}; "
            "set model.loss_function to it: (logits, labels, **options) -> scalar"
        )


def head_name(model: PreTrainedModel) -> str | None:
    """The name in HEADS by which the model's class, or the nearest one that it inherits from, ends."""
    names = (cls.__name__ for cls in type(model).__mro__)
    return next((head for name in names for head in HEADS if name.endswith(head)), None)
