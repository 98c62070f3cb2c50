"""The adversary: one small head per attention layer that chooses which attention units to switch off."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asa_mini.gradient_reversal import reverse_gradient

# The authors' bias of a masked unit (modeling/bert.py, AsaBert.Encoder.forward: (1 - mask) * -10000);
# exp(-10000) is exactly 0 in every float format. It is also the factor of the mask's gradient.
MASKED_SCORE = -10000.0


class Adversary(nn.Module):
    """Projects a layer's own input to the adversary's queries and keys::

        Qa = x Wq + bq,   Ka = x Wk + bk

    One head, shared by all attention heads of the layer. It sees x detached ("feature sharing" in the
    paper; hidden_states.detach() in modeling/bert.py, AsaBert.Encoder.forward): what the adversary learns
    reaches the encoder through the mask alone.

    The weights stay in float32 whatever the model is converted to: a step of 2e-5 is less than the distance
    of most bfloat16 numbers, which would stand still. The products have the precision of x, or autocast's.

    Args:
        hidden_size: E, the width of the layer's input.
        initializer_range: standard deviation of the initial weights (BERT's by default); biases start at 0.
            The authors' init_weights does the same.
    """

    def __init__(self, hidden_size: int, initializer_range: float = 0.02):
        super().__init__()
        self.query = nn.Linear(hidden_size, hidden_size, dtype=torch.float32)
        self.key = nn.Linear(hidden_size, hidden_size, dtype=torch.float32)
        for linear in (self.query, self.key):
            nn.init.normal_(linear.weight, std=initializer_range)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, L, E) -> Qa (B, L, E), Ka (B, L, E), in the dtype of x or of autocast."""
        x = x.detach()
        maps = (self.query, self.key)
        return tuple(F.linear(x, linear.weight.to(x.dtype), linear.bias.to(x.dtype)) for linear in maps)

    def _apply(self, fn, recurse=True):  # behind .to(), .half(), .cuda(), of this module and of any around it
        def keep_precision(x: Tensor) -> Tensor:
            moved = fn(x)
            return moved if moved.dtype.itemsize >= 4 else x.to(moved.device)

        return super()._apply(keep_precision, recurse)


class HardStep(torch.autograd.Function):
    """step(s) = 1 where s > 0, else 0; backward as if it were the sigmoid: dstep/ds := sigmoid'(s).

    The step's own derivative is zero almost everywhere, so without this straight-through rule the adversary
    would never learn. The authors' "Gumbel sigmoid" (modeling/utils.py:25-35) comes to the same: line 32
    adds the noise and subtracts it again, line 34 lets the sigmoid's derivative through, and its tau, 1e-12,
    has nothing to do with the paper's temperature.
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
    """The adversary's binary structure mu(x; eta): 1 keeps attention unit (i, j), 0 switches it off::

        s = Qa Ka^T / sqrt(E),   mask = R(step(s))          R: gradient reversal

    As in modeling/bert.py, AsaBert.Adversary. What may not be seen anyway (padding, the future) is no
    matter of this mask: `asa_attention` knows of it.

    Args:
        adversary_q, adversary_k: (B, L, E).
        gradient_reversal_scale: of R, see `reverse_gradient`.

    Returns:
        (B, L, L) of zeros and ones in the dtype of s, with the straight-through, reversed gradient.
    """
    s = adversary_q @ adversary_k.mT / math.sqrt(adversary_q.shape[-1])  # (B, L, E) x (B, E, L) -> (B, L, L)
    return reverse_gradient(HardStep.apply(s), gradient_reversal_scale)
