"""Checks of `ex02_gradient_reversal`: two players, one backward pass."""

import functools

import numpy as np
import torch

from asa_classroom.checks.compare import hinted
from asa_classroom.checks.harness import Ladder, attempt, call, require, same

ladder = Ladder("ex02_gradient_reversal")
SHAPES = ((3,), (2, 3), (), (2, 0, 4))  # a vector, a matrix, one number, nothing at all


def _numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def _pair(got):
    """A pair may come as an array or a tensor, too."""
    return got.tolist() if isinstance(got, (np.ndarray, torch.Tensor)) else got


@ladder.step
def slopes(student):
    for theta, eta, c in ((1.5, 0.8, 0.4), (-2.0, 3.0, 0.7), (1.0, -1.0, 0.0)):
        down, up = eta + c * theta, theta - c * eta
        known = {
            "the two slopes are in the wrong order: the model's, by theta, comes first": (up, down),
            "the second slope has the wrong sign: return df/deta itself": (down, -up),
            "the second slope lost a minus: eta's own term in f is -c/2 eta^2": (down, theta + c * eta),
            "the 1/2 is still there: the derivative of c/2 x^2 is c x": (
                eta + c / 2 * theta,
                theta - c / 2 * eta,
            ),
            "the product theta*eta is missing: its slopes are eta and theta": (c * theta, -c * eta),
        }
        got = _pair(call(student, theta, eta, c))
        same(got, (down, up), "the pair of slopes", f"{theta=}, {eta=}, {c=}", known)
    return "three points, one of them without curvature"


@ladder.step
def simultaneous_step(student):
    for theta, eta, lr, c in ((1.5, 0.8, 0.2, 0.4), (-1.0, 2.0, 0.5, 0.0), (0.0, 0.0, 0.1, 1.0)):
        down, up = eta + c * theta, theta - c * eta
        moved = theta - lr * down
        known = {
            "both players walk downhill: the adversary must climb": (moved, eta - lr * up),
            "the players go the wrong way: the model descends, the adversary climbs": (
                theta + lr * down,
                eta - lr * up,
            ),
            "both players climb: the model must descend": (theta + lr * down, eta + lr * up),
            "the adversary saw the model's new place: compute both slopes first": (
                moved,
                eta + lr * (moved - c * eta),
            ),
            "the learning rate is not used": (theta - down, eta + up),
        }
        got = _pair(call(student, theta, eta, lr, c))
        same(got, (moved, eta + lr * up), "the pair of new places", f"{theta=}, {eta=}, {lr=}, {c=}", known)
    return "three points, the saddle itself among them"


@ladder.step
def Reversal(student):
    require(
        isinstance(student, type) and issubclass(student, torch.autograd.Function),
        "Reversal must be a class that inherits from torch.autograd.Function",
    )
    unused = "the arriving gradient is not used: multiply by it"
    two = "backward must return two values: the gradient of x, and None for scale"
    hints = {"incorrect number of gradients": two, "gradient different than None": two}  # errors of torch
    hints["expected Variable or None"] = unused
    for scale in (0.3, 1.0, 0.0):  # 0.3 first: there no two mistakes look alike
        for shape in SHAPES:
            x, case = _numbers(*shape), f"x of shape {shape}, scale {scale}"
            y = call(student.apply, x, scale)
            known = {
                "forward changed the numbers: it must return x as it is": -scale * x,
                "forward changed the sign: only backward negates": -x,
            }
            same(y, x, "forward", case, known)
            require(y.requires_grad, "the result has no gradient: return x itself, not x.detach()")
            weight = torch.randn(shape, dtype=torch.float64)
            hinted(hints, attempt, (y * weight).sum().backward)
            require(x.grad is not None, "no gradient arrives at x: backward must return it first")
            known = {
                "the gradient has the right size but the wrong sign: did you negate it in backward?": scale
                * weight,
                "the gradient is negated but not scaled: keep `scale` in ctx": -weight,
                "the gradient passes unchanged: multiply it by -scale in backward": weight,
                unused: -scale * torch.ones_like(x),
            }
            same(x.grad, -scale * weight, "the gradient of x", case, known)
            x.grad, in_place = None, "backward changed the arriving gradient in place: return a new tensor"
            attempt(((student.apply(x, scale) + x) * weight).sum().backward)
            known = {in_place: -2 * scale * weight}
            same(x.grad, (1 - scale) * weight, "the gradient of x", f"R(x) + x, {case}", known)
    return "four shapes, an empty one among them; scales 0.3, 1, 0"


@ladder.step
def reverse_by_detach(student):
    for scale in (2.5, 1.0, 0.0):
        for shape in SHAPES:
            x, case = _numbers(*shape), f"x of shape {shape}, scale {scale}"
            y = call(student, x, scale)
            require(isinstance(y, torch.Tensor), f"the result must be a tensor, not a {type(y).__name__}")
            require(y.shape == x.shape, f"x has the shape {shape}, the result {tuple(y.shape)}")
            require(y.requires_grad, "the result has no gradient: one part must stay attached to x")
            weight = torch.randn(shape, dtype=torch.float64)
            attempt((y * weight).sum().backward)
            known = {
                "the gradient has the wrong sign: the attached part must be -scale * x": scale * weight,
                "the wrong part is detached: the gradient must come from -scale * x": (1 + scale) * weight,
                "the gradient is negated but not scaled: the attached part must be -scale * x": -weight,
                "the gradient passes unchanged: the attached part must be -scale * x": weight,
                "x is still attached: nothing but -scale * x may be": (1 - scale) * weight,
            }
            same(x.grad, -scale * weight, "the gradient of x", case, known)
            known = {  # the gradient is right by now
                "the value is that of -scale * x: add what is missing to x again, detached": -scale * x,
                "gradient right, value not: what must the detached part add to -scale * x?": (1 - scale) * x,
                "the detached part has the right size but the wrong sign": -(1 + 2 * scale) * x,
                "the two parts cancel: the value must be x": 0 * x,
                "right for scale 1 only: what must the detached part be for any `scale`?": (2 - scale) * x,
            }
            same(y, x, "the value", case, known)
    return "four shapes, an empty one among them; scales 2.5, 1, 0"


@ladder.step
def players_loss(student):
    def f(theta, eta):
        return theta * eta + 0.3 * theta**2 - 0.1 * eta**2

    for a, b, scale in ((1.5, 0.8, 1.0), (-2.0, 0.5, 0.25), (0.0, 1.0, 1.0)):
        theta, eta = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (a, b))
        case = f"theta={a}, eta={b}, {scale=}"

        @functools.wraps(student)
        def watched(f, theta, eta, scale):
            loss = student(f, theta, eta, scale)
            ran = theta.grad is not None or eta.grad is not None
            require(not ran, "players_loss has already run backward(): return the loss, the caller runs it")
            return loss

        loss = call(watched, f, theta, eta, scale)
        known = {"the loss itself is negated: leave it alone": -f(theta, eta)}
        same(loss, f(theta, eta), "the loss", case, known)
        attempt(loss.backward)
        require(
            theta.grad is not None and eta.grad is not None,
            "a player gets no gradient: f needs both, attached",
        )
        down, up = b + 0.6 * a, a - 0.2 * b
        number = torch.tensor
        known = {
            "nobody is reversed: put eta through reverse_gradient before f sees it": number([down, up]),
            "the wrong player is reversed: the adversary is eta": number([-scale * down, up]),
            "both players are reversed: only eta goes through the layer": number(
                [-scale * down, -scale * up]
            ),
            "the scale does not reach the layer: pass it on to reverse_gradient": number([down, -up]),
        }
        got = torch.stack([theta.grad, eta.grad])
        same(got, number([down, -scale * up], dtype=torch.float64), "(theta's gradient, eta's)", case, known)
    return "three points, two scales"


@ladder.step
def largest_rate(student):
    for c in (0.4, 3.0, 1.0, 0.0):
        right = 2 * c / (1 + c**2)
        known = {
            "the rotation is missing: the modulus has lr^2, too": 2 / c if c else right,
            "the square of 1 - lr c has a third term: lr^2 c^2": 2 * c,
            "this rate closes in fastest: the limit is where the modulus is 1": c / (1 + c**2),
            "the fraction is upside down: without curvature the limit must be 0": (
                (1 + c**2) / (2 * c) if c else right
            ),
            "the square of lr c is lr^2 c^2: c is squared, too": 2 * c / (1 + c),
        }
        same(call(student, c), right, "the largest rate", f"{c=}", known)
    return "four curvatures, c = 0 among them"


@ladder.step
def play(student):
    def game(theta, eta):
        return theta * eta + 0.2 * theta**2 - 0.2 * eta**2

    def walk(start, steps, theta_row, eta_row):
        move = np.eye(2) + np.array([theta_row, eta_row])
        return np.stack([np.linalg.matrix_power(move, t) @ np.array(start) for t in range(steps + 1)])

    down = np.array([-0.4 * 0.3, -0.3])  # theta's move from (theta, eta): -lr * (slope by theta)
    for start, steps, scale in (((1.5, 0.8), 5, 0.5), ((-1.0, 0.0), 1, 1.0), ((2.0, 1.0), 0, 1.0)):
        up = scale * np.array([0.3, -0.4 * 0.3])
        expected = walk(start, steps, down, up)
        piled, place, total = [np.array(start)], np.array(start), np.zeros(2)
        for _ in range(steps):
            total = total + np.array([down, up]) @ place
            place = place + total
            piled.append(place)
        known = {
            "the reversal is forgotten: both players walk downhill": walk(start, steps, down, -up / scale),
            "`scale` is not used: pass it on to players_loss": walk(start, steps, down, up / scale),
            "the adversary saw the model's new place: one backward pass serves both": walk(
                start, steps, down, up + up[0] * down
            ),
            "gradients of earlier steps pile up: call optimizer.zero_grad() in every step": np.stack(piled),
            "the start is missing: the walk has steps + 1 places": expected[1:],
            "the last place is missing: the walk has steps + 1 places": expected[:-1],
            "nobody moves: is step() missing, or zero_grad() between backward() and step()?": (
                np.stack([start] * (steps + 1))
            ),
            "eta never moves: the optimiser must own both": walk(start, steps, down, 0 * up),
            "`lr` is not used: SGD([theta, eta], lr=lr)": (  # SGD's own is 1e-3
                walk(start, steps, down / 0.3 * 1e-3, up / 0.3 * 1e-3)
            ),
            "store the place after the step: the start is there twice": np.stack([start, *expected[:-1]]),
            "the walk ends after one step: is the `return` inside the loop?": expected[:2],
            "all places are the last one: store numbers, .item()": np.stack([expected[-1]] * (steps + 1)),
        }
        arguments = (game, start, 0.3, steps) if scale == 1 else (game, start, 0.3, steps, scale)
        got = call(student, *arguments)
        case = f"start {start}, lr 0.3, {steps} steps, scale {scale}"
        require(isinstance(got, np.ndarray), f"the walk must be a NumPy array, not a {type(got).__name__}")
        same(torch.as_tensor(got), torch.as_tensor(expected), "the walk", case, known)
        precise = np.allclose(got, expected, rtol=0, atol=1e-9)
        require(precise, f"the walk has only float32 digits: dtype=torch.float64\n  case  {case}")
    return "walks of 5, 1 and 0 steps, two scales"
