"""What ASA is compared with: hand-made priors on attention, and perturbations of the word embeddings."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from asa_mini.adversary import MASKED_SCORE
from asa_mini.errors import InputError
from asa_mini.heads import predicted_by
from asa_mini.hf import find_self_attention, plain_attention
from asa_mini.train.config import PRIORS
from asa_mini.train.models import given_back


@contextmanager
def attention_prior(model: PreTrainedModel, kind: str, strength: float) -> Iterator[None]:
    """While this is open, `model` trains with a bias mu of general self-attention that nobody learns.

    The attention weights of every layer are softmax(Q K^T / sqrt(D) + mu); evaluation has no bias.

    Args:
        kind: "random_mask": mu_ij = -10000 with probability `strength`, drawn anew in every layer and step,
            else 0; one draw for all heads; a row masked as a whole stays as it is.
            "smoothing": mu_ij = log((1 - strength) + strength / (n A_ij)), which makes of the attention
            weights A the mixture (1 - strength) A + strength / n; n: keys that query i may see.
        strength: 0 (ordinary attention) to 1.

    Raises:
        InputError: an argument is not one of these, the model's family does not support ASA (see `wrap`), or
            it is a causal decoder.
    """
    if kind not in PRIORS:
        raise InputError(f"unknown prior {kind!r}; choose one of {', '.join(PRIORS)}")
    if not 0 <= strength <= 1:
        raise InputError(f"the strength of a prior must be from 0 to 1, but is {strength}")
    if any(getattr(module, "is_causal", False) for module in find_self_attention(model)):
        raise InputError("the priors are made for encoders; this model is a causal decoder")

    def add_prior(module, args, kwargs):
        return args, kwargs | ({"prior": (kind, strength)} if module.training else {})

    with given_back(model), model.register_forward_pre_hook(add_prior, with_kwargs=True):
        model.set_attn_implementation("asa_prior")
        yield


def _prior_attention_forward(
    module, query, key, value, attention_mask, prior=(None, 0.0), is_causal=None, **kwargs
):
    """The function behind attn_implementation="asa_prior"; q, k, v: (B, H, L, D) -> (B, L, H, D)."""
    kind, strength = prior
    if kind == "random_mask":
        bias = torch.rand(query.shape[0], 1, query.shape[2], key.shape[2], device=query.device)
        bias = torch.where(bias < strength, MASKED_SCORE, 0.0).to(query.dtype)  # (B, 1, L, L)
        if attention_mask is not None:
            bias = bias.masked_fill(~attention_mask, torch.finfo(bias.dtype).min / 2)
        attention_mask = bias
    output = plain_attention(module, query, key, value, attention_mask, False, **kwargs)
    if kind == "smoothing":
        value = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        if attention_mask is None:
            mean = value.mean(2, keepdim=True)  # (B, H, 1, D)
        else:
            uniform = attention_mask / attention_mask.sum(-1, keepdim=True).clamp_min(1)
            mean = uniform.to(value.dtype) @ value  # (B, 1, L, L) x (B, H, L, D) -> (B, H, L, D)
        output = (1 - strength) * output + strength * mean.transpose(1, 2)
    return output, None


AttentionInterface.register("asa_prior", _prior_attention_forward)
AttentionMaskInterface.register("asa_prior", sdpa_mask)


def perturbed_embeddings(
    model: PreTrainedModel, batch: Mapping[str, Tensor], size: float, steps: int = 1
) -> Tensor:
    """Word embeddings, moved to where the model doubts its own prediction most::

        delta = radius g / |g|,   g = gradient of CE(logits, the model's own prediction)
        radius = size |x|,        all norms over the real tokens of one example

    With one step this is FGM (Miyato et al. 2017, arXiv 1605.07725), with more PGD (Madry et al. 2018, arXiv
    1706.06083): steps of 2.5 radius / steps, projected back into the ball. No labels are used.

    Args:
        model: a classifier in evaluation mode.
        batch: its input_ids and attention_mask (B, L), and so on.
        size: radius of the ball, relative to the norm of the example's embeddings.

    Returns:
        (B, L, E), to be given to the model as `inputs_embeds`.
    """
    if predicted_by(model) != "class":
        raise InputError(f"perturbed_embeddings asks for a classifier, which {type(model).__name__} is not")
    if size < 0 or steps < 1:
        raise InputError(f"size must be at least 0 and steps at least 1, but they are {size} and {steps}")
    x = model.get_input_embeddings()(batch["input_ids"]).detach()
    real = batch["attention_mask"][..., None].to(x.dtype)  # (B, L, 1)
    others = {name: tensor for name, tensor in batch.items() if name != "input_ids"}
    radius = size * _norm(x * real)
    step = radius if steps == 1 else 2.5 * radius / steps
    with torch.no_grad():
        prediction = model(**batch).logits.argmax(-1)
    delta = torch.zeros_like(x)
    for _ in range(steps):
        with torch.enable_grad():
            delta.requires_grad_()
            logits = model(inputs_embeds=x + delta, **others).logits
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, prediction, reduction="sum"), delta)
        gradient = gradient * real
        delta = delta.detach() + step * gradient / _norm(gradient)
        delta = delta * (radius / _norm(delta)).clamp(max=1)
    return x + delta


def _norm(x: Tensor) -> Tensor:
    """(B, L, E) -> (B, 1, 1), never 0."""
    return x.norm(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
