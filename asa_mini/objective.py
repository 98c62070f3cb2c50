"""The training objective of ASA, its three terms visible."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.utils import ModelOutput


def symmetric_divergence(
    logits: Tensor, adversarial_logits: Tensor, likelihood: str = "softmax", real: Tensor | None = None
) -> Tensor:
    """D = (KL[p || q] + KL[q || p]) / 2 between the two predictions, summed and divided by the batch size::

        D = sum (p - q) (log p - log q) / 2 / B          of probabilities p, q
        D = sum (a - b)^2 / 2 / B                        of Gaussians with means a, b and variance 1

    Neither side is detached: both passes learn from it, and through the gradient reversal so does the
    adversary, which maximises it.

    The authors' modeling/utils.py:38-46 knows a softmax alone. A regression's output (B, 1) is squeezed there
    (39-41), so that its softmax goes *across the batch*; "batchmean" divides by B, so that the divergence of
    token predictions (B, L, C) is their sum over all L tokens, padding included (modeling/bert.py,
    BertForTokenClassification).

    Args:
        logits, adversarial_logits: (B, ..., C).
        likelihood: what they stand for, see `heads.LIKELIHOODS`: "softmax" (over C), "bernoulli" (each of
            the C with probability sigmoid(logit)), "gaussian"; or "batch_softmax", theirs of scores.
        real: (B, L), 1 for a token that is no padding: D is then the mean over these tokens, in place of the
            sum over all divided by B. For predictions of tokens, (B, L, C).

    Returns:
        A scalar in nats, in float32 at least.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    a, b = logits.to(wide), adversarial_logits.to(wide)
    if likelihood == "gaussian":
        terms = (a - b) ** 2 / 2
    else:
        if likelihood == "bernoulli":  # sigmoid(x) is the first number of softmax((x, 0))
            a, b = (torch.stack([x, torch.zeros_like(x)], -1) for x in (a, b))
        over = 0 if likelihood == "batch_softmax" else -1
        log_p, log_q = a.log_softmax(over), b.log_softmax(over)
        terms = (log_p.exp() - log_q.exp()) * (log_p - log_q) / 2
    if real is None:
        return terms.sum() / len(terms)
    return (terms.sum(-1) * real).sum() / real.sum()


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
    likelihood: str = "softmax",
    real: Tensor | None = None,
) -> AsaOutput:
    """L = task + alpha * D + temperature^2 * kept units   (the adversary ascends the last two terms).

    The paper's constraint on the adversary is the last term: because of the gradient reversal the adversary
    is *paid* temperature^2 for each unit it keeps, so a high temperature means few masked units. As in the
    authors' modeling/bert.py, AsaBertForSequenceClassification.forward: loss + divergence + rloss * tau^2.

    Args:
        task: scalar, the task loss on the clean logits; the attacked pass has none, as there.
        logits, adversarial_logits: (B, ..., C).
        kept_units: scalar, units kept per sequence (mean over the batch), summed over the layers.
        likelihood, real: of D, see `symmetric_divergence`.

    Returns:
        The terms and both logits; kept_share is left to who knows the layers.
    """
    divergence = symmetric_divergence(logits, adversarial_logits, likelihood, real)
    loss = task + alpha * divergence + temperature**2 * kept_units
    return AsaOutput(loss, logits, adversarial_logits, task, divergence, kept_units)
