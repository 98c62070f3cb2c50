"""What a model attends to in a text, clean and under attack: one AttentionRecord per text, in NumPy."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from asa_mini.config import AsaConfig
from asa_mini.errors import InputError
from asa_mini.hf import AsaPass
from asa_mini.look.recording import Recording, attackable
from asa_mini.model import AsaModel, wrap
from asa_mini.train.models import check_max_length, given_back


@dataclass(frozen=True)
class AttentionRecord:
    """One text, read by one model, without padding. N layers, H heads, L tokens, C classes.

    Attributes:
        text: as given.
        tokens: L strings, as they stand in the text; a piece that continues a word starts with ##, and
            special tokens look like [CLS] or <s>.
        spans: (L, 2), where each token stands in the text; (0, 0) for special tokens.
        clean, adversarial: (N, H, L, L), attention weights; every row (query) sums to 1.
        kept: (N, L, L) boolean, False where the layer's adversary switched the unit off.
        probabilities, adversarial_probabilities: (C,), the two predictions.
    """

    text: str
    tokens: list[str]
    spans: np.ndarray
    clean: np.ndarray
    adversarial: np.ndarray
    kept: np.ndarray
    probabilities: np.ndarray
    adversarial_probabilities: np.ndarray

    def tokens_of_word(self, position: int) -> list[int]:
        """Indices of the tokens of `text.split()[position]`, e.g. of a planted word."""
        words = list(re.finditer(r"\S+", self.text))
        if not 0 <= position < len(words):
            raise InputError(f"there is no word {position} in {self.text!r}; it has {len(words)}")
        return tokens_at(self.spans, *words[position].span())


def tokens_at(spans: np.ndarray, start: int, end: int) -> list[int]:
    """Indices of the tokens that overlap characters start..end; spans (L, 2), special tokens never."""
    return [i for i, (s, e) in enumerate(spans) if s < e and s < end and start < e]


@torch.no_grad()
def capture(
    model: AsaModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int = 128,
    batch_size: int = 32,
    perturb: Callable[[PreTrainedModel, Mapping[str, Tensor]], Tensor] | None = None,
) -> list[AttentionRecord]:
    """Run a sequence classifier over texts, clean and attacked, and keep its attention; dropout is off.

    A plain model, and a layer that nobody attacks, have masks that keep everything. The model comes back as
    it was, after an error too: no hook, the same attention implementation, the same training modes.

    Args:
        model: a wrapped model, or a plain one.
        tokenizer: a fast one, which knows where in the text each token stands.
        texts: n strings.
        max_length: longest sequence in tokens; longer texts are cut.
        batch_size: texts at one time; their maps take B N H L L 4 bytes, twice.
        perturb: (model, batch) -> word embeddings (B, L, E) of the attacked half, see
            `baselines.perturbed_embeddings`; by default they are those of the clean half.

    Raises:
        InputError: see `check_arguments`; or the model is no sequence classifier of a supported family.
    """
    texts = check_arguments(model, tokenizer, texts, max_length, batch_size)
    with ExitStack() as undo:
        if not isinstance(model, AsaModel):
            model = wrap(model, AsaConfig(layers=()))
            undo.callback(model.unwrap)
        plain = undo.enter_context(attackable(model))
        read = partial(_records, plain, tokenizer, perturb)
        return in_batches(read, plain, tokenizer, texts, max_length, batch_size)


def check_arguments(model, tokenizer, texts, max_length: int, batch_size: int) -> list[str]:
    """Return the texts as a list.

    Raises:
        InputError: an argument is not what its name says, there are no texts, the tokenizer is slow, or
            `max_length` is beyond the model's positions.
    """
    wanted = {"model": (model, nn.Module), "tokenizer": (tokenizer, PreTrainedTokenizerBase)}
    for name, (value, kind) in wanted.items():
        if not isinstance(value, kind):
            raise InputError(f"give (model, tokenizer, texts): the {name} given is a {type(value).__name__}")
    if not tokenizer.is_fast:
        raise InputError("the tokenizer must be a fast one: a slow one does not know where its tokens stand")
    texts = list(texts) if isinstance(texts, Iterable) and not isinstance(texts, str) else []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InputError("give a list of at least one text, each a string; [text] for a single one")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, but is {batch_size}")
    check_max_length(model, max_length)
    return texts


def in_batches(read, model, tokenizer, texts: list[str], max_length: int, batch_size: int) -> list:
    """The lists that `read(texts, batch)` returns, batch after batch, in one; dropout is off.

    A batch is padded and on the model's device; its `offset_mapping` (B, L, 2) says where in its text each
    token stands.
    """
    options = {"truncation": True, "max_length": max_length, "padding": True, "return_tensors": "pt"}
    found = []
    with given_back(model):
        model.eval()
        for start in range(0, len(texts), batch_size):
            chosen = texts[start : start + batch_size]
            batch = tokenizer(chosen, return_offsets_mapping=True, **options)
            found += read(chosen, batch.to(model.device))
    return found


def _records(model, tokenizer, perturb, texts: list[str], encoded: BatchEncoding) -> list[AttentionRecord]:
    spans = encoded.pop("offset_mapping").cpu().numpy()
    recording = Recording(maps=[])
    both = {name: torch.cat([x, x]) for name, x in encoded.items()}
    if perturb is not None:
        clean = model.get_input_embeddings()(both.pop("input_ids")[: len(texts)])
        both["inputs_embeds"] = torch.cat([clean, perturb(model, dict(encoded))])
    logits = model(**both, asa=AsaPass(joint=True, backend="reference", record=recording)).logits  # (2B, C)
    if logits.ndim != 2:
        raise InputError(f"{type(model).__name__} predicts no class of a text: give a sequence classifier")
    predictions = logits.float().softmax(-1).cpu().numpy().reshape(2, len(texts), -1)
    maps = torch.stack(recording.maps, 1).float().cpu().numpy()  # (2B, N, H, L, L)
    kept = torch.stack(recording.masks, 1).cpu().numpy()  # (B, N, L, L)
    records = []
    for i, text in enumerate(texts):
        real = np.flatnonzero(encoded["attention_mask"][i].cpu())
        units = (..., *np.ix_(real, real))
        tokens, words = tokenizer.convert_ids_to_tokens(encoded["input_ids"][i]), encoded.word_ids(i)
        for token in real:
            start, end = spans[i, token]
            surface = text[start:end].strip()  # some tokenizers count the space before a word as a part of it
            if surface:
                continues = token > 0 and words[token] == words[token - 1]
                tokens[token] = ("##" if continues else "") + surface
        clean, adversarial, seen = maps[i][units], maps[len(texts) + i][units], kept[i][units]
        shown, places = [tokens[token] for token in real], spans[i, real]
        records.append(AttentionRecord(text, shown, places, clean, adversarial, seen, *predictions[:, i]))
    return records
