"""Checks of `ex02_gradient_reversal`: two players, one backward pass."""

from functools import partial

import numpy as np
import torch

from asa_classroom.checks.harness import Ladder, function_class
from asa_mini.gradient_reversal import reverse_gradient

ladder = Ladder()
DOUBLE = torch.float64
SHAPES = [((3,), 0.3), ((2, 3), 1.0), ((), 0.0), ((2, 0, 4), 0.3)]  # and the scale
CASES = [lambda s=s: (torch.randn(s[0], dtype=DOUBLE, requires_grad=True), s[1]) for s in SHAPES]


@ladder.step(
    what="the pair of slopes",
    cases=[(1.5, 0.8, 0.4), (-2.0, 3.0, 0.7), (1.0, -1.0, 0.0)],
    mistakes={
        "the two slopes are in the wrong order: the model's, by theta, comes first": dict(order=-1),
        "the second slope has the wrong sign: return df/deta itself": dict(sign=-1),
        "the 1/2 is still there: the derivative of c/2 x^2 is c x": dict(half=0.5),
    },
)
def slopes(theta, eta, c, *, order=1, sign=1, half=1):
    return (eta + half * c * theta, sign * (theta - half * c * eta))[::order]


@ladder.step(
    what="the pair of new places",
    cases=[(1.5, 0.8, 0.2, 0.4), (-1.0, 2.0, 0.5, 0.0), (0.0, 0.0, 0.1, 1.0)],
    mistakes={
        "both players walk downhill: the adversary must climb": dict(up=-1),
        "the players go the wrong way: the model descends, the adversary climbs": dict(up=-1, down=-1),
        "the adversary saw the model's new place: compute both slopes first": dict(late=True),
    },
)
def simultaneous_step(theta, eta, lr, c, *, down=1, up=1, late=False):
    moved = theta - down * lr * (eta + c * theta)
    return moved, eta + up * lr * ((moved if late else theta) - c * eta)


def reversal(factor=lambda scale: -scale, outputs=2):
    def backward(gradient, x, scale):
        return (factor(scale) * gradient, None)[:outputs]

    return function_class("Reversal", lambda x, scale: x.view_as(x), backward)


Reversal = ladder.step(
    what="the value",
    cases=CASES,
    mistakes={
        "the gradient has the wrong sign: did you negate it in backward?": reversal(lambda scale: scale),
        "the gradient is negated but not scaled: keep `scale` in ctx": reversal(lambda scale: -1),
        "backward must return two values: the gradient of x, and None for scale": reversal(outputs=1),
    },
)(reversal())


@ladder.step(
    what="the value",
    cases=CASES,
    mistakes={
        "the value is that of -scale * x: add what is missing to x again, detached": lambda x, s: -s * x,
        "right for scale 1 only: what must the detached part be?": lambda x, s: 2 * x.detach() - s * x,
        "the gradient passes unchanged: the attached part must be -scale * x": lambda x, s: 1 * x,
    },
)
def reverse_by_detach(x, scale):
    return (1 + scale) * x.detach() - scale * x


def players(theta, eta, scale):
    places = [torch.tensor(x, dtype=DOUBLE, requires_grad=True) for x in (theta, eta)]
    return lambda theta, eta: theta * eta + 0.3 * theta**2 - 0.1 * eta**2, *places, scale


@ladder.step(
    what="the loss",
    cases=[partial(players, *c) for c in ((1.5, 0.8, 0.25), (-2.0, 0.5, 1.0), (0.0, 1.0, 1.0))],
    mistakes={
        "nobody is reversed: eta goes through reverse_gradient before f sees it": lambda f, t, e, s: f(t, e),
        "the wrong player is reversed: the adversary is eta": lambda f, t, e, s: f(reverse_gradient(t, s), e),
        "the scale does not reach reverse_gradient": lambda f, t, e, s: f(t, reverse_gradient(e)),
    },
)
def players_loss(f, theta, eta, scale):
    return f(theta, reverse_gradient(eta, scale))


@ladder.step(
    what="the largest rate",
    cases=[(0.4,), (3.0,), (0.0,)],
    mistakes={
        "without curvature the limit is 0: do not divide by c": lambda c: 2 / (c + 1 / c),
        "the rotation is missing: the modulus has lr^2, too": lambda c: 2 / c,
        "the square of 1 - lr c has a third term: lr^2 c^2": lambda c: 2 * c,
        "this rate closes in fastest: the limit is where the modulus is 1": lambda c: c / (1 + c**2),
    },
)
def largest_rate(c):
    return 2 * c / (1 + c**2)


def game(theta, eta):
    return theta * eta + 0.2 * theta**2 - 0.2 * eta**2


@ladder.step(
    what="the walk",
    cases=[(game, (1.5, 0.8), 0.3, 5, 0.5), (game, (2.0, 1.0), 0.3, 1), (game, (2.0, 1.0), 0.3, 0)],
    tolerance=1e-9,
    mistakes={
        "the reversal is forgotten: both players walk downhill": dict(layer=lambda eta, scale: eta),
        "gradients of earlier steps pile up: call optimizer.zero_grad() in every step": dict(clear=1),
        "the walk has only float32 digits: dtype=torch.float64": dict(dtype=torch.float32),
    },
)
def play(game, start, lr, steps, scale=1.0, *, layer=reverse_gradient, clear=99, dtype=DOUBLE):
    theta, eta = (torch.tensor(x, dtype=dtype, requires_grad=True) for x in start)
    optimizer = torch.optim.SGD([theta, eta], lr=lr)
    walk = [(theta.item(), eta.item())]
    for number in range(steps):
        if number < clear:
            optimizer.zero_grad()
        game(theta, layer(eta, scale)).backward()
        optimizer.step()
        walk.append((theta.item(), eta.item()))
    return np.array(walk)
