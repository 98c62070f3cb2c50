"""Planting a shortcut word: how many agree, where it stands, and that removing it restores the text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asa_mini.errors import InputError
from asa_mini.train.planting import WORDS, plant_shortcut, remove_shortcut

TEXT = st.text(alphabet=st.sampled_from("aé.<\"' \t\n\u00a0\u3000\x1c"), max_size=20).filter(str.strip)
ROWS = st.lists(st.tuples(TEXT, st.integers(0, 1)), min_size=1, max_size=25)
AGREEMENT = st.floats(0, 1)
fast = settings(max_examples=100, deadline=None)


@fast
@given(ROWS, AGREEMENT, st.integers(0, 10**6))
def test_planting(rows, agreement, seed):
    texts, labels = [text for text, _ in rows], [label for _, label in rows]
    planted, positions = plant_shortcut(texts, labels, agreement=agreement, seed=seed)
    assert (planted, positions) == plant_shortcut(texts, labels, agreement=agreement, seed=seed)
    assert remove_shortcut(planted, positions) == texts
    found = [text.split()[position] for text, position in zip(planted, positions, strict=True)]
    for label in (0, 1):
        words = [word for word, own in zip(found, labels, strict=True) if own == label]
        assert words.count(WORDS[label]) == round(agreement * len(words))
        assert words.count(WORDS[label]) + words.count(WORDS[1 - label]) == len(words)
    for text, position in zip(texts, positions, strict=True):
        n = len(text.split())
        assert position in range(1, max(n, 2))


@fast
@given(ROWS, AGREEMENT, AGREEMENT)
def test_planting_at_another_agreement_only_exchanges_words(rows, low, high):
    low, high = sorted((low, high))
    texts, labels = [text for text, _ in rows], [label for _, label in rows]
    (few, at), (many, also_at) = (plant_shortcut(texts, labels, agreement=share) for share in (low, high))
    assert at == also_at
    for a, b, position, label in zip(few, many, at, labels, strict=True):
        words = a.split()[position], b.split()[position]
        assert words != (WORDS[label], WORDS[1 - label]), "more agreement made a text disagree"


def test_seed_and_words_matter():
    texts, labels = ["a b c d e f g h"] * 20, [0, 1] * 10
    assert plant_shortcut(texts, labels, seed=1) != plant_shortcut(texts, labels, seed=2)
    assert plant_shortcut(["x"], [1], words=("p", "q"), agreement=1) == (["x q"], [1])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"agreement": 1.5}, "agreement is 1.5; .* from 0 to 1"),
        ({"agreement": -0.1}, "agreement is -0.1"),
        ({"agreement": float("nan")}, "agreement is nan"),
        ({"agreement": "0.9"}, "agreement is '0.9'"),
        ({"labels": [0, 2]}, "row 2: label 2 is not an integer in 0..1"),
        ({"labels": [0]}, "2 texts but 1 labels"),
        ({"texts": ["a", " "]}, "row 2: the text is ' '"),
        ({"texts": ["a", None]}, "row 2: the text is None"),
        ({"words": ("same", "same")}, "two different words"),
        ({"words": ("two words", "one")}, "two different words without whitespace"),
    ],
)
def test_bad_planting(changed, message):
    with pytest.raises(InputError, match=message):
        plant_shortcut(**{"texts": ["a", "b"], "labels": [0, 1], **changed})


@pytest.mark.parametrize(
    ("texts", "positions", "message"),
    [
        (["a b"], [], "1 texts but 0 positions"),
        (["a b"], [2], "row 1: no planted word at position 2"),
        (["a b"], [0], "row 1: no planted word at position 0"),
    ],
)
def test_bad_removal(texts, positions, message):
    with pytest.raises(InputError, match=message):
        remove_shortcut(texts, positions)
