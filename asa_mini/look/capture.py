"""What the attention of a model does, clean and under attack, as numpy arrays: capture, then measure.

records = capture(model, tokenizer, texts)      one AttentionRecord per text, without padding
kept_share(records), entropy(...), ...          arrays; drawing them is left to asa_mini.look.plots
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.stats import bootstrap
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from asa_mini.errors import InputError
from asa_mini.hf import AsaPass
from asa_mini.train.evaluation import check_max_length
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
    perturb: Callable[[PreTrainedModel, Mapping[str, Tensor]], Tensor] | None = None,
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
        perturb: (model, batch) -> word embeddings (B, L, E) of the attacked half, see
            `baselines.perturbed_embeddings`; by default they are those of the clean half.
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
                records += _capture_batch(plain, tokenizer, chosen, max_length, perturb)
    finally:
        if wrapped is not model:
            wrapped.unwrap()
    return records


def _capture_batch(model, tokenizer, texts: list[str], max_length: int, perturb) -> list[AttentionRecord]:
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
    batch = {name: x.to(model.device) for name, x in encoded.items()}
    both = {name: torch.cat([x, x]) for name, x in batch.items()}
    if perturb is not None:
        clean = model.get_input_embeddings()(both.pop("input_ids")[: len(texts)])
        both["inputs_embeds"] = torch.cat([clean, perturb(model, batch)])
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
    surface = text[start:end].strip()  # some tokenizers count the space before a word as a part of it
    if not surface:
        return tokenizer.convert_ids_to_tokens(int(encoded["input_ids"][row, token]))
    words = encoded.word_ids(row)
    continues = token and words[token] == words[token - 1]
    return ("##" if continues else "") + surface


def masked_share(record: AttentionRecord) -> np.ndarray:
    """(N, L): for each token as a key, the share of queries from which the adversary hid it."""
    return 1 - record.kept.mean(1)


def kept_share(records: Sequence[AttentionRecord]) -> np.ndarray:
    """(n, N): share of the attention units kept, by text and layer."""
    return np.stack([record.kept.mean((1, 2)) for record in records])


def shortcut_auroc(records: Sequence[AttentionRecord], planted: Sequence[Sequence[int]]) -> np.ndarray:
    """(n, N): does the adversary find the planted word? The area under the ROC curve within each text.

    It is the probability that the planted token is hidden from more queries than another token of the text
    (ties count one half); 0.5 is chance, 1 means that no other token is hidden as much. Special tokens do
    not take part.

    Args:
        planted: per record the indices of the planted word's tokens; their mean is taken.
    """
    scores = []
    for record, tokens in zip(records, planted, strict=True):
        share = masked_share(record)
        others = [i for i, (s, e) in enumerate(record.spans) if s < e and i not in set(tokens)]
        if not len(tokens) or not others:
            raise InputError(f"there must be a planted and another token in {record.text!r} (was it cut?)")
        word, rest = share[:, list(tokens)].mean(1, keepdims=True), share[:, others]
        scores.append(((word > rest) + 0.5 * (word == rest)).mean(1))
    return np.stack(scores)


def measure(records: Sequence[AttentionRecord], words: Sequence[Sequence[int]]) -> pd.DataFrame:
    """One row per text and layer, for paired comparisons of models on the same texts.

    Args:
        words: per record the indices of the tokens of one word, e.g. the planted one.

    Returns:
        Columns text, layer, kept (share of units), attention (that the word gets in the clean pass, mean over
        heads and queries), entropy (nats, of the clean attention, mean over heads and queries), auroc (of the
        word, see `shortcut_auroc`), moved (`total_variation` between clean and attacked, likewise a mean).
    """
    columns = {
        "kept": kept_share(records),
        "attention": np.stack(
            [attention_on(record.clean, word) for record, word in zip(records, words, strict=True)]
        ),
        "entropy": np.stack([entropy(record.clean).mean((1, 2)) for record in records]),
        "auroc": shortcut_auroc(records, words),
        "moved": np.stack([total_variation(r.clean, r.adversarial).mean((1, 2)) for r in records]),
    }
    n, layers = columns["kept"].shape
    place = {"text": np.repeat(np.arange(n), layers), "layer": np.tile(np.arange(layers), n)}
    return pd.DataFrame(place | {name: values.ravel() for name, values in columns.items()})


def attention_on(weights: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
    """Attention that the given keys receive together, mean over heads and queries: (N, H, L, L) -> (N,)."""
    return weights[..., list(tokens)].sum(-1).mean((1, 2))


def entropy(weights: np.ndarray) -> np.ndarray:
    """Entropy in nats of each row of attention weights: (..., L) -> (...); log L is uniform attention."""
    weights = np.asarray(weights, dtype=float)
    return -(weights * np.log(np.where(weights > 0, weights, 1))).sum(-1)


def total_variation(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Share of the attention that has moved, row by row: sum |p - q| / 2, 0 to 1; (..., L) -> (...)."""
    return np.abs(np.asarray(p, dtype=float) - q).sum(-1) / 2


def divergence(records: Sequence[AttentionRecord]) -> np.ndarray:
    """(n,): symmetric KL in nats between each text's two predictions, as in `symmetric_divergence`."""
    p = np.stack([record.probabilities for record in records]).astype(float)
    q = np.stack([record.adversarial_probabilities for record in records]).astype(float)
    floor = np.finfo(np.float32).tiny
    return ((p - q) * (np.log(p.clip(floor)) - np.log(q.clip(floor)))).sum(-1) / 2


def mean_interval(values: np.ndarray, seed: int = 0, resamples: int = 2000) -> np.ndarray:
    """Mean over the first axis (texts) and its 95 % bootstrap interval: (n, ...) -> (..., 3), mean low high.

    For a paired comparison give the differences, one per text.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2 or not np.isfinite(values).all():
        raise InputError(f"an interval needs at least 2 finite values, got {values.shape}")
    options = {"n_resamples": resamples, "method": "percentile", "rng": np.random.default_rng(seed)}
    interval = bootstrap((values,), np.mean, axis=0, batch=100, **options).confidence_interval
    return np.stack([values.mean(0), interval.low, interval.high], -1)
