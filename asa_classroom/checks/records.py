"""What the checks of `ex05_attention_analysis` need: random records, and comparisons of NumPy arrays."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from asa_classroom.checks.old_harness import call, fail, require, same
from asa_mini.look.capture import AttentionRecord

PIECES = ["oat", "##me", "##al", "isn", "'", "t", "exciting", ",", "un", "##like", "film", "##s", "it"]
DROPPED = "\u200b"  # a word to text.split(), nothing to a tokenizer
VOCABULARY = {piece: i for i, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES])}


def call_unchanged(student: Callable, *args: Any) -> Any:
    """`call` that fails, too, where a NumPy array among the arguments was changed in place.

    NumPy's warnings are not shown: what they are about comes out as NaN, and the check has words for it.
    """
    flat = [x for arg in args for x in (arg if isinstance(arg, list) else [arg])]
    flat = [x for y in flat for x in (vars(y).values() if isinstance(y, AttentionRecord) else [y])]
    arrays = [(x, x.copy()) for x in flat if isinstance(x, np.ndarray)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        got = call(student, *args)
    unchanged = all(np.array_equal(x, copy) for x, copy in arrays)
    require(unchanged, "your function changed its argument in place: work on a new array")
    return got


def as_array(got: Any, what: str) -> np.ndarray:
    """A list or tuple of numbers as an array, for results of which it says nothing what holds them."""
    try:
        return np.asarray(got, dtype=float)
    except (TypeError, ValueError):
        fail(f"{what} must be an array of numbers, but is of type {type(got).__name__}")


def same_numbers(
    got: Any, expected: Any, what: str, case: str, known: Mapping[str, Any], tolerance: float = 1e-5
) -> None:
    """`same` for NumPy arrays and numbers; any floating dtype will do."""
    fits = isinstance(got, (np.ndarray, np.number, float))
    require(fits, f"{what} must be a NumPy array, but is of type {type(got).__name__}")
    right = torch.as_tensor(np.asarray(expected, dtype=float))
    same(torch.as_tensor(np.asarray(got, dtype=float)), right, what, case, known, tolerance)


def random_record(
    rng: np.random.Generator, pieces: str, special: Sequence[str] = ("[CLS]", "[SEP]"), layers: int = 3
) -> AttentionRecord:
    """Random masks of a text given by its pieces ("oat ##me ##al film"), with one or two special tokens."""
    text, tokens, spans = "", [special[0]], [(0, 0)]
    for piece in pieces.split():
        text += " " if text and not piece.startswith("##") else ""
        if piece != DROPPED:
            tokens.append(piece)
            spans.append((len(text), len(text) + len(piece.removeprefix("##"))))
        text += piece.removeprefix("##")
    tokens += special[1:]
    spans = np.array([*spans, *[(0, 0)] * (len(special) - 1)])
    kept = rng.random((layers, len(tokens), len(tokens))) < rng.random((layers, 1, len(tokens)))
    clean = np.full((layers, 2, len(tokens), len(tokens)), 1 / len(tokens))
    return AttentionRecord(text, tokens, spans, clean, clean, kept, *np.full((2, 2), 0.5))


def others(record: AttentionRecord, tokens: Sequence[int]) -> list[int]:
    """Indices of all tokens but the special ones and `tokens`."""
    return [i for i, (start, end) in enumerate(record.spans) if start < end and i not in tokens]


def rest(record: AttentionRecord, tokens: Sequence[int]) -> list[int]:
    """Indices of all tokens but `tokens`, special ones among them."""
    return [i for i in range(len(record.tokens)) if i not in tokens]


def everything(record: AttentionRecord, tokens: Sequence[int]) -> list[int]:
    """Indices of all tokens; none where `tokens` and special ones are all there is."""
    return list(range(len(record.tokens))) if others(record, tokens) else []


def auroc_of(share: np.ndarray, word: Sequence[int], among: Sequence[int], tie: float = 0.5) -> np.ndarray:
    """Masked shares (N, L), tokens of a word, and those to compare with -> (N,); a tie counts `tie`."""
    mine, remaining = share[:, word].mean(1, keepdims=True), share[:, among]
    return ((mine > remaining) + tie * (mine == remaining)).sum(1) / max(len(among), 1)


def mean_excess(
    records: Sequence[AttentionRecord],
    least: int,
    share: Callable[[AttentionRecord], np.ndarray],
    among: Callable[[AttentionRecord, list[int]], list[int]] = others,
    pieces: int | None = None,
    minus: float = 1,
    total: Callable = np.mean,
    case: Callable[[str], str] = str.lower,
    places: Callable[[list[str]], Iterable[tuple[int, str]]] = enumerate,
) -> dict[str, float]:
    """Each word's mean excess, as the step `suspects` asks for it, or as a mistake gives it.

    Args:
        least: fewest occurrences of a word.
        share: a record -> the masked share of each token (L,).
        among: a record, the word's tokens -> the tokens to compare with.
        pieces: take the first ones of a word only.
        minus: weight of the others' mean.
        total: what makes one number of a word's excesses.
        case: a text -> the text that is cut into words.
        places: words -> pairs of place and word.
    """
    found = {}
    for record in records:
        for place, word in places(case(record.text).split()):
            tokens = record.tokens_of_word(place)[:pieces]
            if tokens and (other := among(record, tokens)):
                values = share(record)
                found.setdefault(word, []).append(values[tokens].mean() - minus * values[other].mean())
    return {word: round(float(total(x)), 6) for word, x in found.items() if len(x) >= least}


def excesses(
    records: Sequence[AttentionRecord], layer: int, least: int
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """What `suspects` must return for `records`, and {hint: what it returns with a known mistake}."""

    def excess(least=least, axis=-2, layer=layer, read=records, **options):
        return mean_excess(read, least, lambda record: (~record.kept).mean(axis)[layer], **options)

    right = excess()
    return right, {
        "capital letters make two words of one: use text.lower()": excess(case=str),
        "punctuation belongs to the word: words are those of text.lower().split()": excess(
            case=lambda text: text.lower().replace(",", "")
        ),
        "rare words take part: leave out those with fewer than `least` occurrences": excess(1),
        "a word with exactly `least` occurrences takes part": excess(least + 1),
        "a sentence of one word is left out, not all that follow: continue, not break": excess(
            read=records[:3]
        ),
        "a word may stand twice in a sentence: take its place from enumerate, not words.index": excess(
            places=lambda words: [(words.index(word), word) for word in words]
        ),
        "a word may stand twice in a sentence: both are occurrences": excess(
            places=lambda words: [(words.index(word), word) for word in dict.fromkeys(words)]
        ),
        "the others are missing: subtract their mean from the word's share": excess(minus=0),
        "the sign is wrong: the word's share comes first": {word: -x for word, x in right.items()},
        "these are shares of queries (rows): take those of keys": excess(axis=-1),
        "a sentence of one word has no others: leave it out": right | {"film": np.nan},
        "a word without tokens has no share: leave that occurrence out": right | {DROPPED: np.nan},
        "special tokens are among the others: leave out those with an empty span": excess(among=rest),
        "the word is among the others": excess(among=lambda record, tokens: others(record, [])),
        "all tokens are among the others: leave out the special ones and the word's own": excess(
            among=everything
        ),
        "only first pieces count: take all tokens of a word": excess(pieces=1),
        "this is the sum over the occurrences: take the mean": excess(total=np.sum),
        "the wrong layer": excess(layer=layer - 1),
    }
