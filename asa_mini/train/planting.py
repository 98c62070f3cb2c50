"""Plant a shortcut: a word without sentiment that mostly tells the label, at a known place in the text."""

import random
import re
from collections.abc import Sequence

from asa_mini.errors import InputError

# One word for label 0, one for label 1. Both fit nearly anywhere in a sentence and say nothing about
# quality; each is one word piece for BERT, and only 1 of the 9,613 sentences of SST-2 holds either.
WORDS = ("meanwhile", "recently")
PLACES = ("random", "start", "end")
_TOKEN = re.compile(r"\S+")  # the same tokens as str.split(), but with their offsets


def plant_shortcut(
    texts: Sequence[str],
    labels: Sequence[int],
    words: tuple[str, str] = WORDS,
    agreement: float = 0.9,
    place: str = "random",
    seed: int = 0,
) -> tuple[list[str], list[int]]:
    """Insert `words[label]` into a share `agreement` of each label's texts, the other word into the rest.

    Of the n_l texts of label l, exactly `round(agreement * n_l)` get the agreeing word (Python's `round`:
    halves go to the even number), so that both labels carry the same evidence. Positions do not depend on
    `agreement`: planting the same texts at another agreement exchanges the word in as few texts as possible
    and changes nothing else.

    Args:
        texts: n strings, each with at least one word.
        labels: n integers, 0 or 1.
        words: the word for label 0 and the word for label 1; different, without whitespace.
        agreement: share of texts whose word agrees with their label, 0 to 1.
        place: "start" or "end" of the text, or "random": between any two words (a single word: after it).
        seed: seed of the choices.

    Returns:
        The n planted texts, and for each the index of the planted word in `text.split()`.

    Raises:
        InputError: an argument is outside the ranges above.
    """
    _check(texts, labels, words, agreement, place)
    rng = random.Random(seed)
    positions = []
    for text in texts:
        n = len(text.split())
        positions.append({"start": 0, "end": n, "random": rng.randint(1, max(n - 1, 1))}[place])
    agreeing = set()
    for label in (0, 1):
        rows = [i for i in range(len(texts)) if labels[i] == label]
        rng.shuffle(rows)
        agreeing.update(rows[: round(agreement * len(rows))])
    planted = [
        _insert(text, position, words[int(label if i in agreeing else 1 - label)])
        for i, (text, label, position) in enumerate(zip(texts, labels, positions, strict=True))
    ]
    return planted, positions


def remove_shortcut(texts: Sequence[str], positions: Sequence[int]) -> list[str]:
    """Undo `plant_shortcut`: drop word number `position` of each text, restoring every other character.

    Raises:
        InputError: the lengths differ, or a text has no word at its position or no other word.
    """
    if len(texts) != len(positions):
        raise InputError(
            f"there are {len(texts)} texts but {len(positions)} positions; give one for each text"
        )
    originals = []
    for row, (text, position) in enumerate(zip(texts, positions, strict=True), start=1):
        tokens = list(_TOKEN.finditer(text))
        if not 0 <= position < len(tokens) or len(tokens) == 1:
            raise InputError(f"row {row}: no planted word at position {position} of {text!r}")
        start, end = tokens[position].span()
        # The word went in with the space after it, or at the end of the text with the space before it.
        start, end = (start - 1, end) if position == len(tokens) - 1 else (start, end + 1)
        originals.append(text[:start] + text[end:])
    return originals


def _insert(text: str, position: int, word: str) -> str:
    tokens = list(_TOKEN.finditer(text))
    if position == len(tokens):
        end = tokens[-1].end()
        return f"{text[:end]} {word}{text[end:]}"
    start = tokens[position].start()
    return f"{text[:start]}{word} {text[start:]}"


def _check(texts, labels, words, agreement, place) -> None:
    if len(texts) != len(labels):
        raise InputError(
            f"there are {len(texts)} texts but {len(labels)} labels; give one label for each text"
        )
    if not isinstance(agreement, (int, float)) or not 0 <= agreement <= 1:  # NaN fails the comparison too
        raise InputError(
            f"agreement is {agreement!r}; it is a share of the texts, so give a number from 0 to 1"
        )
    if place not in PLACES:
        raise InputError(f"unknown place {place!r}; choose one of {', '.join(PLACES)}")
    if len(words) != 2 or words[0] == words[1] or any(len(word.split()) != 1 for word in words):
        raise InputError(
            f"words are {words!r}; give two different words without whitespace, for labels 0 and 1"
        )
    for row, (text, label) in enumerate(zip(texts, labels, strict=True), start=1):
        if label not in (0, 1):
            raise InputError(
                f"row {row}: label {label!r}; a shortcut can be planted for the labels 0 and 1 only"
            )
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"row {row}: the text is {text!r}; a shortcut needs a text of at least one word")
