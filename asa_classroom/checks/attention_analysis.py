"""Checks of `ex05_attention_analysis`: finding a planted word, without being fooled by chance."""

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from asa_classroom.checks.compare import hinted
from asa_classroom.checks.harness import Ladder, call, require, same
from asa_classroom.checks.intervals import call_interval, check_order, check_place, check_width, ends
from asa_classroom.checks.records import (
    VOCABULARY,
    as_array,
    auroc_of,
    call_unchanged,
    excesses,
    others,
    random_record,
    rest,
    same_numbers,
)
from asa_mini.look.capture import capture
from asa_mini.look.measures import shortcut_auroc
from asa_mini.wrap import AsaConfig, wrap

ladder = Ladder("ex05_attention_analysis")
TEXTS = ["it oatmeal isn't exciting", "unlike films, it", "it isn't exciting, film"]
FIVE = [
    "The oat ##me film",
    "un ##like the film the it",
    "it isn the film oat ##me \u200b too",  # the last word but one has no token
    "film",  # the only word of its sentence
    "film ##, the oat ##me it",
]


@ladder.step
def row_entropy(student):
    maps = np.random.default_rng(0).dirichlet(np.ones(4), (2, 3, 4))
    zeros = np.array([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]])
    for case, a in (("maps", maps), ("rows with zeros", zeros), ("one token", np.ones((2, 1, 1)))):
        terms = -a * np.log(np.where(a > 0, a, 1))
        right = terms.sum(-1)
        not_a_number = np.where((a == 0).any(-1), np.nan, right)
        known = {
            "the sign is wrong: log a is negative, and the minus in front makes up for it": -right,
            "this is in bits: nats take the natural logarithm, np.log": right / np.log(2),
            "the sum runs over the queries: the keys of a row are the last axis": terms.sum(-2),
            "the entropy is the sum over the keys, not their mean": terms.mean(-1),
            "everything is summed: each row has an entropy of its own": terms.sum(),
            "do not divide by log L: the entropy itself is asked for": right / np.log(a.shape[-1] + 1e-9),
            "0 log 0 gave NaN: take the logarithm only where the weight is above 0": not_a_number,
        }
        same_numbers(call_unchanged(student, a), right, "the entropy", f"{case} {a.shape}", known)
    return "a batch of maps, rows with zeros, a single token"


@ladder.step
def masked_share(student):
    kept = np.random.default_rng(0).random((3, 5, 5)) < 0.7
    line = np.ones((2, 4, 4), bool)
    line[:, 1] = line[1, :, 2] = False
    for case, mask in (("random", kept), ("whole rows and columns", line), ("one token", line[:, :1, :1])):
        known = {
            "this is the share that was kept: the masked share is 1 minus it": mask.mean(-2),
            "this is the share of each query (row): ask for each key (column)": (~mask).mean(-1),
            "this is a number of queries: divide it by L": (~mask).sum(-2),
            "the layers are averaged away: the result has a row for each layer": (~mask).mean((0, -2)),
            "this is in per cent: a share lies between 0 and 1": 100 * (~mask).mean(-2),
        }
        got, case = call_unchanged(student, mask), f"{case}, {mask.shape}"
        same_numbers(got, (~mask).mean(-2), "the masked share", case, known)
    return "random masks, whole rows and columns, a single token"


@ladder.step
def token_positions(student):
    tokenizer, long = BertTokenizerFast(vocab=VOCABULARY), "oatmeal isn't exciting, unlike films"
    wanted = [(long, 3, [9, 10]), (long, 0, [1, 2, 3]), (long, 1, [4, 5, 6]), (long, 4, [11, 12])]
    for text, place, right in [
        *wanted,
        ("it exciting film it", 3, [4]),  # "it" is a part of "exciting", too
        ("film", 0, [1]),
        ("a \u200b film", 1, []),
        ("a \u200b film", 2, [2]),
    ]:
        encoded = tokenizer(text)
        plain, last = encoded.word_ids(), len(encoded.tokens()) - 1
        raw = [i for i, word in enumerate(plain) if word == place]
        words, split = text.split(), tokenizer(text.split(), is_split_into_words=True).word_ids()
        first, after = (
            [i for i, w in enumerate(split) if w == x] for x in (words.index(words[place]), place + 1)
        )
        known = {
            "punctuation was counted as words: give the tokenizer text.split()": raw,
            "special tokens belong to no word: their word id is None, not 0": [0, *right, last],
            "[CLS] was forgotten: word_ids has an entry for special tokens, too": [i - 1 for i in right],
            "a word can have several pieces: return all of them": right[:1],
            "this is the place of the word: its tokens stand elsewhere": [place],
            "words before this one can have several pieces: adding 1 for [CLS] is not enough": [place + 1],
            "the word stands twice in the text: index finds the first": first,
            "word ids count words from 0 and give [CLS] None: do not add 1": after,
            "word_ids has an entry for [CLS] already: do not add 1 to the index": [i + 1 for i in right],
            "these are ids of the vocabulary, not places in the text": [encoded.input_ids[i] for i in right],
            "give the indices of the tokens, not their text": [encoded.tokens()[i] for i in right],
        }
        hints = {"PreTokenized": "the tokenizer wants a list of words here: text.split()"}
        got = hinted(hints, call_unchanged, student, tokenizer, text, place)
        require(isinstance(got, list), f"the result must be a list, but is of type {type(got).__name__}")
        same(got, right, "the list of token indices", f"{text=}, {place=}", known)
    return "word pieces, punctuation inside a word, a word without tokens"


@ladder.step
def word_auroc(student):
    rng = np.random.default_rng(3)
    # 16, 8, 4 and 8 tokens: there every share is exact, and so is every tie.
    long = random_record(rng, "a film un ##like it [ sic ] oat ##me of all the t")
    front = random_record(rng, "it exciting film a of all t", ["<s>"])
    pair = random_record(rng, "it film", ["<s>", "</s>"], 2)
    nothing = random_record(rng, "the film of all it t")
    nothing.kept[:] = True
    for record, word in ((long, [3, 4]), (front, [2]), (pair, [1]), (nothing, [6])):
        share, other, length = (~record.kept).mean(-2), others(record, word), len(record.tokens)
        right, remaining = auroc_of(share, word, other), rest(record, word)
        rows, by_piece = (~record.kept).mean(-1), [auroc_of(share, [i], other) for i in word]
        own, inner = auroc_of(share, word, others(record, [])), [i for i in remaining if 0 < i < length - 1]
        known = {
            "ties count one half, not nothing": auroc_of(share, word, other, 0),
            "ties count one half, not a whole win": auroc_of(share, word, other, 1),
            "the direction is wrong: count the tokens that are hidden LESS than the word": 1 - right,
            "special tokens take part: leave out those with an empty span": auroc_of(share, word, remaining),
            "the word competes with itself: leave its own tokens out": own,
            "all tokens take part: leave out special ones and the word's": auroc_of(
                share, word, range(length)
            ),
            "first and last are not always special: look for an empty span": auroc_of(share, word, inner),
            "only the first piece counts: take the mean of the pieces' shares": by_piece[0],
            "average the pieces' shares first, and compare once": sum(by_piece) / len(word),
            "this is the share of each query (row): take that of each key": auroc_of(rows, word, other),
            "this is a number of tokens: divide it by how many others there are": right * len(other),
            "the layers are averaged away: the result has one number for each layer": right.mean(),
        }
        got = as_array(call_unchanged(student, record, word), "the AUROC")
        same_numbers(got, right, "the AUROC", f"{record.tokens}, {word=}", known)
    return "a word of two pieces, two kinds of special tokens, ties, a mask that hides nothing"


@ladder.step
def paired_interval(student):
    widths = []  # each divided by the right one
    for seed, n in enumerate((25, 40, 80, 40)):
        rng = np.random.default_rng(seed)
        b = 5 + rng.standard_normal(n)
        a = b + 0.3 + 0.5 * rng.standard_normal(n)
        x, got = a - b, call_interval(student, a, b, seed)
        mean, low, high = got
        check_order(mean, low, high)
        known = {"this is the mean of b - a: a - b is asked for": -x.mean()}
        what = "the first number, the plain mean of a - b,"
        same_numbers(mean, x.mean(), what, f"{n} sentences", known, 1e-9)
        widths.append((high - low) / np.ptp(ends(x)))
    check_width(np.mean(widths))
    again, other, one = (call_interval(student, a, b, *x) for x in ((seed,), (seed + 1,), (seed, 1)))
    require(np.array_equal(got, again), "two calls differ: draw from np.random.default_rng(seed)")
    require((got != other).any(), "the seed changes nothing: draw from np.random.default_rng(seed)")
    finite = "with resamples=1 an end is not a number: the percentile interval is asked for"
    require(np.isfinite(one).all(), finite)
    require(one[1] == one[2], "`resamples` is not used: with a single draw, low equals high")
    check_place(student)
    x = np.array([1.0, 0.0, 0.0, 0.0, -1.0])
    _, low, high = call_interval(student, x, 0 * x, seed)
    require(low < 0 < high, "the first or the last sentence is never drawn: the indices are 0 to n - 1")
    return "data sets of 5 to 80 sentences, one of them skewed, two seeds, a single draw"


@ladder.step
def untrained(student):
    tokenizer, words = BertTokenizerFast(vocab=VOCABULARY), [[2, 3, 4], [1, 2], [1]]
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **size)).eval()

    def scores(seed=None):
        if seed is not None:
            torch.manual_seed(seed)
        wrapped = wrap(model, AsaConfig())
        records = capture(wrapped, tokenizer, TEXTS)
        wrapped.unwrap()
        return shortcut_auroc(records, words)

    for seeds in ([5, 11, 2], [7]):
        right = np.stack([scores(seed) for seed in seeds])
        places = np.stack([scores(place) for place in range(len(seeds))])
        unwrapped = "give `capture` the wrapped model, not `model`; or is `unwrap()` missing in the loop?"
        hints = {"this model is wrapped already": unwrapped}
        got = hinted(hints, call_unchanged, student, model, tokenizer, TEXTS, words, seeds)
        hooked = any(module._forward_pre_hooks for module in model.modules())
        require(not hooked, "the model is still wrapped: call unwrap() after the last adversary, too")
        again = call(student, model, tokenizer, TEXTS, words, seeds)
        require(np.array_equal(got, again), "two calls differ: torch.manual_seed(seed) before each wrap")
        idle = np.array_equal(got, np.full_like(right, 0.5))
        asleep = "all scores are one half, nothing was hidden: capture the wrapped model, before unwrap()"
        require(not idle, asleep)
        repeated = np.shape(got) == right.shape and len(got) > 1 and np.array_equal(got[0], got[1])
        require(not repeated, "all adversaries are the same: seed and wrap anew for each seed")
        once, zero = (np.stack([scores(seed), *(scores() for _ in seeds[1:])]) for seed in (seeds[0], 0))
        known = {
            "the seed is set once: call torch.manual_seed(seed) inside the loop": once,
            "a seed is set once: torch.manual_seed(seed) belongs inside the loop": zero,
            "seed with the number given, not with its place in the list": places,
            "the sentences are averaged away: keep every score": right.mean(1),
            "the axes are in the wrong order: adversaries, sentences, layers": right.swapaxes(0, 1),
        }
        same_numbers(got, right, "the array of scores", f"{seeds=}", known)
    return "a tiny model, 3 sentences, 2 layers; three seeds and one"


@ladder.step
def verdict(student):
    luck = np.random.default_rng(5).integers(0, 9, (12, 8, 3)) / 8
    tie = np.full((4, 8, 2), 0.25)
    tie[:2, :, 1] = tie[3, :, 0] = 0.75
    for trained, drawn in ((luck[3] * 0.5 + 0.3, luck), (tie[0], tie), (tie[0, :1, 1:], tie[2:3, :1, :1])):

        def answer(best, luck, add=1, below=1, reached=np.greater_equal, drawn=drawn):
            share = (add + reached(luck, best).sum()) / (below + len(drawn))
            return round(float(best), 6), torch.as_tensor(luck), round(float(share), 6)

        profile, profiles = trained.mean(0), drawn.mean(1)
        best, luck, here = profile.max(), profiles.max(1), profiles[:, profile.argmax()]
        early = answer(trained.max(1).mean(), drawn.max(2).mean(1))
        known = {
            "the maximum comes too early: average over the sentences first": early,
            "luck may choose its best layer, too: the maximum, not the mean": answer(best, profiles.mean(1)),
            "luck may choose its best layer, too, not only the one that is best for you": answer(best, here),
            "the trained adversary counts itself: (1 + count) / (1 + S)": answer(best, luck, 0, 0),
            "the numerator is 1 + count, too": answer(best, luck, add=0),
            "the denominator is 1 + S, too": answer(best, luck, below=0),
            "reaching the trained one is enough: count with >=": answer(best, luck, reached=np.greater),
            "count the untrained ones that REACH the trained one": answer(best, luck, reached=np.less),
        }
        got = call_unchanged(student, trained, drawn)
        require(isinstance(got, (tuple, list)) and len(got) == 3, "return three things: T, T_k, p")
        names, right = ("T", "T_k", "p"), answer(best, luck)
        got = [as_array(x, name) for x, name in zip(got, names, strict=True)]
        require(got[0].ndim == 0, "T must be one number: the mean over the sentences, then the maximum")
        hint = "T_k must hold one number for each untrained adversary: the sentences are axis 1"
        shapes = f"  expected  shape {luck.shape}\n  got       shape {got[1].shape}"
        require(got[1].shape == luck.shape, f"{hint}\n  case      {drawn.shape}: (S, n, N)\n{shapes}")
        for i, name in enumerate(names):
            mine = torch.as_tensor(got[i]) if got[i].ndim else round(float(got[i]), 6)
            wrong = {hint: x[i] for hint, x in known.items() if all(map(np.array_equal, x[:i], right))}
            if name == "p" and np.all(got[i] > 1):
                wrong["p is above 1: put brackets around the numerator and the denominator"] = mine
            same(mine, right[i], name, f"untrained of shape {drawn.shape}", wrong)
    return "twelve adversaries, ties, and one of everything"


@ladder.step
def suspects(student):
    rng = np.random.default_rng(0)
    records = [random_record(rng, text) for text in FIVE]
    for layer, least in ((1, 3), (2, 1), (0, 4), (0, 9)):
        right, known = excesses(records, layer, least)
        got = call_unchanged(student, records, layer, least)
        require(isinstance(got, dict), f"the result must be a dictionary, not a {type(got).__name__}")
        require(all(isinstance(word, str) for word in got), "the keys of the dictionary are the words")
        single = all(np.ndim(x) == 0 for x in got.values())
        require(single, "the value of a word is one number, the mean of its list")
        got = sorted((word, round(float(x), 6)) for word, x in got.items())
        known = {hint: sorted(wrong.items()) for hint, wrong in known.items()}
        same(got, sorted(right.items()), "the excess", f"{layer=}, {least=}", known)
    return "five sentences, rare words, word pieces, a word twice, a lone word, one without tokens"
