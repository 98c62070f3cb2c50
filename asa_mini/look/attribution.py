"""Which words a prediction hangs on: leave-one-out, and gradient times input.

What is explained, T numbers, depends on the head: of a class or a choice the log-odds of the predicted one
(T = 1, see `margin`); the log-odds of each label; each score; for tokens and masked words the log-odds of
what is predicted at the first token of each word, so that T is the number of words.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from asa_mini.errors import InputError
from asa_mini.heads import BY_TOKEN, predicted_by
from asa_mini.look.texts import Batch, Example, Text, check_arguments, in_batches, tokens_at

ALONE = ("labels", "scores")  # each number of the head is explained


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
    model: PreTrainedModel,
    tokenizer,
    texts: Sequence[Text | list[Text]],
    max_length: int = 128,
    batch_size: int = 64,
) -> list[np.ndarray]:
    """How much what is explained falls when a word is left out; dropout is off.

    The arguments and their errors are those of `capture`; `batch_size` counts shortened examples. A word of
    a choice is left out in this choice alone.

    Returns:
        Per text, pair or choice an array with a row per word (`text.split()`, of a pair those of both):
        (W, T), or (W,) where one number is explained; positive: the word spoke for it. NaN stands for the
        prediction of a word that is left out, or was cut off.

    Raises:
        InputError: a text has fewer than two words, of which one could be left out.
    """
    examples = check_arguments(model, tokenizer, texts, max_length, batch_size)
    predicted, variants, sizes = predicted_by(model), [], []  # sizes: words of each sequence of each example
    for example in examples:
        shorter = [list(_shortened(sequence)) for sequence in _with_words(example, at_least=2)]
        sizes.append([len(words) for words in shorter])
        variants.append(example)
        for i, words in enumerate(shorter):
            variants += [[*example[:i], rest, *example[i + 1 :]] for rest in words]

    def read(batch):
        return _rows(model(**batch.inputs).logits.float().cpu(), predicted, batch)

    rows = iter(in_batches(read, model, tokenizer, variants, max_length, batch_size))
    found = []
    for size in sizes:
        whole, chosen = _chosen(next(rows), predicted)
        for n_words in size:
            falls = whole.new_full((n_words, len(whole)), torch.nan)
            for word in range(n_words):
                others = [t for t in range(len(whole)) if t != word or predicted not in BY_TOKEN]
                falls[word, others] = whole[others] - margin(next(rows), chosen[others])
            found.append(_alone(falls.numpy(), predicted))
    return found


def gradient_times_input(
    model: PreTrainedModel,
    tokenizer,
    texts: Sequence[Text | list[Text]],
    max_length: int = 128,
    batch_size: int = 64,
    baseline: int | None = None,
) -> list[np.ndarray]:
    """The same question without leaving anything out: gradient of what is explained . (embedding - baseline).

    A word's number is the sum over its tokens, the first-order estimate of what its embeddings add.

    Args:
        baseline: id of the token whose embedding stands for "nothing there", e.g. that of padding; None
            takes zero, the textbook's choice, which a layer norm right after the embeddings can void.

    Other arguments, the result and the errors are those of `leave_one_out`; texts of one word are welcome.
    """
    examples = check_arguments(model, tokenizer, texts, max_length, batch_size)
    predicted, _ = predicted_by(model), [_with_words(example, at_least=1) for example in examples]

    def read(batch):
        inputs, embed = dict(batch.inputs), model.get_input_embeddings()
        nothing = 0 if baseline is None else embed.weight[baseline].detach()  # (E,)
        x = embed(inputs.pop("input_ids")).detach().requires_grad_()  # (B, L, E), or (B, choices, L, E)
        rows = _rows(model(inputs_embeds=x, **inputs).logits, predicted, batch)
        explained = [_chosen(row, predicted)[0] for row in rows]  # B times (T,)
        by_token = []
        for t in range(max(map(len, explained))):
            total = sum(numbers[t] for numbers in explained if t < len(numbers))
            (gradient,) = torch.autograd.grad(total, x, retain_graph=True)
            by_token.append((gradient * (x - nothing)).sum(-1).flatten(0, -2).detach().float().cpu().numpy())
        found, choices = [], len(batch.sequences) // len(rows)
        for i, (text, places) in enumerate(zip(batch.texts, batch.spans, strict=True)):
            numbers = explained[i // choices].detach().float().cpu().numpy()
            columns = np.stack([column[i] for column in by_token[: len(numbers)]], -1)  # (L, T)
            words = [columns[tokens_at(places, *word.span())].sum(0) for word in re.finditer(r"\S+", text)]
            found.append(_alone(np.where(np.isnan(numbers), np.nan, words), predicted))
        return found

    return in_batches(read, model, tokenizer, examples, max_length, batch_size)


def _with_words(example: Example, at_least: int) -> Example:
    for sequence in example:
        if len(" ".join(sequence).split()) < at_least:
            raise InputError(f"give texts of {at_least} words or more: {sequence!r} leaves nothing to say")
    return example


def _shortened(sequence: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """A text or a pair without its first word, without its second, and so on."""
    for part, text in enumerate(sequence):
        words = text.split()
        for i in range(len(words)):
            yield *sequence[:part], " ".join(words[:i] + words[i + 1 :]), *sequence[part + 1 :]


def _rows(logits: Tensor, predicted: str, batch: Batch) -> list[Tensor]:
    """Of each example the logits of its T predictions, (T, C); a label or a score x is one of two, (x, 0)."""
    if predicted in ALONE:
        return [*torch.stack([logits, torch.zeros_like(logits)], -1)]
    if predicted not in BY_TOKEN:
        return [*logits[:, None]]
    rows = []
    for own, text, spans in zip(logits, batch.texts, batch.spans, strict=True):
        places = [tokens_at(spans, *word.span())[:1] for word in re.finditer(r"\S+", text)]
        cut = torch.full_like(own[0], torch.nan)
        rows.append(torch.stack([own[place[0]] if place else cut for place in places]))
    return rows


def _chosen(rows: Tensor, predicted: str) -> tuple[Tensor, Tensor]:
    """The explained numbers (T,), and the class that each is about: the predicted one, or a label itself."""
    classes = rows.argmax(-1) * (predicted not in ALONE)
    return margin(rows, classes), classes


def _alone(numbers: np.ndarray, predicted: str) -> np.ndarray:
    """(W, T), but (W,) where the head gives one number to explain."""
    return numbers[:, 0] if numbers.shape[1] == 1 and predicted not in BY_TOKEN else numbers
