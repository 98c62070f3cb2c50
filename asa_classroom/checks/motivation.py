"""Checks of `ex01_motivation`: priors on attention, attribution, perturbations, and a fair comparison."""

import math
from functools import partial

import torch

from asa_classroom.checks.encoders import tokens
from asa_classroom.checks.harness import Ladder, call, require
from asa_mini.look.attribution import margin
from asa_mini.objective import symmetric_divergence

ladder = Ladder()
BASELINE = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
HEADS = 3  # not the size of the first batch: a missing axis must not broadcast


def random_maps(real):
    """Random attention weights (B, HEADS, L, L) in double precision; padding gets none."""
    scores = 2 * torch.randn(len(real), HEADS, real.shape[1], real.shape[1], dtype=torch.float64)
    return scores.masked_fill(~real[:, None, None], -torch.inf).softmax(-1)


@ladder.step(
    what="the mixture",
    cases=[
        lambda: (random_maps(tokens(3, 5)), tokens(3, 5), 0.3),
        lambda: (random_maps(tokens(4, 4, 4)).float(), tokens(4, 4, 4), 0.7),
        lambda: (random_maps(tokens(-1, -2)), tokens(-1, -2), 1),
    ],
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
    cases=[lambda r=r: (random_maps(r), random_maps(r), r) for r in (tokens(3, 5), tokens(-1, -2))],
    mistakes={
        "twice too large: the 1/2 is missing": dict(factor=1),
        f"{HEADS} times too large: the heads are added up, take their mean": dict(factor=HEADS / 2),
        "padded queries are counted: average over the real rows": dict(all_rows=True),
    },
)
def attention_moved(before, after, real, *, factor=0.5, all_rows=False):
    rows = factor * (before - after).abs().sum(-1).mean(1)  # (B, L)
    return (rows * (real | all_rows)).sum(1) / (real | all_rows).sum(1)


def noisy_scores(lengths, share):
    real = tokens(*lengths)
    scores = random_maps(real | True).log()
    noise = torch.rand(len(real), *scores.shape[2:], dtype=torch.float64)
    # Query 0 of sequence 0 is masked whole: all its real keys, and no padding, which might come back.
    noise[0, 0] = torch.where(real[0], 0.9 * share * noise[0, 0], share + (1 - share) * noise[0, 0])
    noise[1, 1, 0] = share  # on the edge: kept
    return scores, real, noise, share


@ladder.step(
    what="the attention",
    cases=[partial(noisy_scores, *c) for c in (((3, 5), 0.5), ((-1, -3), 0.6), ((2, 4), 1))],
    mistakes={
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


def predict_words(texts):
    """Logits (n, 3): the weights of a text's words, the later the heavier; blanks and scraps weigh, too."""
    require(not isinstance(texts, str), "predict was given one text: give it a list of texts")
    words = [[WEIGHTS.get(word, (4, -6, len(word))) for word in text.split(" ")] for text in texts]
    rows = [torch.tensor(row, dtype=torch.float64) / 10 for row in words]
    return torch.stack([(row * (1 + torch.arange(len(row))[:, None] / 5)).sum(0) for row in rows])


@ladder.step(
    what="the row of falls",
    cases=[(predict_words, text) for text in ("so good but so so long", "good long", "but")],
    mistakes={
        "the sign is wrong: the log-odds fall when a word that spoke for the class is gone": dict(sign=-1),
        "each text is scored by its own class: keep the first": dict(own_class=True),
        "a word that occurs twice is gone everywhere: leave out one place": dict(everywhere=True),
    },
)
def leave_one_out(predict, text, *, sign=1, own_class=False, everywhere=False):
    words, shorter = text.split(), []
    for place, left_out in enumerate(words):
        rest = [w for i, w in enumerate(words) if i != place and not (everywhere and w == left_out)]
        shorter.append(" ".join(rest))
    less = predict(shorter)
    whole = predict([text]).expand(len(words), -1)
    return sign * (margin(whole, whole.argmax(-1)) - margin(less, (less if own_class else whole).argmax(-1)))


def shorten(delta, epsilon):
    """Each sequence (L, E) as it is, or with the norm epsilon if it is longer."""
    norm = delta.norm(dim=(1, 2), keepdim=True)
    return delta * (norm.clamp(max=epsilon) / norm.clamp_min(1e-300))


def hill(lengths, distances, *rest, scale=1.0):
    """Losses (B, L, E) -> (B,), x with sequence i distances[i] away from its top, real, and the rest."""
    real = tokens(*lengths)
    away = torch.nn.functional.normalize(torch.randn(*real.shape, 3, dtype=torch.float64), dim=(1, 2))
    top, weight = torch.randn_like(away[:1]), (scale * (0.5 + 2 * torch.rand_like(away[:1]))).requires_grad_()

    def losses(x):
        return -(weight * (x - top) ** 2).sum((1, 2)) / 2

    losses.weight = weight
    return losses, top + torch.tensor(distances)[:, None, None] * away, real, *rest


def slope(losses, x):
    """The gradient of each sequence's number with respect to x, (B, L, E)."""
    at = x.detach().requires_grad_()
    return torch.autograd.grad(losses(at).sum(), at)[0]


def left_nothing(student, losses, x, *rest):
    """What the student returns; nothing may hang on a graph or stay behind."""
    got = call(student, losses, x, *rest)
    require(losses.weight.grad is None, "a gradient was left in the weights: use torch.autograd.grad")
    require(not getattr(got, "requires_grad", False), "the result still hangs on the graph: detach it")
    return got


@ladder.step(
    what="the attribution",
    cases=[partial(hill, (3, 3), (2, 3), BASELINE), partial(hill, (1,), (2,), BASELINE)],
    observe=lambda student, score, x, _, baseline: left_nothing(student, score, x, baseline),
    mistakes={
        "the baseline is not used: multiply by x - baseline": dict(minus=0),
        "the scores were averaged: take the gradient of their sum": dict(mean=True),
        "a gradient was left in the weights: use torch.autograd.grad": lambda f, x, _: (
            f(x).sum().backward() or x
        ),
    },
)
def gradient_times_input(score, x, baseline, *, minus=1, mean=False):
    return (slope(score, x) * (x - minus * baseline)).sum(-1) / (len(x) if mean else 1)


@ladder.step(
    what="the attacked x",
    cases=[
        partial(hill, (2, 4), (1.5, 3.0), 0.5),
        partial(hill, (-3, -1), (0.0, 3.0), 0.1, scale=1e-9),  # one gradient is zero, one tiny
    ],
    observe=left_nothing,
    mistakes={
        "this goes downhill: add the step to x": dict(up=-1),
        "the norm is that of the batch: take one for each sequence": dict(axes=(0, 1, 2)),
        "a gradient of zero gives NaN: such a sequence must stay where it is": dict(least=0),
    },
)
def fgm(losses, x, real, epsilon, *, up=1, axes=(1, 2), least=1e-300):
    g = slope(losses, x) * real[..., None]
    return x + up * epsilon * g / g.norm(dim=axes, keepdim=True).clamp_min(least)


@ladder.step(
    what="the attacked x",
    cases=[
        partial(hill, (3, 4), (0.2, 1.5), 0.5, 4),  # one top inside the ball, one outside
        partial(hill, (-2, -3), (0.6, 4.5), 1.5, 7),
        partial(hill, (2, 1), (0.0, 0.6), 0.2, 1, scale=1e-9),
        partial(hill, (2, 3), (1.0, 2.0), 0.0, 3),
    ],
    observe=left_nothing,
    mistakes={
        "delta leaves the ball: shorten it to epsilon where it is longer": dict(project=lambda d, e: d),
        "each number is clamped: the ball is one of the L2 norm": dict(project=lambda d, e: d.clamp(-e, e)),
        "all gradients are taken at x: take them at x + delta": dict(look=0),
    },
)
def pgd(losses, x, real, epsilon, steps, *, project=shorten, look=1):
    delta = torch.zeros_like(x)
    for _ in range(steps):
        at = x + look * delta
        delta = project(delta + fgm.reference(losses, at, real, 2.5 * epsilon / steps) - at, epsilon)
    return x + delta


def observe_size(student, divergence, target, high, rounds):
    """The size; any place in the last interval counts as its end."""
    right = find_size.reference(divergence, target, high, rounds)
    got = call(student, divergence, target, high, rounds)
    near = isinstance(got, (int, float)) and right - high / 2**rounds - 1e-9 <= got <= right
    return right if near else got


@ladder.step(
    what="the size",
    cases=[
        (lambda s: s**2, 0.09, 1.0, 30),
        (lambda s: 2.0 * (s > 0.6), 1.0, 1.0, 30),
        (lambda s: 3 * s, 5.0, 1.0, 3),
    ],
    observe=observe_size,
    mistakes={
        "even `high` does not reach the target: return nan": dict(unreached=lambda high: high),
        "the wrong half is kept: too little divergence asks for larger sizes": dict(turned=True),
        "this is the divergence: return the size": lambda f, *rest: f(find_size.reference(f, *rest)),
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


def three_attacks(real):
    """Logits and maps go away from the clean ones, each at its own pace; one is too weak."""
    logits, weights, other = torch.randn(len(real), 3).double(), random_maps(real), random_maps(real)
    push = torch.randn_like(logits)

    def attack(s, speed, reach):
        return logits + speed * s * push, weights + reach * s * (other - weights)

    paces = {"fast": (2.0, 0.2), "slow": (0.5, 0.1), "too slow": (0.1, 0.1)}
    attacks = {name: partial(attack, speed=speed, reach=reach) for name, (speed, reach) in paces.items()}
    target = float(symmetric_divergence(logits, logits + 0.8 * push))
    return (logits, weights), attacks, real, target, 4.0


@ladder.step(
    what=("fast", "slow", "too slow"),
    cases=[partial(three_attacks, tokens(3, 5, 4, 2)), partial(three_attacks, tokens(-1, -2, -2))],
    mistakes={
        "every attack got the same size: find one for each": dict(size=0.4),
        "padded queries are counted: take the mean of your attention_moved": dict(all_rows=True),
        "attention is measured at `high`: run the attack at the size found": dict(at=4.0),
    },
)
def equal_footing(clean, attacks, real, target, high, *, size=None, all_rows=False, at=None):
    pairs = {}
    for name, attack in attacks.items():

        def distance(s, attack=attack):
            return symmetric_divergence(clean[0], attack(s)[0])

        found, moved = size or find_size.reference(distance, target, high), math.nan
        if not math.isnan(found):
            maps = attack(at or found)[1]
            moved = float(attention_moved.reference(clean[1], maps, real, all_rows=all_rows).mean())
        pairs[name] = found, moved
    return pairs
