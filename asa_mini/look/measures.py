"""Numbers from records: how much is hidden and from which kind of token, how spread attention is, what moved.

Array in, array out; n texts, N layers, H heads, L tokens.
"""

import re
from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
import torch
from scipy.special import entr
from scipy.stats import bootstrap
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer
from sklearn.feature_selection import chi2

from asa_mini.errors import InputError
from asa_mini.heads import LIKELIHOODS
from asa_mini.look.capture import AttentionRecord
from asa_mini.look.texts import tokens_at
from asa_mini.objective import symmetric_divergence

KINDS = ("planted", "sentiment", "function", "other", "punctuation", "special")
WORD = r"[^\W\d_][\w'-]*"


def masked_share(record: AttentionRecord) -> np.ndarray:
    """(N, L): for each token as a key, the share of queries from which the adversary hid it."""
    return 1 - record.kept.mean(1)


def kept_share(records: Sequence[AttentionRecord]) -> np.ndarray:
    """(n, N): share of the attention units kept, by text and layer."""
    return np.stack([record.kept.mean((1, 2)) for record in records])


def shortcut_auroc(records: Sequence[AttentionRecord], planted: Sequence[Sequence[int]]) -> np.ndarray:
    """(n, N): does the adversary find the planted word? The area under the ROC curve within each text.

    It is the probability that the planted token is hidden from more queries than another token of the text,
    special ones aside (ties count one half); 0.5 is chance, 1 means that no other is hidden as much.

    Args:
        planted: per record the indices of the planted word's tokens; their mean is taken.

    Raises:
        InputError: a text has no planted token, or no other one.
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


def entropy(weights: np.ndarray) -> np.ndarray:
    """Entropy in nats of each row of attention weights, log L at most: (..., L) -> (...)."""
    return entr(np.asarray(weights, dtype=float)).sum(-1)


def total_variation(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Share of the attention that has moved, row by row: `sum(abs(p - q)) / 2`, 0 to 1; (..., L) -> (...)."""
    return np.abs(np.asarray(p, dtype=float) - q).sum(-1) / 2


def divergence(records: Sequence[AttentionRecord]) -> np.ndarray:
    """(n,): the `symmetric_divergence` of each text's two predictions, by the likelihood of its head.

    Those of tokens are added up. For multiple choice each record of a choice has that of them all.
    """
    found = []
    for record in records:
        likelihood = LIKELIHOODS[record.predicted]
        both = torch.tensor(np.stack([record.prediction, record.adversarial_prediction])).double()
        if likelihood == "softmax":  # back to logits, which are finite for a probability of 0
            both = both.clamp_min(np.finfo(np.float32).tiny).log()
        elif likelihood == "bernoulli":
            both = both.logit(eps=np.finfo(np.float32).eps / 4)
        found.append(symmetric_divergence(both[:1], both[1:], likelihood).item())
    return np.array(found)


def measure(records: Sequence[AttentionRecord], words: Sequence[Sequence[int]]) -> pd.DataFrame:
    """One row per text and layer, for paired comparisons of models on the same texts.

    Args:
        words: per record the indices of the tokens of one word, e.g. the planted one.

    Returns:
        Columns text, layer, kept (share of units), received (attention that the word gets in the clean pass,
        mean over heads and queries), entropy (nats, of the clean attention, mean over heads and queries),
        auroc (of the word, see `shortcut_auroc`), moved (`total_variation` between clean and attacked,
        likewise a mean).
    """
    pairs = list(zip(records, words, strict=True))
    columns = {
        "kept": kept_share(records),
        "received": [record.clean[..., list(word)].sum(-1).mean((1, 2)) for record, word in pairs],
        "entropy": [entropy(record.clean).mean((1, 2)) for record in records],
        "auroc": shortcut_auroc(records, words),
        "moved": [total_variation(record.clean, record.adversarial).mean((1, 2)) for record in records],
    }
    text, layer = np.indices(columns["kept"].shape)
    table = {"text": text, "layer": layer, **columns}
    return pd.DataFrame({name: np.ravel(values) for name, values in table.items()})


def mean_interval(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis (texts) and its 95 % bootstrap interval: (n, ...) -> (..., 3), mean low high.

    For a paired comparison give the differences, one per text.

    Raises:
        InputError: there are fewer than 2 values, or one is NaN or infinite.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2 or not np.isfinite(values).all():
        raise InputError(f"an interval needs at least 2 finite values, got {values.shape}")
    options = {"n_resamples": 2000, "method": "percentile", "rng": np.random.default_rng(0), "batch": 100}
    interval = bootstrap((values,), np.mean, axis=0, **options).confidence_interval
    return np.stack([values.mean(0), interval.low, interval.high], -1)


def sentiment_words(texts: Sequence[str], labels: Sequence[int], exclude: Collection[str] = ()) -> set[str]:
    """Words (lower case) that go with the label in these texts: a chi-squared test each, p < 0.01.

    Function words (scikit-learn's English stop words) and `exclude` (a planted shortcut) are left out.
    """
    if isinstance(texts, str) or isinstance(exclude, str):
        raise InputError("`texts` and `exclude` are lists of strings: [word] for a single one")
    counter = CountVectorizer(token_pattern=WORD, binary=True)
    p_values = chi2(counter.fit_transform(texts), labels)[1]
    words = {word for word, p in zip(counter.get_feature_names_out(), p_values, strict=True) if p < 0.01}
    return words - ENGLISH_STOP_WORDS - set(exclude)


def token_kinds(record: AttentionRecord, planted: Collection[int], sentiment: Collection[str]) -> list[str]:
    """One of `KINDS` for each token; a piece of a word has the kind of its word.

    Args:
        planted: indices of the planted word's tokens, see `AttentionRecord.tokens_of_word`.
        sentiment: words in lower case, e.g. from `sentiment_words`.
    """
    if isinstance(sentiment, str):
        raise InputError("`sentiment` is a set of words: {word} for a single one")
    kinds = ["special" if start == end else "punctuation" for start, end in record.spans]
    for found in re.finditer(WORD, record.text):
        word = found.group().lower()
        kind = "sentiment" if word in sentiment else "function" if word in ENGLISH_STOP_WORDS else "other"
        for token in tokens_at(record.spans, *found.span()):
            kinds[token] = kind
    return ["planted" if i in planted else kind for i, kind in enumerate(kinds)]


def masked_by_kind(records: Sequence[AttentionRecord], kinds: Sequence[Sequence[str]]) -> pd.DataFrame:
    """Which kinds of token lose attention: columns text, kind, layer, masked (mean of `masked_share`).

    Args:
        kinds: per record one of `KINDS` for each token, see `token_kinds`.
    """
    rows = []
    for text, (record, named) in enumerate(zip(records, kinds, strict=True)):
        for kind in sorted(set(named), key=KINDS.index):
            chosen = masked_share(record)[:, [name == kind for name in named]].mean(1)
            rows += [(text, kind, layer, masked) for layer, masked in enumerate(chosen)]
    return pd.DataFrame(rows, columns=["text", "kind", "layer", "masked"])
