"""Plant a shortcut: a word without sentiment that mostly tells the label, at a known place in the text."""

import random
import re
from collections.abc import Sequence
from numbers import Integral

from asa_mini.errors import InputError

# One word for label 0, one for label 1. Both fit nearly anywhere in a sentence and say nothing about
# quality; each is one word piece for BERT, and only 1 of the 9,613 sentences of SST-2 holds either.
WORDS = ("meanwhile", "recently")
_TOKEN = re.compile(r"\S+")  # the same tokens as str.split(), but with their offsets


def check_text(text, where: str, what: str = "text") -> str:
    """`text`, if it is a string of at least one word; else InputError."""
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where}: the {what} is {text!r}; it must be a string of at least one word")
    return text


def check_row(text, label, where: str, num_labels: int = 2) -> None:
    """Raise InputError unless `text` has a word and `label` is an integer from 0 to `num_labels` - 1."""
    check_text(text, where)
    # A bool is an int to Python, but no class to the loss.
    if not isinstance(label, Integral) or isinstance(label, bool) or not 0 <= label < num_labels:
        raise InputError(f"{where}: label {label!r} is not an integer in 0..{num_labels - 1}")


def plant_shortcut(
    texts: Sequence[str],
    labels: Sequence[int],
    words: tuple[str, str] = WORDS,
    agreement: float = 0.9,
    seed: int = 0,
) -> tuple[list[str], list[int]]:
    """Insert `words[label]` into a share `agreement` of each label's texts, the other word into the rest.

    It goes between any two words of the text, after a single one. Of the n_l texts of label l, exactly
    `round(agreement * n_l)` get the agreeing word (Python's `round`: halves go to the even number), so that
    both labels carry the same evidence. Positions do not depend on `agreement`: planting the same texts at
    another one exchanges the word in as few texts as possible and changes nothing else.

    Args:
        texts: n strings, each with at least one word.
        labels: n integers, 0 or 1.
        words: the word for label 0 and the word for label 1; different, without whitespace.
        agreement: share of texts whose word agrees with their label, 0 to 1.

    Returns:
        The n planted texts, and for each the index of the planted word in `text.split()`.

    Raises:
        InputError: an argument is outside the ranges above.
    """
    if len(texts) != len(labels):
        raise InputError(f"there are {len(texts)} texts but {len(labels)} labels; give one for each text")
    if not isinstance(agreement, (int, float)) or not 0 <= agreement <= 1:  # NaN fails the comparison too
        raise InputError(f"agreement is {agreement!r}; give a share of the texts, a number from 0 to 1")
    if len(words) != 2 or words[0] == words[1] or any(len(word.split()) != 1 for word in words):
        raise InputError(f"words are {words!r}; give two different words without whitespace")
    for row, (text, label) in enumerate(zip(texts, labels, strict=True), start=1):
        check_row(text, label, f"row {row}")
    rng = random.Random(seed)
    positions = [rng.randint(1, max(len(text.split()) - 1, 1)) for text in texts]
    agreeing = set()
    for label in (0, 1):
        rows = [i for i in range(len(texts)) if labels[i] == label]
        rng.shuffle(rows)
        agreeing.update(rows[: round(agreement * len(rows))])
    planted = []
    for i, (text, label, position) in enumerate(zip(texts, labels, positions, strict=True)):
        word = words[label if i in agreeing else 1 - label]
        end = list(_TOKEN.finditer(text))[position - 1].end()  # of the word before it
        planted.append(f"{text[:end]} {word}{text[end:]}")
    return planted, positions


def remove_shortcut(texts: Sequence[str], positions: Sequence[int]) -> list[str]:
    """Undo `plant_shortcut`: drop word number `position` of each text, restoring every other character.

    Raises:
        InputError: the lengths differ, or a text has no planted word at its position.
    """
    if len(texts) != len(positions):
        raise InputError(f"there are {len(texts)} texts but {len(positions)} positions; give one for each")
    originals = []
    for row, (text, position) in enumerate(zip(texts, positions, strict=True), start=1):
        tokens = list(_TOKEN.finditer(text))
        if not 1 <= position < len(tokens):
            raise InputError(f"row {row}: no planted word at position {position} of {text!r}")
        start, end = tokens[position].span()
        originals.append(text[: start - 1] + text[end:])  # the word went in with the space before it
    return originals
