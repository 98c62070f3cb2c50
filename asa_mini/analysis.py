"""What the attention of a model does, clean and under attack, as numpy arrays: capture, then measure.

records = capture(model, tokenizer, texts)      one AttentionRecord per text, without padding
kept_share(records), entropy(...), ...          arrays; drawing them is left to asa_mini.plots
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from asa_mini.errors import InputError
from asa_mini.evaluation import check_max_length
from asa_mini.interface import AsaPass
from asa_mini.wrap import AsaConfig, AsaModel, wrap


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
    progress: bool = False,
) -> list[AttentionRecord]:
    """Run a sequence classifier over texts, clean and attacked, and keep its attention; dropout is off.

    A plain model, and a layer that nobody attacks, have masks that keep everything. The model comes back as
    it was: same attention implementation, same training modes.

    Args:
        model: a wrapped model, or a plain one.
        tokenizer: a fast one, which knows where in the text each token stands.
        texts: n strings.
        max_length: longest sequence in tokens; longer texts are cut.
        batch_size: texts at one time; their maps take B N H L L 4 bytes, twice.
        progress: show a progress bar.

    Raises:
        InputError: there are no texts, the tokenizer is slow, `max_length` is beyond the model's positions,
            or the model's family does not support ASA.
    """
    if isinstance(texts, str) or not len(texts):
        raise InputError("give a list of at least one text")
    if not tokenizer.is_fast:
        raise InputError("the tokenizer must be a fast one: a slow one does not know where its tokens stand")
    wrapped = model if isinstance(model, AsaModel) else wrap(model, AsaConfig(layers=()))
    check_max_length(wrapped.model, max_length)
    records = []
    try:
        with wrapped.attackable() as plain:
            for start in tqdm(range(0, len(texts), batch_size), disable=not progress, desc="capture"):
                chosen = list(texts[start : start + batch_size])
                records += _capture_batch(plain, tokenizer, chosen, max_length)
    finally:
        if wrapped is not model:
            wrapped.unwrap()
    return records


def _capture_batch(model, tokenizer, texts: list[str], max_length: int) -> list[AttentionRecord]:
    encoded = tokenizer(
        texts,
        truncation=True,
        max_length=max_length,
        padding=True,
        return_tensors="pt",
        return_offsets_mapping=True,
    )
    spans = encoded.pop("offset_mapping").numpy()  # (B, L, 2)
    asa = AsaPass(joint=True, backend="reference", masks=[], maps=[])
    both = {name: torch.cat([x, x]).to(model.device) for name, x in encoded.items()}
    probabilities = model(**both, asa=asa).logits.float().softmax(-1).cpu().numpy().reshape(2, len(texts), -1)
    maps = np.stack([x.float().cpu().numpy() for x in asa.maps], 1)  # (2B, N, H, L, L)
    masks = np.stack([x.cpu().numpy() for x in asa.masks], 1)  # (B, N, L, L)
    records = []
    for i, text in enumerate(texts):
        real = np.flatnonzero(encoded["attention_mask"][i].numpy())
        cut = np.ix_(real, real)
        records.append(
            AttentionRecord(
                text=text,
                tokens=[_surface(encoded, tokenizer, text, i, token, spans) for token in real],
                spans=spans[i, real],
                clean=maps[i][..., cut[0], cut[1]],
                adversarial=maps[len(texts) + i][..., cut[0], cut[1]],
                kept=masks[i][..., cut[0], cut[1]],
                probabilities=probabilities[0, i],
                adversarial_probabilities=probabilities[1, i],
            )
        )
    return records


def _surface(encoded, tokenizer, text: str, row: int, token: int, spans: np.ndarray) -> str:
    start, end = spans[row, token]
    if start == end:
        return tokenizer.convert_ids_to_tokens(int(encoded["input_ids"][row, token]))
    words = encoded.word_ids(row)
    continues = token and words[token] == words[token - 1]
    return ("##" if continues else "") + text[start:end]
