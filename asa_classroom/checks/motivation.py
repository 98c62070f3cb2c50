"""Checks of `ex01_motivation`: priors on attention, attribution, perturbations, and a fair comparison."""

import math
from functools import partial

import torch
from torch import Tensor

from asa_classroom.checks.attacks import hill, left_nothing, shorten, slope, tokens, unit
from asa_classroom.checks.harness import Ladder, attempt, call, require
from asa_mini.look.attribution import margin
from asa_mini.objective import symmetric_divergence

ladder = Ladder("ex01_motivation")
HEADS = 3  # not the size of the first batch: a missing axis must not broadcast


def _maps(real: Tensor) -> Tensor:
    """Random attention weights (B, HEADS, L, L) in double precision; padding gets none."""
    scores = 2 * torch.randn(len(real), HEADS, real.shape[1], real.shape[1], dtype=torch.float64)
    return scores.masked_fill(~real[:, None, None], -torch.inf).softmax(-1)


def _one_map(lengths, strength):
    weights = _maps(real := tokens(*lengths))
    return weights.float() if strength == 0.7 else weights, real, strength


@ladder.step(
    what="the mixture",
    tried="four batches, padding at either end, strengths 0 to 1",
    cases=[partial(_one_map, *c) for c in (((3, 5), 0.3), ((4, 4, 4), 0.7), ((-1, -2), 1), ((2, 3), 0))],
    mistakes={
        "padding gets attention: the uniform part is for real keys alone": dict(padding=True),
        "the uniform part is divided by L, not by the real tokens": dict(over=lambda keys: keys.shape[-1]),
        "attention and uniform part are swapped: strength 0 is ordinary attention": dict(swapped=True),
    },
)
def smooth(weights, real, strength, *, padding=False, over=lambda keys: keys.sum(-1, True), swapped=False):
    keys = (real | padding)[:, None, None].to(weights.dtype)
    strength = 1 - strength if swapped else strength
    return (1 - strength) * weights + strength * keys / over(keys)


@ladder.step(
    what="the attention moved",
    tried="three batches, padding at either end",
    cases=[lambda r=r: (_maps(r), _maps(r), r) for r in (tokens(3, 5), tokens(4, 4, 2), tokens(-1, -2))],
    mistakes={
        "twice too large: the 1/2 is missing": dict(factor=1),
        f"{HEADS} times too large: the heads are added up, take their mean": dict(factor=HEADS / 2),
        "padded queries are counted: average over the real rows": dict(all_rows=True),
        "padded rows are 0 but still counted: divide by the real rows": dict(all_count=True),
    },
)
def attention_moved(before, after, real, *, factor=0.5, all_rows=False, all_count=False):
    rows = factor * (before - after).abs().sum(-1).mean(1)  # (B, L)
    return (rows * (real | all_rows)).sum(1) / (real | all_rows | all_count).sum(1)


def _noise(lengths, share):
    real = tokens(*lengths)
    scores = _maps(real | True).log()
    noise = torch.rand(len(real), *scores.shape[2:], dtype=torch.float64)
    # Query 0 of sequence 0 is masked whole: all its real keys, and no padding, which might come back.
    noise[0, 0] = torch.where(real[0], 0.9 * share * noise[0, 0], share + (1 - share) * noise[0, 0])
    noise[1, 1, 0] = share  # on the edge: kept
    return scores, real, noise, share


@ladder.step(
    what="the attention",
    tried="four batches with a row masked whole in each, one with share 1",
    cases=[partial(_noise, *c) for c in (((3, 5), 0.5), ((4, 4), 0.3), ((-1, -3), 0.6), ((2, 4), 1))],
    mistakes={
        "padding gets attention: `real` is not used": dict(padding=0.0),
        "padding is back in a row masked whole: -10000 is not enough": dict(padding=-1e4),
        "a row masked whole is NaN: hide units with -10000, not with -inf": dict(low=-torch.inf),
        "a row masked whole is uniform: add -10000, replace no score by it": dict(weight=0),
    },
)
def random_mask(scores, real, noise, share, *, low=-1e4, padding=-torch.inf, weight=1):
    hidden = (noise < share)[:, None]
    scores = torch.where(hidden, weight * scores + low, scores)
    return (scores + torch.where(real, 0.0, padding)[:, None, None]).softmax(-1)


WEIGHTS = {"so": (3, -2, 1), "good": (-5, 8, 2), "but": (4, -4, 9), "long": (-8, 7, 3)}


def _predict(texts):
    """Logits (n, 3): the weights of a text's words, the later the heavier; blanks and scraps weigh, too."""
    require(not isinstance(texts, str), "predict was given one text: give it a list of texts")
    words = [[WEIGHTS.get(word, (4, -6, len(word))) for word in text.split(" ")] for text in texts]
    rows = [torch.tensor(row, dtype=torch.float64) / 10 for row in words]
    return torch.stack([(row * (1 + torch.arange(len(row))[:, None] / 5)).sum(0) for row in rows])


@ladder.step(
    what="the row of falls",
    tried="texts of six words, one of them three times, of two and of one",
    cases=[(_predict, text) for text in ("so good but so so long", "good long", "but")],
    mistakes={
        "the sign is wrong: the log-odds fall when a word that spoke for the class is gone": dict(sign=-1),
        "each text is scored by its own class: keep the first": dict(own_class=True),
        "a word that occurs twice is gone everywhere: leave out one place": dict(
            without=lambda words, i: [word for word in words if word != words[i]]
        ),
        "text.replace leaves double blanks and cuts inside words: join the other words": dict(
            without=lambda words, i: [" ".join(words).replace(words[i], "", 1)]
        ),
    },
)
def leave_one_out(
    predict, text, *, sign=1, own_class=False, without=lambda words, i: words[:i] + words[i + 1 :]
):
    words = text.split()
    shorter = predict([" ".join(without(words, i)) for i in range(len(words))])
    whole = predict([text]).expand(len(words), -1)
    fall = margin(whole, whole.argmax(-1)) - margin(shorter, (shorter if own_class else whole).argmax(-1))
    return sign * fall


def _baseline(*lengths, on_baseline=False):
    score, x = hill(tokens(*lengths), tuple(range(2, 2 + len(lengths))))
    return score, x, x[0, 0].clone() if on_baseline else torch.randn(3, dtype=torch.float64)


@ladder.step(
    what="the attribution",
    tried="three shapes, and a token that is the baseline itself",
    cases=[partial(_baseline, 3, 3), partial(_baseline, 5), partial(_baseline, 1, 1, 1, on_baseline=True)],
    observe=left_nothing,
    mistakes={
        "the baseline is not used: multiply by x - baseline": dict(times=lambda g, x, b: g * x),
        "the baseline is subtracted after the product: bracket (x - baseline)": dict(
            times=lambda g, x, b: g * x - b
        ),
        "the scores were averaged: take the gradient of their sum": dict(
            times=lambda g, x, b: g / len(x) * (x - b)
        ),
        "a gradient was left in the weights: use torch.autograd.grad": (
            lambda score, x, baseline: score(x).sum().backward() or x.sum(-1)
        ),
    },
)
def gradient_times_input(score, x, baseline, *, times=lambda g, x, b: g * (x - b)):
    return times(slope(score, x), x, baseline).sum(-1)


def _attacked(real, distances, *rest, scale=1.0):
    return *hill(real, distances, scale), real, *rest


@ladder.step(
    what="the attacked x",
    tried="padding at either end, tiny gradients, and none at all",
    cases=[
        partial(_attacked, tokens(2, 4), (1.5, 3.0), 0.5),
        partial(_attacked, tokens(3, 3), (1.5, 3.0), 2.0),
        partial(_attacked, tokens(-3, -1), (0.0, 3.0), 0.1, scale=1e-9),
    ],
    observe=left_nothing,
    mistakes={
        "this goes downhill: add the step to x": dict(direction=lambda g: -unit(g)),
        "the step is too short: padding counts in the norm": lambda losses, x, real, epsilon: (
            x + epsilon * unit(slope(losses, x)) * real[..., None]
        ),
        "the norm is that of the batch: take one for each sequence": dict(direction=lambda g: g / g.norm()),
        "a gradient of zero gives NaN: such a sequence must stay where it is": dict(
            direction=lambda g: g / g.norm(dim=(1, 2), keepdim=True)
        ),
    },
)
def fgm(losses, x, real, epsilon, *, direction=unit):
    return x + epsilon * direction(slope(losses, x) * real[..., None])


@ladder.step(
    what="the attacked x",
    tried="maxima inside and outside the ball; 7, 4 and 1 steps; no gradient; epsilon 0",
    cases=[
        partial(_attacked, tokens(3, 4), (0.2, 1.5), 0.5, 4),  # one top inside the ball, one outside
        partial(_attacked, tokens(-2, -3), (0.6, 4.5), 1.5, 7),
        partial(_attacked, tokens(2, 1), (0.0, 0.6), 0.2, 1, scale=1e-9),
        partial(_attacked, tokens(2, 3), (1.0, 2.0), 0.0, 3),
    ],
    observe=left_nothing,
    mistakes={
        "delta leaves the ball: shorten it to epsilon where it is longer": dict(project=lambda d, e: d),
        "each number is clamped to epsilon: the ball is one of the L2 norm": dict(
            project=lambda d, e: d.clamp(-e, e)
        ),
        "delta is projected at the end only: do it after every step": dict(every=False),
        "all gradients are taken at x: take them at x + delta": dict(look=0),
    },
)
def pgd(losses, x, real, epsilon, steps, *, project=shorten, every=True, look=1):
    delta = torch.zeros_like(x)
    for number in range(steps):
        at = x + look * delta
        delta = delta + fgm.reference(losses, at, real, 2.5 * epsilon / steps) - at
        delta = project(delta, epsilon) if every or number == steps - 1 else delta
    return x + delta


def _observe_size(student, divergence, target, high, rounds):
    """The size; any place in the last interval counts as its end. No more calls than are allowed."""
    asked, right = [], find_size.reference(divergence, target, high, rounds)
    got = attempt(student, lambda s: asked.append(s) or divergence(s), target, high, rounds)
    require(got is not None, "find_size returned None: is a `return` missing? Unreached is math.nan")
    require(len(asked) <= rounds + 3, "halve exactly `rounds` times, one call of `divergence` a round")
    near = isinstance(got, (int, float)) and right - high / 2**rounds - 1e-9 <= got <= right
    return right if near else got


@ladder.step(
    what="the size",
    tried="four curves, one with a jump, one that stays below the target",
    cases=[
        (lambda s: s**2, 0.09, 1.0, 30),
        (lambda s: s, 2.0, 2.0, 3),
        (lambda s: 2.0 * (s > 0.6), 1.0, 1.0, 30),
        (lambda s: 3 * s, 5.0, 1.0, 3),
    ],
    observe=_observe_size,
    mistakes={
        "even `high` does not reach the target: return nan": dict(unreached=lambda high: high),
        "the wrong half is kept: too little divergence asks for larger sizes": dict(turned=True),
        "this is the divergence: return the size": (
            lambda divergence, *rest: divergence(find_size.reference(divergence, *rest))
        ),
    },
)
def find_size(divergence, target, high, rounds=30, *, unreached=lambda high: math.nan, turned=False):
    if divergence(high) < target:
        return unreached(high)
    low = 0.0
    for _ in range(rounds):
        middle = (low + high) / 2
        low, high = (middle, high) if (divergence(middle) < target) != turned else (low, middle)
    return high


def _attacks(real):
    """Three attacks: logits and maps go away from the clean ones, each at its own pace; one is too weak."""
    logits, weights, other = torch.randn(len(real), 3).double(), _maps(real), _maps(real)
    push = torch.randn_like(logits)

    def attack(speed, reach):
        def run(s):
            asked_nan = "an attack was run at the size nan: test with math.isnan (nan == nan is False)"
            require(not math.isnan(s), asked_nan)
            return logits + speed * s * push, weights + reach * s * (other - weights)

        return run

    attacks = {"fast": attack(2.0, 0.2), "slow": attack(0.5, 0.1), "too slow": attack(0.1, 0.1)}
    target = float(symmetric_divergence(logits, logits + 0.8 * push))
    return (logits, weights), attacks, real, target, 4.0


def _observe_pairs(student, clean, attacks, *rest):
    got = call(student, clean, attacks, *rest)
    names = f"the result must be a dictionary with the names {', '.join(map(repr, attacks))}"
    require(isinstance(got, dict) and got.keys() == attacks.keys(), names)
    return {f"the pair (size, moved) of {name!r}": pair for name, pair in got.items()}


@ladder.step(
    tried="three attacks on two batches, one attack too weak",
    cases=[partial(_attacks, tokens(3, 5, 4, 2)), partial(_attacks, tokens(-1, -2, -2))],
    observe=_observe_pairs,
    mistakes={
        "every attack got the same size: find one for each": dict(size=0.4),
        "the two numbers are swapped: the size comes first": dict(order=-1),
        "padded queries are counted: take the mean of your attention_moved": dict(all_rows=True),
        "attention is measured at `high`: run the attack at the size found": dict(at=4.0),
    },
)
def equal_footing(clean, attacks, real, target, high, *, size=None, order=1, all_rows=False, at=None):
    logits, weights = clean

    def pair(attack):
        found = size or find_size.reference(
            lambda s: symmetric_divergence(logits, attack(s)[0]), target, high
        )
        if math.isnan(found):
            return math.nan, math.nan
        moved = attention_moved.reference(weights, attack(at or found)[1], real, all_rows=all_rows).mean()
        return (found, float(moved))[::order]

    return {name: pair(attack) for name, attack in attacks.items()}
