"""Checks of `ex01_motivation` that need the gradient of embeddings: one attribution, two attacks."""

from collections.abc import Callable, Container

import torch
from torch import Tensor

from asa_classroom.checks.old_harness import call, require, same

NOWHERE = "a gradient of zero gives NaN: such a sequence must stay where it is"
TINY = "a small gradient gives a short step: add nothing to the norm, or lower its floor"


def real_tokens(*lengths: int) -> Tensor:
    """Boolean (B, L), True for tokens: sequences of these lengths, padded at the end."""
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def lengths_of(real: Tensor) -> str:
    """What `real` (B, L) says, in words."""
    return f"{' and '.join(str(n) for n in real.sum(1).tolist())} tokens in rows of {real.shape[1]}"


class _Hill(torch.nn.Module):
    """One number for each sequence (B, L, E): -sum weight (x - top)^2 / 2; and its slope."""

    def __init__(self, top: Tensor, scale: float):
        super().__init__()
        self.top, self.weight = top, torch.nn.Parameter(scale * (0.5 + 2 * torch.rand_like(top)))

    def forward(self, x: Tensor) -> Tensor:
        return -(self.weight * (x - self.top) ** 2).sum((1, 2)) / 2

    def slope(self, x: Tensor) -> Tensor:
        return self.weight.detach() * (self.top - x)


def _hill(real: Tensor, *distances: float, scale: float = 1.0) -> tuple[Tensor, _Hill]:
    """Embeddings (B, L, 3) and a hill; sequence i lies distances[i] away from its top."""
    away = _unit(torch.randn(*real.shape, 3, dtype=torch.float64))
    hill = _Hill(torch.randn_like(away[:1]), scale)
    return hill.top + torch.tensor(distances)[:, None, None] * away, hill


def _norm(x: Tensor, dim=(-2, -1)) -> Tensor:
    return x.norm(dim=dim, keepdim=True)


def _unit(x: Tensor, dim=(-2, -1)) -> Tensor:
    return x / _norm(x, dim).clamp_min(1e-300)


def _left_nothing(got: Tensor, x: Tensor, module: torch.nn.Module) -> None:
    require(not x.requires_grad, "x itself now requires a gradient: work on x.detach()")
    require(module.weight.grad is None, "a gradient was left in the weights: use torch.autograd.grad")
    require(not got.requires_grad, "the result still hangs on the graph: detach it")


def gradient_times_input(student):
    for real in (real_tokens(3, 3), real_tokens(5), real_tokens(1, 1, 1)):
        x, score = _hill(real, *range(2, 2 + len(real)))
        for baseline in (torch.randn(3, dtype=torch.float64), x[0, 0].clone()):
            slope = score.slope(x)
            right, late = (slope * (x - baseline)).sum(-1), (slope * x - baseline).sum(-1)
            known = {
                "the baseline is not used: multiply by x - baseline": (slope * x).sum(-1),
                "the sign is wrong: multiply by x - baseline": -right,
                "the baseline is subtracted after the product: bracket (x - baseline)": late,
                "the numbers lost their sign, which tells for from against": right.abs(),
                "the scores were averaged: take the gradient of their sum": right / len(real),
                "the sum runs over tokens: add up over E, the last axis": (slope * (x - baseline)).sum(1),
            }
            got = call(student, score, x, baseline)
            same(got, right, "the attribution", f"x of shape {tuple(x.shape)}", known)
            _left_nothing(got, x, score)
    return "three shapes, and a token that is the baseline itself"


def _cut_short(got: object, x: Tensor, right: Tensor) -> Tensor | None:
    """x plus the right steps, as long as those of `got` where these are shorter."""
    if not isinstance(got, Tensor) or got.shape != x.shape:
        return None
    share = _norm(got.detach() - x) / _norm(right - x).clamp_min(1e-300)
    return x + (right - x) * share.nan_to_num(0).clamp(max=1)


def _same_attack(got, right, x, losses, known, case, tiny: bool) -> None:
    """Compare attacked embeddings; with tiny gradients only two mistakes can be told apart."""
    if tiny:
        known = {NOWHERE: known[NOWHERE], TINY: _cut_short(got, x, right)}
    same(got, right, "the attacked x", case, known)
    _left_nothing(got, x, losses)


def fgm(student):
    cases = (real_tokens(2, 4), 0.5, 1), (real_tokens(3, 3), 2.0, 1), (real_tokens(3, 1).flip(1), 0.1, 1e-9)
    for real, size, scale in cases:
        x, losses = _hill(real, 0.0 if scale < 1 else 1.5, 3.0, scale=scale)
        slope = losses.slope(x)
        kept = slope * real[..., None]
        right = x + size * _unit(kept)
        known = {
            "this goes downhill: add the step to x": 2 * x - right,
            "this is the step alone: return x plus the step": right - x,
            "padding was moved: set its gradient to 0 before you take the norm": x + size * _unit(slope),
            "the step is too short: padding counts in the norm": x + size * _unit(slope) * real[..., None],
            "each token moves by epsilon: the norm is that of a sequence": x + size * _unit(kept, -1),
            "the norm is that of the batch: take one for each sequence": x + size * kept / kept.norm(),
            "this is the sign of the gradient: divide by its norm instead": x + size * kept.sign(),
            "the gradient is not divided by its norm": x + size * kept,
            "the step has length 1: epsilon is not used": x + _unit(kept),
            NOWHERE: right.index_fill(0, torch.tensor([0]), torch.nan),
        }
        got = call(student, losses, x, real, size)
        case = f"{lengths_of(real)}, epsilon {size}, gradients times {scale}"
        _same_attack(got, right, x, losses, known, case, tiny=scale < 1)
    return "padding at either end, tiny gradients, and none at all"


def _into_ball(delta: Tensor, epsilon: float) -> Tensor:
    return _unit(delta) * _norm(delta).clamp(max=epsilon)


def _climb(
    hill: _Hill,
    x: Tensor,
    real: Tensor,
    epsilon: float,
    steps: int,
    stride: float = 2.5,
    look: int = 1,
    direction: Callable[[Tensor], Tensor] = _unit,
    project: Callable[[Tensor, float], Tensor] = _into_ball,
    after: Container[int] = range(99),
    early: bool = False,
    carry: int = 1,
) -> Tensor:
    """x + delta after PGD, or after a mistaken one.

    Args:
        stride: times epsilon / steps is a step's length.
        look: 1 takes gradients at x + delta, 0 at x.
        direction: what is made of the gradient.
        project: takes delta and epsilon.
        after: the numbers of the steps after which delta is projected.
        early: project between gradient and step as well.
        carry: how often the old delta is in the new one.
    """
    delta = torch.zeros_like(x)
    for number in range(steps):
        gradient = hill.slope(x + look * delta) * real[..., None]
        delta = project(delta, epsilon) if early else delta
        delta = carry * delta + stride * epsilon / steps * direction(gradient)
        if number in after:
            delta = project(delta, epsilon)
    return x + delta


def pgd(student):
    cases = (
        (real_tokens(3, 4), 0.5, 4, (0.2, 1.5), 1),  # one top inside the ball, one outside
        (real_tokens(2, 3).flip(1), 1.5, 7, (0.6, 4.5), 1),
        (real_tokens(2, 1), 0.2, 1, (0.0, 0.6), 1e-9),
        (real_tokens(2, 3), 0.0, 3, (1.0, 2.0), 1),
    )
    for real, size, steps, distances, scale in cases:
        x, losses = _hill(real, *distances, scale=scale)
        todo, every = (losses, x, real, size, steps), torch.ones_like(real)
        right = _climb(*todo)
        cube = _climb(*todo, project=lambda d, e: d.clamp(-e, e))
        known = {
            "delta leaves the ball: shorten it to epsilon where it is longer": _climb(*todo, after=()),
            "delta is stretched, too: only shorten it": _climb(*todo, project=lambda d, e: _unit(d) * e),
            "each number is clamped to epsilon: the ball is one of the L2 norm": cube,
            "delta is projected at the end only: do it after every step": _climb(*todo, after=(steps - 1,)),
            "the last step is not projected: step first, then project": _climb(*todo, after=range(steps - 1)),
            "the projection comes too early: step first, then project": _climb(*todo, after=(), early=True),
            "delta is added twice: fgm(losses, x + delta, ...) - x holds it already": _climb(*todo, carry=2),
            "all gradients are taken at x: take them at x + delta": _climb(*todo, look=0),
            "the gradient is not divided by its norm": _climb(*todo, direction=lambda g: g),
            "this is the sign of the gradient: divide by its norm instead": _climb(
                *todo, direction=torch.sign
            ),
            "every step has length epsilon: take 2.5 epsilon / steps": _climb(*todo, stride=steps),
            "the steps are too long: divide 2.5 epsilon by steps": _climb(*todo, stride=2.5 * steps),
            "the steps are too short: the factor 2.5 is missing": _climb(*todo, stride=1),
            "padding was moved: set its gradient to 0": _climb(losses, x, every, size, steps),
            "this goes downhill: add the steps": _climb(*todo, stride=-2.5),
            "this is delta alone: return x + delta": right - x,
            NOWHERE: right.index_fill(0, torch.tensor([0]), torch.nan),
            "epsilon 0 gives NaN: 0 / 0 in the projection": right * torch.nan,
        }
        got = call(student, *todo)
        case = f"{lengths_of(real)}, epsilon {size}, {steps} steps, gradients times {scale}"
        _same_attack(got, right, x, losses, known, case, tiny=scale < 1)
    return "maxima inside and outside the ball; 7, 4 and 1 steps; no gradient; epsilon 0"
