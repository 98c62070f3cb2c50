"""Checks of `ex01_motivation`: priors on attention, attribution, perturbations, and a fair comparison."""

import math

import torch
from torch import Tensor

from asa_classroom.checks import attacks
from asa_classroom.checks.attacks import lengths_of, real_tokens
from asa_classroom.checks.old_harness import Ladder, attempt, call, require, same
from asa_mini.look.attribution import margin
from asa_mini.objective import symmetric_divergence

ladder = Ladder("ex01_motivation")
HEADS = 3  # not the size of the first batch: a missing axis must not broadcast


def _soft(scores: Tensor, seen: Tensor) -> Tensor:
    """Attention over the keys that are seen, NaN in a row that sees none."""
    return scores.masked_fill(~seen, -torch.inf).softmax(-1)


def _attention(real: Tensor) -> Tensor:
    scores = 2 * torch.randn(len(real), HEADS, real.shape[1], real.shape[1], dtype=torch.float64)
    return _soft(scores, real[:, None, None])


@ladder.step
def smooth(student):
    reals = (
        (real_tokens(3, 5), 0.3),
        (real_tokens(4, 4, 4), 0.7),
        (real_tokens(1, 2).flip(1), 1.0),
        (real_tokens(2, 3), 0.0),
    )
    for number, (real, s) in enumerate(reals):
        a = _attention(real).float() if number == 1 else _attention(real)
        keys, n, rest = real[:, None, None].to(a.dtype), real.sum(1)[:, None, None, None], (1 - s)
        swapped, every = s * a + rest * keys / n, real.sum()
        known = {
            "padding gets attention: the uniform part is for real keys alone": rest * a + s / len(real[0]),
            "the uniform part is divided by L, not by the real tokens": rest * a + s * keys / len(real[0]),
            "attention and uniform part are swapped: strength 0 is ordinary attention": swapped,
            "rows sum to more than 1: attention must lose what the uniform part gets": a + s * keys / n,
            "tokens are counted over the whole batch: count in each sequence": rest * a + s * keys / every,
            "`real` marks the queries (rows): it must mark the keys (columns)": rest * a + s * keys.mT / n,
            "the rows sum to less than 1: the uniform part is missing": rest * a,
        }
        got = call(student, a, real, s)
        same(got, rest * a + s * keys / n, "the mixture", f"{lengths_of(real)}, strength {s}", known)
    return "four batches, padding at either end, strengths 0 to 1"


@ladder.step
def attention_moved(student):
    for real in (real_tokens(3, 5), real_tokens(4, 4, 2), real_tokens(1, 2).flip(1)):
        a, b, n = _attention(real), _attention(real), real.sum(1)
        rows = (a - b).abs().sum(-1).mean(1) / 2  # (B, L)
        right, columns = (rows * real).sum(1) / n, (a - b).abs().sum(-2).mean(1) / 2
        known = {
            "twice too large: the 1/2 is missing": 2 * right,
            f"{HEADS} times too large: the heads are added up, take their mean": HEADS * right,
            "padded queries are counted: average over the real rows": rows.mean(1),
            "padded rows are 0 but still counted: divide by the real rows": (rows * real).mean(1),
            "this is one number for the whole batch: return one for each sequence": right.mean(),
            "the sum runs over queries: a row runs over the keys, the last axis": (columns * real).sum(1) / n,
            "the differences in a row are averaged: add them up": right / len(real[0]),
            "differences cancel: take .abs() before adding them up": torch.zeros_like(right),
        }
        same(call(student, a, b, real), right, "the attention moved", lengths_of(real), known)
    same(call(student, a, a.clone(), real), 0 * right, "the attention moved", "two equal maps")
    return "three batches, padding at either end, and two equal maps"


@ladder.step
def random_mask(student):
    cases = (real_tokens(3, 5), 0.5), (real_tokens(4, 4), 0.3), (real_tokens(1, 3).flip(1), 0.6)
    for number, (real, share) in enumerate((*cases, (real_tokens(2, 4), 1))):
        keys, scores = real[:, None, None], _attention(torch.ones_like(real)).log()
        noise = torch.rand(len(real), *scores.shape[2:], dtype=torch.float64)
        # One row is masked whole: all its real keys, and no padding, which would come back if it could.
        noise[0, 0] = torch.where(real[0], 0.9 * share * noise[0, 0], share + (1 - share) * noise[0, 0])
        if number == 1:
            noise[1, 1, 0] = share  # on the edge: kept
        hidden, too_many = (noise < share)[:, None], (noise <= share)[:, None]
        low, pad, ordinary, seen = -1e4 * hidden, -1e4 * ~keys, _soft(scores, keys), keys & ~hidden
        part = _soft(scores, seen)
        replaced = scores.masked_fill(hidden, -1e4)
        known = {
            "the wrong units are hidden: hide where noise < share": _soft(scores - 1e4 - low, keys),
            "padding gets attention: `real` is not used": (scores + low).softmax(-1),
            "padding is back in a row masked whole: -10000 is not enough": (scores + low + pad).softmax(-1),
            "a row masked whole is uniform: add -10000, replace no score by it": _soft(replaced, keys),
            "a row masked whole is NaN: hide units with -10000, not with -inf": part,
            "a row masked whole gets no attention: it must stay ordinary": part.nan_to_num(0),
            "rows do not sum to 1: hide units before the softmax, not after it": ordinary * ~hidden,
            "`real` marks the queries (rows): it must mark the keys (columns)": _soft(scores + low, keys.mT),
            "nothing is hidden: add -10000 where noise < share": ordinary,
            "a unit with noise equal to share is kept: noise < share": _soft(scores - 1e4 * too_many, keys),
        }
        right = torch.where(seen.any(-1, keepdim=True), part, ordinary)
        case = f"{lengths_of(real)}, share {share}, query 0 of sequence 0 is masked whole"
        same(call(student, scores, real, noise, share), right, "the attention", case, known)
    return "four batches with a row masked whole in each, one with share 1"


@ladder.step
def leave_one_out(student):
    vocabulary = ("so", "good", "but", "long", "")
    rows = [[0.3, -0.2, 0.1], [-0.5, 0.8, 0.2], [0.4, -0.4, 0.9], [-0.8, 0.7, 0.3], [0.4, -0.6, 0.1]]
    table = torch.tensor(rows, dtype=torch.float64)

    def predict(texts):
        require(not isinstance(texts, str), "predict was given one text: give it a list of texts")
        read = [
            [vocabulary.index(word) if word in vocabulary else -1 for word in x.split(" ")] for x in texts
        ]
        return torch.stack([(table[row] * (5 + torch.arange(len(row))[:, None]) / 5).sum(0) for row in read])

    for text in ("so good but so so long", "good long", "but"):
        words, every = text.split(), range(len(text.split()))
        shorter = predict([" ".join(words[:i] + words[i + 1 :]) for i in every])
        cut, cut_all = ([text.replace(word, "", count) for word in words] for count in (1, -1))
        texts = {
            "a word that occurs twice is gone everywhere: leave out one place": [
                " ".join(w for w in words if w != word) for word in words
            ],
            "a word that occurs twice goes at its first place each time: words[:i] + words[i + 1 :]": [
                " ".join(rest.split()) for rest in cut
            ],
            "text.replace leaves double blanks and cuts inside words: join the other words": cut,
            "text.replace cuts everywhere and leaves double blanks: join the other words": cut_all,
            "two blanks stay where the word was: join the rest anew": [
                " ".join([*words[:i], "", *words[i + 1 :]]) for i in every
            ],
        }
        whole = predict([text]).expand(len(words), -1)
        classes, c = whole.argmax(-1), int(whole[0].argmax())
        score, own = margin(whole, classes), margin(shorter, shorter.argmax(-1))
        right, p, log_p = score - margin(shorter, classes), whole.softmax(-1), whole.log_softmax(-1)
        known = {
            "the sign is wrong: the log-odds fall when a word that spoke for the class is gone": -right,
            "each text is scored by its own class: keep the first": score - own,
            "these are falls of p: take log p / (1 - p)": (p - shorter.softmax(-1))[:, c],
            "these are falls of log p: take log p / (1 - p)": (log_p - shorter.log_softmax(-1))[:, c],
            "these are the log-odds without the word: return how far they fell": score - right,
            "there is one number too many: leave the whole text out": torch.cat([0 * right[:1], right]),
        }
        known |= {hint: score - margin(predict(wrong), classes) for hint, wrong in texts.items()}
        same(call(student, predict, text), right, "the row of falls", f"the text {text!r}", known)
    return "texts of six words, one of them three times, of two and of one"


gradient_times_input = ladder.step(attacks.gradient_times_input)
fgm = ladder.step(attacks.fgm)
pgd = ladder.step(attacks.pgd)


@ladder.step
def find_size(student):
    curves = (lambda s: s**2, 0.09, 1.0, 0.3), (lambda s: 1 - math.exp(-s), 0.5, 4.0, math.log(2))
    curves += (lambda s: s, 2.0, 2.0, 2.0), (lambda s: 2.0 * (s > 0.6), 1.0, 1.0, 0.6)
    for curve, target, high, right in (*curves, (lambda s: 3 * s, 5.0, 1.0, math.nan)):
        for rounds in (30, 3):
            asked, fits = [], max(high / 2**rounds, 1e-6)
            run = attempt if math.isnan(right) else call
            got = run(student, lambda s, a=asked, c=curve: a.append(s) or c(s), target, high, rounds)
            unreached = "find_size returned None for a target that `high` does not reach: return math.nan"
            require(got is not None, unreached)
            known = {
                "this is the divergence: return the size": target,
                "even `high` does not reach the target: return nan": high if math.isnan(right) else None,
                "the wrong half is kept: too little divergence asks for larger sizes": high,
            }
            same(got, right, "the size", f"{target=}, {high=}, {rounds=}", known, tolerance=fits)
            often = f"`divergence` was called {len(asked)} times for {rounds=}"
            require(len(asked) <= rounds + 3, f"{often}: halve exactly `rounds` times, one call a round")
    return "five curves, one with a jump, one that stays below the target"


@ladder.step
def equal_footing(student):
    for real in (real_tokens(3, 5, 4, 2), real_tokens(1, 2, 2).flip(1)):
        logits, weights, other = torch.randn(len(real), 3).double(), _attention(real), _attention(real)
        push, size, high = torch.randn_like(logits), 0.8, 4.0
        target = float(symmetric_divergence(logits, logits + size * push))

        def attack(speed, reach, a=logits, b=push, c=weights, d=other):
            def run(s):
                asked_nan = "an attack was run at the size nan: test with math.isnan (nan == nan is False)"
                require(not math.isnan(s), asked_nan)
                return a + speed * s * b, c + reach * s * (d - c)

            return run

        paces = {"fast": (2.0, 0.2), "slow": (0.5, 0.1), "too slow": (0.1, 0.1)}
        todo = {name: attack(*pace) for name, pace in paces.items()}
        rows = (weights - other).abs().sum(-1).mean(1) / 2
        whole, padded = (rows * real).sum(1) / real.sum(1), float(rows.mean())
        got = call(student, (logits, weights), todo, real, target, high)
        same(sorted(got) if isinstance(got, dict) else got, sorted(todo), "the dictionary's list of names")
        for name, (speed, reach) in paces.items():
            at = size / speed if size / speed < high else math.nan
            pace = reach * float(whole.mean())  # attention moved per size
            moved = pace * at
            known = {
                "every attack got the same size: find one for each": (high, pace * high),
                "the target is a divergence, not a size: use find_size": (target, pace * target),
                "the two numbers are swapped: the size comes first": (moved, at),
                "the size is missing: give (size, moved)": moved,
                "the movements are added up: take their mean over sequences": (at, moved * len(real)),
                "there is one movement for each sequence: take their mean": (at, reach * at * whole),
                "padded queries are counted: take the mean of your attention_moved": (
                    at,
                    reach * at * padded,
                ),
                "nothing has moved: compare the clean map with the attacked one": (at, 0.0),
                "attention is measured at `high`: run the attack at the size found": (at, pace * high),
            }
            if isinstance(got[name], (tuple, list)) and len(got[name]) == 2:
                known |= _blame(*got[name], at)
            same(got[name], (at, moved), f"the pair of {name!r}", f"{lengths_of(real)}, {target=:.3f}", known)
    return "three attacks on two batches, one attack too weak"


def _blame(size: object, moved: object, at: float) -> dict[str, tuple]:
    """A wrong pair, under the name of the earlier step that may be at fault."""
    if math.isnan(at):
        return {"`high` does not reach the target: give (nan, nan). Is find_size right?": (size, moved)}
    return {
        "the size is right, the movement is not: does check.attention_moved still pass?": (at, moved),
        "the size is off: does check.find_size still pass? is it given target and high?": (size, moved),
    }
