"""Checks of `ex05_attention_analysis`: finding a planted word, without being fooled by chance."""

import numpy as np
import torch
from transformers import BertTokenizerFast

from asa_classroom.checks.encoders import classifier
from asa_classroom.checks.harness import Ladder, call, require
from asa_mini.config import AsaConfig
from asa_mini.look.capture import AttentionRecord, capture
from asa_mini.look.measures import shortcut_auroc
from asa_mini.model import wrap

ladder = Ladder()
PIECES = ["oat", "##me", "##al", "isn", "'", "t", "exciting", ",", "un", "##like", "film", "##s", "it"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES]
TOKENIZER = BertTokenizerFast(vocab={piece: i for i, piece in enumerate(VOCABULARY)})
DROPPED = "\u200b"  # a word to text.split(), nothing to a tokenizer


def random_record(pieces, special=("[CLS]", "[SEP]"), layers=3, hides=True):
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
    kept = kept.numpy() | (not hides)
    return AttentionRecord(text, tokens, spans, clean, clean, kept, *np.full((2, 2), 0.5))


@ladder.step(
    what="the entropy",
    cases=[
        (np.random.default_rng(0).dirichlet(np.ones(4), (2, 3, 4)),),
        (np.array([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]),),
        (np.ones((2, 1, 1)),),
    ],
    mistakes={
        "this is in bits: nats take the natural logarithm, np.log": dict(log=np.log2),
        "the sum runs over the queries: the keys of a row are the last axis": dict(axis=-2),
        "0 log 0 gave NaN: take the logarithm only where the weight is above 0": dict(instead=0),
    },
)
def row_entropy(weights, *, log=np.log, axis=-1, instead=1):
    return -(weights * log(np.where(weights > 0, weights, instead))).sum(axis)


@ladder.step(
    what="the masked share",
    cases=[
        (np.random.default_rng(0).random((3, 5, 5)) < 0.7,),
        (np.array([[[True, True], [False, False]], [[True, False], [True, False]]]),),
        (np.zeros((2, 1, 1), bool),),
    ],
    mistakes={
        "this is the share that was kept: the masked share is 1 minus it": lambda kept: kept.mean(1),
        "this is the share of each query (row): ask for each key (column)": lambda kept: 1 - kept.mean(2),
        "this is a number of queries: divide it by L": lambda kept: (~kept).sum(1),
    },
)
def masked_share(kept):
    return 1 - kept.mean(1)


@ladder.step(
    what="the list of token indices",
    cases=[
        *[("oatmeal isn't exciting, unlike films", place) for place in (3, 0, 1)],
        ("it exciting film it", 3),  # "it" is a part of "exciting", too
        (f"film {DROPPED} film", 1),
    ],
    observe=lambda student, text, place: call(student, TOKENIZER, text, place),
    mistakes={
        "punctuation was counted as words: give the tokenizer text.split()": dict(split=TOKENIZER),
        "a word can have several pieces: return all of them": dict(pieces=1),
        "the word stands twice in the text: index finds the first": dict(first=True),
    },
)
def token_positions(tokenizer, text, place, *, split=None, pieces=None, first=False):
    words = text.split()
    place = words.index(words[place]) if first else place
    encoded = split(text) if split else tokenizer(words, is_split_into_words=True)
    return [i for i, word in enumerate(encoded.word_ids()) if word == place][:pieces]


def shares(record, tokens, *, pieces=None, special=False):
    """(N, 1) masked share of a word, (N, |O|) that of the others."""
    share, tokens = (~record.kept).mean(1), tokens[:pieces]
    others = [i for i, (s, e) in enumerate(record.spans) if (special or s < e) and i not in tokens]
    return share[:, tokens].mean(1, keepdims=True), share[:, others]


@ladder.step(
    what="the AUROC",
    cases=[  # of 16, 8 and 8 tokens: there every share is exact, and so is every tie
        lambda: (random_record("a film un ##like it [ sic ] oat ##me of all the t"), [3, 4]),
        lambda: (random_record("it exciting film a of all t", ["<s>"]), [2]),
        lambda: (random_record("the film of all it t", hides=False), [6]),
    ],
    mistakes={
        "ties count one half, not nothing": dict(tie=0),
        "special tokens take part: leave out those with an empty span": dict(special=True),
        "only the first piece counts: take the mean of the pieces' shares": dict(pieces=1),
    },
)
def word_auroc(record, tokens, *, tie=0.5, **wrong):
    word, rest = shares(record, tokens, **wrong)
    return ((word > rest) + tie * (word == rest)).mean(1)


def skewed_readings(sets=9):
    """Two readings of 25 sentences that rise and fall together; their differences are skewed."""
    rng = np.random.default_rng(int(torch.randint(10**6, ())))
    b = 5 + 9 * rng.standard_normal((sets, 25))
    return b + rng.exponential(size=b.shape) ** 2, b


def observe_intervals(student, a, b):
    """The means, and where the ends lie on the average: with 2000 draws it wavers by 0.7 % of the width."""

    def interval(*args):
        got = call(student, *args)
        require(np.shape(got) == (3,), f"three numbers are asked for; the result has shape {np.shape(got)}")
        return np.asarray(got, dtype=float)

    pairs = list(zip(a, b, strict=True))
    found = np.array([interval(*pair, seed) for seed, pair in enumerate(pairs)])
    right = np.array([paired_interval.reference(*pair, 99, 5000) for pair in pairs])
    ends = (found[:, 1:] - (a - b).mean(1, keepdims=True)) / np.ptp(right[:, 1:], axis=1, keepdims=True)
    return {
        "the first number, the plain mean of a - b,": found[:, 0],
        "the distance of both ends from the mean, in widths of the right interval,": ends.mean(0).tolist(),
        "whether the same seed gives the same interval": np.array_equal(interval(*pairs[1], 1), found[1]),
        "whether another seed gives another interval": bool((interval(*pairs[1], 2) != found[1]).any()),
    }


@ladder.step(
    cases=[skewed_readings],
    observe=observe_intervals,
    tolerance=0.025,
    mistakes={
        "the interval is that of 90 %: leave out 2.5 % at each end": dict(tail=5),
        "a and b are resampled separately: resample the differences, sentence by sentence": dict(apart=True),
        "these percentiles are of single sentences: take those of the resampled means": dict(single=True),
    },
)
def paired_interval(a, b, seed=0, resamples=2000, *, tail=2.5, apart=False, single=False):
    rng, d, n = np.random.default_rng(seed), a - b, len(a)
    draws = rng.integers(n, size=(resamples, n))
    means = a[draws].mean(1) - b[rng.permuted(draws)].mean(1) if apart else d[draws].mean(1)
    return np.array([d.mean(), *np.percentile(d if single else means, [tail, 100 - tail])])


def observe_scores(student, seeds):
    model = classifier(positions=128)
    texts = ["it oatmeal isn't exciting", "unlike films, it", "it isn't exciting, film"]
    got = call(student, model, TOKENIZER, texts, [[2, 3, 4], [1, 2], [1]], seeds)
    hooked = any(module._forward_pre_hooks for module in model.modules())
    require(not hooked, "the model is still wrapped: call unwrap() after the last adversary, too")
    return got


@ladder.step(
    what="the array of scores",
    cases=[([5, 11],), ([7],)],
    observe=observe_scores,
    mistakes={
        "nothing is seeded: call torch.manual_seed(seed) before each wrap": dict(seeded=0),
        "the seed is set once: call torch.manual_seed(seed) inside the loop": dict(seeded=1),
        "a wrapped model was wrapped again: call unwrap() in the loop": dict(unwrap=False),
    },
)
def untrained(model, tokenizer, texts, words, seeds, *, seeded=99, unwrap=True):
    scores = []
    for number, seed in enumerate(seeds):
        if number < seeded:
            torch.manual_seed(seed)
        wrapped = wrap(model, AsaConfig())
        scores.append(shortcut_auroc(capture(wrapped, tokenizer, texts), words))
        if unwrap:
            wrapped.unwrap()
    return np.stack(scores)


LUCK = np.random.default_rng(5).integers(0, 9, (12, 8, 3)) / 8
TIE = np.full((4, 8, 2), 0.25)
TIE[:2, :, 1] = TIE[3, :, 0] = 0.75


@ladder.step(
    what="(T, T_k, p)",
    cases=[(LUCK[3] * 0.5 + 0.3, LUCK), (TIE[0], TIE), (TIE[0, :1, 1:], TIE[2:3, :1, :1])],
    mistakes={
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
    cases=[lambda r=r: ([random_record(text) for text in FIVE], *r) for r in ((1, 3), (2, 1), (0, 9))],
    mistakes={
        "capital letters make two words of one: use text.lower()": dict(case=str),
        "rare words take part: leave out those with fewer than `least` occurrences": dict(rare=True),
        "special tokens are among the others: leave out those with an empty span": dict(special=True),
    },
)
def suspects(records, layer, least=3, *, case=str.lower, rare=False, special=False):
    found = {}
    for record in records:
        for place, word in enumerate(case(record.text).split()):
            if tokens := record.tokens_of_word(place):
                own, others = shares(record, tokens, special=special)
                if others.size:
                    found.setdefault(word, []).append(own[layer, 0] - others[layer].mean())
    return {word: np.mean(excess) for word, excess in found.items() if rare or len(excess) >= least}
