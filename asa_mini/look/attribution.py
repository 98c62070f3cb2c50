"""Which words a prediction hangs on: leave-one-out, and gradient times input."""

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from asa_mini.errors import InputError
from asa_mini.look.capture import check_arguments, in_batches, tokens_at


def margin(logits: Tensor, classes: Tensor) -> Tensor:
    """Log-odds of a class against all others: log p / (1 - p). logits (B, C), classes (B,) -> (B,).

    Raises:
        InputError: there is not one class for each row.
    """
    if classes.shape != logits.shape[:1]:  # torch would take the first rows, or broadcast, without a word
        raise InputError(
            f"margin needs one class for each row: {len(logits)} rows, but classes of shape "
            f"{tuple(classes.shape)} (expand a single one)"
        )
    own = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, classes[:, None], True)  # one in each row
    return logits[own] - logits.masked_fill(own, -torch.inf).logsumexp(-1)


@torch.no_grad()
def leave_one_out(
    model: PreTrainedModel, tokenizer, texts: Sequence[str], max_length: int = 128, batch_size: int = 64
) -> list[np.ndarray]:
    """How much the log-odds of the predicted class fall when a word is left out; dropout is off.

    The arguments and their errors are those of `capture`; `batch_size` counts shortened texts.

    Returns:
        Per text an array, one number per word (`text.split()`); positive: it spoke for the prediction.

    Raises:
        InputError: a text has fewer than two words, of which one could be left out.
    """
    groups = []
    for text in check_arguments(model, tokenizer, texts, max_length, batch_size):
        words = text.split()
        if len(words) < 2:
            raise InputError(f"leaving a word out of {text!r} leaves nothing: give texts of two words")
        groups.append([text] + [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))])

    def read(chosen, batch):
        del batch["offset_mapping"]
        return [*model(**batch).logits.float().cpu()]

    flat = [variant for group in groups for variant in group]
    logits = torch.stack(in_batches(read, model, tokenizer, flat, max_length, batch_size))
    falls = []
    for own in logits.split([len(group) for group in groups]):
        scores = margin(own, own[0].argmax().expand(len(own)))
        falls.append((scores[0] - scores[1:]).numpy())
    return falls


def gradient_times_input(
    model: PreTrainedModel,
    tokenizer,
    texts: Sequence[str],
    max_length: int = 128,
    batch_size: int = 64,
    baseline: int | None = None,
) -> list[np.ndarray]:
    """The same question without leaving anything out: gradient of the log-odds . (embedding - baseline).

    A word's number is the sum over its tokens, the first-order estimate of what its embeddings add to the
    log-odds of the predicted class.

    Args:
        baseline: id of the token whose embedding stands for "nothing there", e.g. that of padding; None
            takes zero, the textbook's choice, which a layer norm right after the embeddings can void.

    Other arguments, the result and the errors are those of `leave_one_out`; texts of one word are welcome.
    """
    texts = check_arguments(model, tokenizer, texts, max_length, batch_size)

    def read(chosen, batch):
        spans, embed = batch.pop("offset_mapping").tolist(), model.get_input_embeddings()
        nothing = 0 if baseline is None else embed.weight[baseline].detach()  # (E,)
        x = embed(batch.pop("input_ids")).detach().requires_grad_()  # (B, L, E)
        logits = model(inputs_embeds=x, **batch).logits
        (gradient,) = torch.autograd.grad(margin(logits, logits.argmax(-1)).sum(), x)
        by_token = (gradient * (x - nothing)).sum(-1).detach().float().cpu().numpy()  # (B, L)
        return [
            np.array([row[tokens_at(places, *word.span())].sum() for word in re.finditer(r"\S+", text)])
            for text, row, places in zip(chosen, by_token, spans, strict=True)
        ]

    return in_batches(read, model, tokenizer, texts, max_length, batch_size)
