"""What a model attends to in a text, clean and under attack: one AttentionRecord per text, as NumPy arrays.

First in the reading order of asa_mini.look; `measures` comes next and makes numbers of the records.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from asa_mini.config import AsaConfig
from asa_mini.errors import InputError
from asa_mini.hf import AsaPass
from asa_mini.model import AsaModel
from asa_mini.train.evaluation import check_max_length
from asa_mini.wrapping import wrap


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

    def tokens_at(self, start: int, end: int) -> list[int]:
        """Indices of the tokens that overlap characters start..end of the text, special tokens never."""
        return [i for i, (s, e) in enumerate(self.spans) if s < e and s < end and start < e]

    def tokens_of_word(self, position: int) -> list[int]:
        """Indices of the tokens of `text.split()[position]`, e.g. of a planted word."""
        words = list(re.finditer(r"\S+", self.text))
        if not 0 <= position < len(words):
            raise InputError(f"there is no word {position} in {self.text!r}; it has {len(words)}")
        return self.tokens_at(*words[position].span())


@torch.no_grad()
def capture(
    model: AsaModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int = 128,
    batch_size: int = 32,
    perturb: Callable[[PreTrainedModel, Mapping[str, Tensor]], Tensor] | None = None,
    progress: bool = False,
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
        progress: show a progress bar.

    Raises:
        InputError: an argument is not what its name says, there are no texts, the tokenizer is slow,
            `max_length` is beyond the model's positions, or the model is no sequence classifier of a family
            that supports ASA.
    """
    texts = check_arguments(model, tokenizer, texts, max_length, batch_size)
    records = []
    with evaluating(model) as plain:
        wrapped = model if isinstance(model, AsaModel) else wrap(plain, AsaConfig(layers=()))
        try:
            with wrapped.attackable():
                for start in tqdm(range(0, len(texts), batch_size), disable=not progress, desc="capture"):
                    chosen = texts[start : start + batch_size]
                    records += _capture_batch(plain, tokenizer, chosen, max_length, perturb)
        finally:
            if wrapped is not model:
                wrapped.unwrap()
    return records


def check_arguments(model, tokenizer, texts, max_length: int, batch_size: int) -> list[str]:
    """The texts as a list; InputError in the user's terms if an argument is not what its name says."""
    wanted = {"model": (model, nn.Module), "tokenizer": (tokenizer, PreTrainedTokenizerBase)}
    for name, (value, kind) in wanted.items():
        if not isinstance(value, kind):
            got = type(value).__name__
            raise InputError(f"the arguments are (model, tokenizer, texts), but the {name} given is a {got}")
    if not tokenizer.is_fast:
        raise InputError("the tokenizer must be a fast one: a slow one does not know where its tokens stand")
    texts = list(texts) if isinstance(texts, Iterable) and not isinstance(texts, str) else []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InputError("give a list of at least one text, each a string; [text] for a single one")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, but is {batch_size}")
    check_max_length(model.model if isinstance(model, AsaModel) else model, max_length)
    return texts


@contextmanager
def evaluating(model: AsaModel | PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The plain model with dropout off; afterwards each of its modules is in the mode in which it was."""
    if isinstance(model, AsaModel):
        with model.attackable() as plain:
            yield plain
        return
    modes = {module: module.training for module in model.modules()}
    try:
        yield model.eval()
    finally:
        for module, training in modes.items():
            module.training = training


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int):
    """The padded batch of a fast tokenizer, and where in its text each token stands: (B, L, 2)."""
    options = {"truncation": True, "max_length": max_length, "padding": True, "return_tensors": "pt"}
    encoded = tokenizer(texts, return_offsets_mapping=True, **options)
    return encoded, encoded.pop("offset_mapping").numpy()


def _capture_batch(model, tokenizer, texts: list[str], max_length: int, perturb) -> list[AttentionRecord]:
    encoded, spans = encode(tokenizer, texts, max_length)
    asa = AsaPass(joint=True, backend="reference", masks=[], maps=[])
    batch = {name: x.to(model.device) for name, x in encoded.items()}
    both = {name: torch.cat([x, x]) for name, x in batch.items()}
    if perturb is not None:
        clean = model.get_input_embeddings()(both.pop("input_ids")[: len(texts)])
        both["inputs_embeds"] = torch.cat([clean, perturb(model, batch)])
    logits = model(**both, asa=asa).logits  # (2B, C)
    if logits.ndim != 2:
        raise InputError(f"{type(model).__name__} predicts no class of a text: give a sequence classifier")
    probabilities, adversarial_probabilities = logits.float().softmax(-1).cpu().chunk(2)
    clean, adversarial = torch.stack(asa.maps, 1).float().cpu().chunk(2)  # (B, N, H, L, L)
    kept = torch.stack(asa.masks, 1).cpu()  # (B, N, L, L)
    records = []
    for i, text in enumerate(texts):
        real = np.flatnonzero(encoded["attention_mask"][i].numpy())
        queries, keys = np.ix_(real, real)
        records.append(
            AttentionRecord(
                text=text,
                tokens=[_surface(encoded, tokenizer, text, i, token, spans) for token in real],
                spans=spans[i, real],
                clean=clean[i].numpy()[..., queries, keys],
                adversarial=adversarial[i].numpy()[..., queries, keys],
                kept=kept[i].numpy()[..., queries, keys],
                probabilities=probabilities[i].numpy(),
                adversarial_probabilities=adversarial_probabilities[i].numpy(),
            )
        )
    return records


def _surface(encoded, tokenizer, text: str, row: int, token: int, spans: np.ndarray) -> str:
    start, end = spans[row, token]
    surface = text[start:end].strip()  # some tokenizers count the space before a word as a part of it
    if not surface:
        return tokenizer.convert_ids_to_tokens(int(encoded["input_ids"][row, token]))
    words = encoded.word_ids(row)
    continues = token and words[token] == words[token - 1]
    return ("##" if continues else "") + surface
