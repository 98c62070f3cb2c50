"""The training objective of ASA, its three terms visible."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from asa_mini.errors import InputError

HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForMaskedLM", "ForCausalLM")


def symmetric_divergence(logits: Tensor, adversarial_logits: Tensor) -> Tensor:
    """D = (KL[p || q] + KL[q || p]) / 2 between the two predictions, summed and divided by the batch size.

    Neither side is detached: both passes learn from it, and through the gradient reversal so does the
    adversary, which maximises it.

    The reference's conventions are kept, odd ones included: a single regression output (B, 1) is compared
    by a softmax *across the batch*; token predictions (B, L, C) are summed over all tokens, padding too.

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


def task_loss(model: PreTrainedModel, logits: Tensor, labels: Tensor) -> Tensor:
    """The loss that the Hugging Face model itself computes from these logits, as a scalar.

    Asking the model would mean a third pass in joint mode, where its logits hold both halves.
    """
    if type(model).__name__.endswith("ForMultipleChoice"):
        return F.cross_entropy(logits, labels)  # transformers has no entry for it in its table of losses
    return model.loss_function(
        logits=logits,
        pooled_logits=logits,
        labels=labels,
        config=model.config,
        vocab_size=model.config.vocab_size,
    )


def check_head(model: PreTrainedModel) -> None:
    """Raise InputError unless `task_loss` knows the model's loss."""
    # "...LMHeadModel" is how BERT and GPT-2 call their ForCausalLM, whose loss is transformers' default.
    if type(model).__name__.endswith(("ForMultipleChoice", "LMHeadModel")) or "_loss_function" in vars(model):
        return
    if getattr(model, "loss_type", None) not in HEADS:
        raise InputError(
            f"{type(model).__name__} has no head whose loss asa_mini knows; load the encoder with one of "
            f"AutoModel{', AutoModel'.join((*HEADS, 'ForMultipleChoice'))}, or set model.loss_function"
        )


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


@dataclass
class Objective:
    """L = task + alpha * D + temperature^2 * kept units   (the adversary ascends the last two terms)."""

    loss: Tensor
    task_loss: Tensor
    divergence: Tensor
    kept_units: Tensor


def asa_objective(
    task: Tensor,
    logits: Tensor,
    adversarial_logits: Tensor,
    kept_units: Tensor,
    alpha: float,
    temperature: float,
) -> Objective:
    """Put the three terms together.

    The paper's constraint on the adversary is the last term: because of the gradient reversal the adversary
    is *paid* temperature^2 for each unit it keeps, so a high temperature means few masked units.

    Args:
        task: scalar, the task loss on the clean logits.
        logits, adversarial_logits: (B, ..., C).
        kept_units: scalar, units kept per sequence (mean over the batch), summed over the layers.
        alpha: weight of the divergence.
        temperature: tau; its square weighs the kept units, as in the reference.
    """
    divergence = symmetric_divergence(logits, adversarial_logits)
    loss = task + alpha * divergence + temperature**2 * kept_units
    return Objective(loss, task, divergence, kept_units)
