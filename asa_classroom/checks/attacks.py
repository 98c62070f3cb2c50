"""What `ex01_motivation` needs: batches with padding, a loss to climb, and its gradient."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from asa_classroom.checks.harness import call, require


def tokens(*lengths: int) -> Tensor:
    """Boolean (B, L), True for tokens, of sequences so long; padding at the end, at the front if negative."""
    n = torch.tensor(lengths)[:, None]
    place = torch.arange(int(n.abs().max()))
    return torch.where(n > 0, place < n, place >= len(place) + n)


def hill(real: Tensor, distances: tuple[float, ...], scale: float = 1.0) -> tuple[Callable, Tensor]:
    """A loss (B, L, E) -> (B,), and embeddings of which sequence i lies distances[i] away from its top."""
    away = unit(torch.randn(*real.shape, 3, dtype=torch.float64))
    top, weight = torch.randn_like(away[:1]), (scale * (0.5 + 2 * torch.rand_like(away[:1]))).requires_grad_()

    def losses(x: Tensor) -> Tensor:
        return -(weight * (x - top) ** 2).sum((1, 2)) / 2

    losses.weight = weight
    return losses, top + torch.tensor(distances)[:, None, None] * away


def slope(losses: Callable, x: Tensor) -> Tensor:
    """The gradient of each sequence's number with respect to x, (B, L, E)."""
    at = x.detach().requires_grad_()
    return torch.autograd.grad(losses(at).sum(), at)[0]


def unit(g: Tensor) -> Tensor:
    """Each sequence (L, E) divided by its norm; zeros stay zeros."""
    return g / g.norm(dim=(1, 2), keepdim=True).clamp_min(1e-300)


def shorten(delta: Tensor, epsilon: float) -> Tensor:
    """Each sequence (L, E) as it is, or with the norm epsilon if it is longer."""
    return unit(delta) * delta.norm(dim=(1, 2), keepdim=True).clamp(max=epsilon)


def left_nothing(student: Callable, losses: Callable, x: Tensor, *rest: Any) -> Any:
    """What the student returns; nothing may hang on a graph or stay behind."""
    got = call(student, losses, x, *rest)
    require(losses.weight.grad is None, "a gradient was left in the weights: use torch.autograd.grad")
    require(not getattr(got, "requires_grad", False), "the result still hangs on the graph: detach it")
    return got
