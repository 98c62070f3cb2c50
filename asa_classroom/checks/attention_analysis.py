"""Checks of `ex05_attention_analysis`: finding a planted word, without being fooled by chance."""

import warnings
from functools import partial

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from asa_classroom.checks.harness import Ladder, call, require
from asa_mini.config import AsaConfig
from asa_mini.look.capture import AttentionRecord, capture
from asa_mini.look.measures import shortcut_auroc
from asa_mini.wrapping import wrap

ladder = Ladder("ex05_attention_analysis")
PIECES = ["oat", "##me", "##al", "isn", "'", "t", "exciting", ",", "un", "##like", "film", "##s", "it"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES]
TOKENIZER = BertTokenizerFast(vocab={piece: i for i, piece in enumerate(VOCABULARY)})
DROPPED = "\u200b"  # a word to text.split(), nothing to a tokenizer


def _record(pieces, special=("[CLS]", "[SEP]"), layers=3, hides=True):
    """Random masks of a text given by its pieces ("oat ##me film"), with one or two special tokens."""
    text, tokens, spans = "", [special[0]], [(0, 0)]
    for piece in pieces.split():
        text += " " if text and not piece.startswith("##") else ""
        if piece != DROPPED:
            tokens.append(piece)
            spans.append((len(text), len(text) + len(piece.removeprefix("##"))))
        text += piece.removeprefix("##")
    tokens += special[1:]
    spans = np.array([*spans, *[(0, 0)] * (len(special) - 1)])
    kept = torch.rand(layers, len(tokens), len(tokens)) < torch.rand(layers, 1, len(tokens))
    clean = np.full((layers, 2, len(tokens), len(tokens)), 1 / len(tokens))
    return AttentionRecord(
        text, tokens, spans, clean, clean, kept.numpy() | (not hides), *np.full((2, 2), 0.5)
    )


def _quietly(student, *args):
    """`call` without NumPy's warnings: what they are about comes out as NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return call(student, *args)


@ladder.step(
    what="the entropy",
    tried="a batch of maps, rows with zeros, a single token",
    cases=[
        (np.random.default_rng(0).dirichlet(np.ones(4), (2, 3, 4)),),
        (np.array([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]),),
        (np.ones((2, 1, 1)),),
    ],
    observe=_quietly,
    mistakes={
        "the sign is wrong: log a is negative, and the minus in front makes up for it": dict(sign=1),
        "this is in bits: nats take the natural logarithm, np.log": dict(log=np.log2),
        "the sum runs over the queries: the keys of a row are the last axis": dict(axis=-2),
        "0 log 0 gave NaN: take the logarithm only where the weight is above 0": dict(instead=0),
    },
)
def row_entropy(weights, *, sign=-1, log=np.log, axis=-1, instead=1):
    return sign * (weights * log(np.where(weights > 0, weights, instead))).sum(axis)


@ladder.step(
    what="the masked share",
    tried="random masks, a whole row and a whole column, a single token",
    cases=[
        (np.random.default_rng(0).random((3, 5, 5)) < 0.7,),
        (np.array([[[True, True], [False, False]], [[True, False], [True, False]]]),),
        (np.zeros((2, 1, 1), bool),),
    ],
    mistakes={
        "this is the share that was kept: the masked share is 1 minus it": lambda kept: kept.mean(1),
        "this is the share of each query (row): ask for each key (column)": lambda kept: 1 - kept.mean(2),
        "this is a number of queries: divide it by L": lambda kept: (~kept).sum(1),
        "the layers are averaged away: the result has a row for each layer": (
            lambda kept: 1 - kept.mean((0, 1))
        ),
    },
)
def masked_share(kept):
    return 1 - kept.mean(1)


@ladder.step(
    what="the list of token indices",
    tried="word pieces, punctuation inside a word, a word twice, a word without tokens",
    cases=[
        *[("oatmeal isn't exciting, unlike films", place) for place in (3, 0, 1)],
        ("it exciting film it", 3),  # "it" is a part of "exciting", too
        *[(f"film {DROPPED} film", place) for place in (1, 2)],
    ],
    observe=lambda student, text, place: call(student, TOKENIZER, text, place),
    mistakes={
        "punctuation was counted as words: give the tokenizer text.split()": dict(
            split=lambda text: TOKENIZER(text)
        ),
        "[CLS] was forgotten: word_ids has an entry for special tokens, too": dict(offset=-1),
        "a word can have several pieces: return all of them": dict(pieces=1),
        "the word stands twice in the text: index finds the first": lambda tokenizer, text, place: (
            token_positions.reference(tokenizer, text, text.split().index(text.split()[place]))
        ),
    },
)
def token_positions(tokenizer, text, place, *, split=None, offset=0, pieces=None):
    encoded = split(text) if split else tokenizer(text.split(), is_split_into_words=True)
    return [i + offset for i, word in enumerate(encoded.word_ids()) if word == place][:pieces]


def _share(record, tokens, *, pieces=None, axis=1, special=False):
    """(N, 1) masked share of a word, (N, |O|) that of the others."""
    share, tokens = (~record.kept).mean(axis), tokens[:pieces]
    others = [i for i, (s, e) in enumerate(record.spans) if (special or s < e) and i not in tokens]
    return share[:, tokens].mean(1, keepdims=True), share[:, others]


@ladder.step(
    what="the AUROC",
    tried="a word of two pieces, two kinds of special tokens, ties, a mask that hides nothing",
    cases=[  # of 16, 8, 4 and 8 tokens: there every share is exact, and so is every tie
        lambda: (_record("a film un ##like it [ sic ] oat ##me of all the t"), [3, 4]),
        lambda: (_record("it exciting film a of all t", ["<s>"]), [2]),
        lambda: (_record("it film", ["<s>", "</s>"], 2), [1]),
        lambda: (_record("the film of all it t", hides=False), [6]),
    ],
    mistakes={
        "ties count one half, not nothing": dict(tie=0),
        "special tokens take part: leave out those with an empty span": dict(special=True),
        "only the first piece counts: take the mean of the pieces' shares": dict(pieces=1),
        "this is the share of each query (row): take that of each key": dict(axis=2),
    },
)
def word_auroc(record, tokens, *, tie=0.5, **wrong):
    word, rest = _share(record, tokens, **wrong)
    return ((word > rest) + tie * (word == rest)).mean(1)


def _skewed():
    """Two readings of 25 sentences that rise and fall together; their differences are skewed."""
    rng = np.random.default_rng(int(torch.randint(10**6, ())))
    b = 5 + 9 * rng.standard_normal(25)
    return b + rng.exponential(size=25) ** 2, b


def _interval(student, a, b, seed=0, **options):
    got = call(student, a, b, seed, **options)
    require(np.shape(got) == (3,), f"three numbers are asked for; the result has shape {np.shape(got)}")
    return np.asarray(got, dtype=float)


def _intervals(student, pairs):
    """The means, and where the ends lie on the average: with 2000 draws it wavers by 0.7 % of the width."""
    places, means = [], []
    for seed, (a, b) in enumerate(pairs):
        mean, low, high = _interval(student, a, b, seed)
        _, *right = paired_interval.reference(a, b, 99, 5000)
        places.append((np.array([low, high]) - np.mean(a - b)) / np.ptp(right))
        means.append(mean)
    ends = "the distance of both ends from the mean, in widths of the right interval,"
    return {"the first number, the plain mean of a - b,": np.array(means), ends: np.mean(places, 0).tolist()}


def _seeded(student):
    a, b = _skewed()
    first, again, other = (_interval(student, a, b, seed) for seed in (1, 1, 2))
    require(np.array_equal(first, again), "two calls differ: draw from np.random.default_rng(seed)")
    require((first != other).any(), "the seed changes nothing: draw from np.random.default_rng(seed)")
    _, low, high = _interval(student, a, b, resamples=1)
    require(low == high, "`resamples` is not used: with a single draw, low equals high")


@ladder.step(
    tried="nine skewed data sets of 25 sentences, two seeds, a single draw",
    cases=[lambda: ([_skewed() for _ in range(9)],)],
    observe=_intervals,
    probes=[_seeded],
    tolerance=0.025,
    mistakes={
        "the interval is that of 90 %: leave out 2.5 % at each end": dict(tail=5),
        "a and b are resampled separately: resample the differences, sentence by sentence": dict(apart=True),
        "these percentiles are of single sentences: take those of the resampled means": dict(single=True),
        "the interval has no width: draw the sentences WITH replacement": dict(replace=False),
    },
)
def paired_interval(a, b, seed=0, resamples=2000, *, tail=2.5, apart=False, single=False, replace=True):
    rng, d, n = np.random.default_rng(seed), a - b, len(a)
    draws = rng.integers(n, size=(resamples, n)) if replace else np.tile(np.arange(n), (resamples, 1))
    means = a[draws].mean(1) - b[rng.permuted(draws)].mean(1) if apart else d[draws].mean(1)
    return np.array([d.mean(), *np.percentile(d if single else means, [tail, 100 - tail])])


def _world(*seeds):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForSequenceClassification(BertConfig(vocab_size=len(TOKENIZER), **sizes)).eval()
    texts = ["it oatmeal isn't exciting", "unlike films, it", "it isn't exciting, film"]
    return model, texts, [[2, 3, 4], [1, 2], [1]], list(seeds)


def _scores(student, model, texts, words, seeds):
    got = call(student, model, TOKENIZER, texts, words, seeds)
    hooked = any(module._forward_pre_hooks for module in model.modules())
    require(not hooked, "the model is still wrapped: call unwrap() after the last adversary, too")
    return got


@ladder.step(
    what="the array of scores",
    tried="a tiny model, 3 sentences, 2 layers; three seeds and one",
    cases=[partial(_world, 5, 11, 2), partial(_world, 7)],
    observe=_scores,
    mistakes={
        "nothing is seeded: call torch.manual_seed(seed) before each wrap": dict(seeded=0),
        "the seed is set once: call torch.manual_seed(seed) inside the loop": dict(seeded=1),
        "a wrapped model was wrapped again: give `capture` the wrapped one, and unwrap() in the loop": dict(
            unwrap=False
        ),
        "the sentences are averaged away: keep every score": dict(axis=1),
    },
)
def untrained(model, tokenizer, texts, words, seeds, *, seeded=99, unwrap=True, axis=()):
    scores = []
    for number, seed in enumerate(seeds):
        if number < seeded:
            torch.manual_seed(seed)
        wrapped = wrap(model, AsaConfig())
        scores.append(shortcut_auroc(capture(wrapped, tokenizer, texts), words))
        if unwrap:
            wrapped.unwrap()
    return np.stack(scores).mean(axis)


LUCK = np.random.default_rng(5).integers(0, 9, (12, 8, 3)) / 8
TIE = np.full((4, 8, 2), 0.25)
TIE[:2, :, 1] = TIE[3, :, 0] = 0.75


@ladder.step(
    what="(T, T_k, p)",
    tried="twelve adversaries, ties, and one of everything",
    cases=[(LUCK[3] * 0.5 + 0.3, LUCK), (TIE[0], TIE), (TIE[0, :1, 1:], TIE[2:3, :1, :1])],
    mistakes={
        "the maximum comes too early: average over the sentences first": lambda trained, untrained: (
            verdict.reference(trained.max(1, keepdims=True), untrained.max(2, keepdims=True))
        ),
        "luck may choose its best layer, too: the maximum, not the mean": dict(best_of=np.mean),
        "the trained adversary counts itself: (1 + count) / (1 + S)": dict(itself=0),
        "reaching the trained one is enough: count with >=": dict(reached=np.greater),
    },
)
def verdict(trained, untrained, *, best_of=np.max, itself=1, reached=np.greater_equal):
    best, luck = trained.mean(0).max(), best_of(untrained.mean(1), axis=1)
    return best, luck, (itself + reached(luck, best).sum()) / (itself + len(luck))


FIVE = [
    "The oat ##me film",
    "un ##like the film the it",
    f"it isn the film oat ##me {DROPPED} too",  # the last word but one has no token
    "film",  # the only word of its sentence
    "film ##, the oat ##me it",
]


@ladder.step(
    what="the dictionary of excesses",
    tried="five sentences, rare words, word pieces, a word twice, a lone word, one without tokens",
    cases=[
        partial(lambda *rest: ([_record(text) for text in FIVE], *rest), *r) for r in ((1, 3), (2, 1), (0, 9))
    ],
    observe=_quietly,
    mistakes={
        "capital letters make two words of one: use text.lower()": dict(case=str),
        "rare words take part: leave out those with fewer than `least` occurrences": dict(rare=True),
        "special tokens are among the others: leave out those with an empty span": dict(special=True),
        "a word may stand twice in a sentence: take its place from enumerate, not words.index": dict(
            place_of=lambda words, place: words.index(words[place])
        ),
    },
)
def suspects(
    records, layer, least=3, *, case=str.lower, rare=False, special=False, place_of=lambda words, place: place
):
    found = {}
    for record in records:
        words = case(record.text).split()
        for place, word in enumerate(words):
            if tokens := record.tokens_of_word(place_of(words, place)):
                own, others = _share(record, tokens, special=special)
                if others.size:
                    found.setdefault(word, []).append(own[layer, 0] - others[layer].mean())
    return {word: np.mean(excess) for word, excess in found.items() if rare or len(excess) >= least}
