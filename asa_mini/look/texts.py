"""Texts, pairs and choices as a head takes them: checked, and tokenised batch by batch.

A *sequence* is what the encoder reads at once, a text or a pair of texts; an *example* is what a prediction
is about: one sequence, or for multiple choice as many as there are choices.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from asa_mini.errors import InputError
from asa_mini.heads import check_head, predicted_by
from asa_mini.train.models import check_max_length, given_back

Text = str | tuple[str, str]  # a text, or a pair (text, text_pair)
Example = list[tuple[str, ...]]  # its sequences, each of one or two texts


@dataclass(frozen=True)
class Batch:
    """Some examples, B, with S sequences, S = B but for multiple choice; padded, on the model's device.

    Attributes:
        sequences: S tuples of one or two texts. texts: S strings, the two of a pair joined by a line break.
        spans: (S, L, 2), where in its text each token stands; (0, 0) for special tokens.
        seconds: (S, L) boolean, True for the tokens of the second text of a pair.
        encoded: what the tokenizer returned, (S, L). inputs: the same as the model takes it, for multiple
            choice (B, choices, L).
    """

    sequences: list[tuple[str, ...]]
    spans: np.ndarray
    seconds: np.ndarray
    encoded: BatchEncoding
    inputs: dict[str, Tensor]

    @property
    def texts(self) -> list[str]:
        return list(map("\n".join, self.sequences))


def tokens_at(spans: np.ndarray, start: int, end: int) -> list[int]:
    """Indices of the tokens that overlap characters start..end; spans (L, 2), special tokens never."""
    return [i for i, (s, e) in enumerate(spans) if s < e and s < end and start < e]


def check_arguments(model, tokenizer, texts, max_length: int, batch_size: int) -> list[Example]:
    """Return the examples.

    Raises:
        InputError: an argument is not what its name says, there are no texts, the tokenizer is slow, the
            model's head is not known, or `max_length` is beyond its positions.
    """
    wanted = {"model": (model, nn.Module), "tokenizer": (tokenizer, PreTrainedTokenizerBase)}
    for name, (value, kind) in wanted.items():
        if not isinstance(value, kind):
            raise InputError(f"give (model, tokenizer, texts): the {name} given is a {type(value).__name__}")
    if not tokenizer.is_fast:
        raise InputError("the tokenizer must be a fast one: a slow one does not know where its tokens stand")
    check_head(model)
    examples = _examples(texts, predicted_by(model) == "choice")
    if len({len(sequence) for example in examples for sequence in example}) > 1:
        raise InputError("give either texts or pairs of texts, not both at once")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, but is {batch_size}")
    check_max_length(model, max_length)
    return examples


def _examples(texts, choices: bool) -> list[Example]:
    listed = list(texts) if isinstance(texts, Iterable) and not isinstance(texts, str) else []
    if choices and not all(isinstance(example, list) for example in listed):
        listed = []
    examples = [example if choices else [example] for example in listed]
    examples = [[(x,) if isinstance(x, str) else x for x in example] for example in examples]
    pairs = (x for example in examples for x in example)
    if not examples or not all(isinstance(x, tuple) and len(x) < 3 and _strings(x) for x in pairs):
        each = "a list of its choices, which are strings, or pairs" if choices else "a string, or a pair"
        raise InputError(f"give a list of at least one text, each {each} (text, text_pair); [text] for one")
    if len({len(example) for example in examples}) > 1 or not examples[0]:
        raise InputError("every example must have the same number of choices, at least one")
    return examples


def _strings(texts: tuple) -> bool:
    return bool(texts) and all(isinstance(text, str) for text in texts)


def in_batches(
    read: Callable[[Batch], Iterable],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    max_length: int,
    batch_size: int,
) -> list:
    """The lists that `read(batch)` returns, batch after batch, in one; dropout is off."""
    found = []
    with given_back(model):
        model.eval()
        for start in range(0, len(examples), batch_size):
            found += read(_batch(model, tokenizer, examples[start : start + batch_size], max_length))
    return found


def _batch(model, tokenizer, examples: Sequence[Example], max_length: int) -> Batch:
    sequences = [sequence for example in examples for sequence in example]
    options = {"truncation": True, "max_length": max_length, "padding": True, "return_tensors": "pt"}
    columns = map(list, zip(*sequences, strict=True))  # the texts, and for pairs the second texts
    encoded = tokenizer(*columns, return_offsets_mapping=True, **options)
    spans = encoded.pop("offset_mapping").numpy()
    seconds = np.array([[number == 1 for number in encoded.sequence_ids(i)] for i in range(len(sequences))])
    for sequence, places, second in zip(sequences, spans, seconds, strict=True):
        places[second & (places[:, 0] < places[:, 1])] += len(sequence[0]) + 1
    inputs = dict(encoded.to(model.device))
    if predicted_by(model) == "choice":
        inputs = {name: x.unflatten(0, (len(examples), -1)) for name, x in inputs.items()}
    return Batch(sequences, spans, seconds, encoded, inputs)
