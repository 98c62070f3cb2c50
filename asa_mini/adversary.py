"""The adversary: one small head per attention layer that chooses which attention units to switch off."""

import math

import torch
from torch import Tensor, nn

from asa_mini.gradient_reversal import reverse_gradient


class Adversary(nn.Module):
    """Projects a layer's own input to the adversary's queries and keys.

        Qa = x Wq + bq,   Ka = x Wk + bk

    One head, shared by all attention heads of the layer. It sees x detached ("feature sharing" in the
    paper): what the adversary learns reaches the encoder through the mask alone.

    Args:
        hidden_size: E, the width of the layer's input.
        initializer_range: standard deviation of the initial weights; biases start at zero, as in BERT.
    """

    def __init__(self, hidden_size: int, initializer_range: float = 0.02):
        super().__init__()
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        for linear in (self.query, self.key):
            nn.init.normal_(linear.weight, std=initializer_range)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, L, E) -> Qa (B, L, E), Ka (B, L, E)."""
        x = x.detach()
        return self.query(x), self.key(x)


class HardStep(torch.autograd.Function):
    """step(s) = 1 where s > 0, else 0; backward as if it were the sigmoid: dstep/ds := sigmoid'(s).

    The step's own derivative is zero almost everywhere, so without this straight-through rule the
    adversary would never learn. The sigmoid's derivative is what the reference's gradients show
    (gingasan/adversarialSA at 049af10): it adds Gumbel noise and subtracts it again, so its "Gumbel
    sigmoid" is deterministic, and its 1e-12 temperature has nothing to do with the paper's.
    """

    @staticmethod
    def forward(ctx, s: Tensor) -> Tensor:
        ctx.save_for_backward(s)
        return (s > 0).to(s.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (s,) = ctx.saved_tensors
        sigmoid = torch.sigmoid(s)
        return grad * sigmoid * (1 - sigmoid)


def keep_mask(adversary_q: Tensor, adversary_k: Tensor, gradient_reversal_scale: float = 1.0) -> Tensor:
    """The adversary's binary structure mu(x; eta): 1 keeps attention unit (i, j), 0 switches it off.

        s = Qa Ka^T / sqrt(E),   mask = R(step(s))          R: gradient reversal

    Args:
        adversary_q, adversary_k: (B, L, E).
        gradient_reversal_scale: strength of R, see `reverse_gradient`.

    Returns:
        (B, L, L) of zeros and ones in the dtype of s, with the straight-through, reversed gradient.
    """
    s = adversary_q @ adversary_k.mT / math.sqrt(adversary_q.shape[-1])  # (B, L, E) x (B, E, L) -> (B, L, L)
    return reverse_gradient(HardStep.apply(s), gradient_reversal_scale)
