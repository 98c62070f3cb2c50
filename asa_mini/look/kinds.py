"""Which kinds of token lose attention: the planted word, words of sentiment, function words, and the rest."""

import re
from collections.abc import Sequence

import pandas as pd
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer
from sklearn.feature_selection import chi2

from asa_mini.look.capture import AttentionRecord, masked_share

KINDS = ("planted", "sentiment", "function", "other", "punctuation", "special")


def sentiment_words(
    texts: Sequence[str], labels: Sequence[int], exclude: Sequence[str] = (), level: float = 0.01
) -> frozenset[str]:
    """Words (lower case) that go with the label in these texts: a chi-squared test each, p < `level`.

    Function words (scikit-learn's English stop words) and `exclude` (a planted shortcut) are left out.
    """
    counter = CountVectorizer(token_pattern=r"[^\W\d_][\w'-]*", binary=True)
    p_values = chi2(counter.fit_transform(texts), labels)[1]
    words = {word for word, p in zip(counter.get_feature_names_out(), p_values, strict=True) if p < level}
    return frozenset(words - ENGLISH_STOP_WORDS - set(exclude))


def token_kinds(
    record: AttentionRecord, planted: Sequence[int] = (), sentiment: frozenset[str] = frozenset()
) -> list[str]:
    """One of `KINDS` for each token; a piece of a word has the kind of its word.

    Args:
        planted: indices of the planted word's tokens, see `AttentionRecord.tokens_of_word`.
        sentiment: words in lower case, e.g. from `sentiment_words`.
    """
    words = {}  # token -> the word that it is a part of
    for found in re.finditer(r"[^\W\d_][\w'-]*", record.text):
        for token in record.tokens_at(*found.span()):
            words.setdefault(token, found.group().lower())
    kinds = []
    for i, (start, end) in enumerate(record.spans):
        word = words.get(i)
        if i in planted:
            kinds.append("planted")
        elif start == end:
            kinds.append("special")
        elif word is None:
            kinds.append("punctuation")
        elif word in sentiment:
            kinds.append("sentiment")
        else:
            kinds.append("function" if word in ENGLISH_STOP_WORDS else "other")
    return kinds


def masked_by_kind(records: Sequence[AttentionRecord], kinds: Sequence[Sequence[str]]) -> pd.DataFrame:
    """Which kinds of token lose attention: columns `text`, `kind`, `layer`, `masked` (mean `masked_share`).

    Args:
        kinds: per record one of `KINDS` for each token, see `token_kinds`.
    """
    rows = []
    for text, (record, named) in enumerate(zip(records, kinds, strict=True)):
        share = masked_share(record)  # (N, L)
        for kind in sorted(set(named), key=KINDS.index):
            chosen = share[:, [name == kind for name in named]].mean(1)
            rows += [(text, kind, layer, masked) for layer, masked in enumerate(chosen)]
    return pd.DataFrame(rows, columns=["text", "kind", "layer", "masked"])
