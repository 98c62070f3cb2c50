"""The gradient reversal layer (GRL): identity forward, minus `scale` times the gradient backward."""

import torch
from torch import Tensor


class GradientReversal(torch.autograd.Function):
    """R(x) = x,  dR/dx := -scale.  (Ganin and Lempitsky 2015; section 2 of the ASA paper's method.)

    What lies before the layer climbs the very loss that everything after it descends, so a single
    backward pass and a single optimiser train both players of a min-max game.
    """

    @staticmethod
    def forward(ctx, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * grad, None


def reverse_gradient(x: Tensor, scale: float = 1.0) -> Tensor:
    """Return `x` unchanged; its gradient is multiplied by `-scale` on the way back.

    Args:
        x: any shape, floating point.
        scale: strength of the reversal; 1.0, the authors' (modeling/utils.py:6-19, RevGrad, with alpha 1 in
            modeling/bert.py), makes the two players' step sizes equal.
    """
    return GradientReversal.apply(x, scale)
