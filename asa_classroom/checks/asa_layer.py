"""Checks of `ex03_asa_layer`: from a straight-through threshold to the whole ASA attention layer.

Gradients are compared in float64, where rounding is so small that a forgotten detach stands out.
"""

import torch
from torch import nn

from asa_classroom.checks.compare import equal, require, same
from asa_classroom.checks.encoders import tokens
from asa_classroom.checks.harness import Ladder, call, function_class, gradients
from asa_mini import asa_attention
from asa_mini.adversary import MASKED_SCORE, HardStep
from asa_mini.gradient_reversal import reverse_gradient

ladder = Ladder()
DOUBLE, SINGLE = torch.float64, torch.float32


def leaves(*shapes, dtype=DOUBLE):
    """Random tensors that require gradients."""
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def qkv(*shape):
    return leaves(shape, shape, shape)


def padding(*lengths):
    return tokens(*lengths)[:, None, None]  # (B, 1, 1, L)


def holes(B, L):
    """A random `allowed` (B, 1, L, L); the third query of the first sentence may see no key."""
    allowed = (torch.rand(B, 1, L, L) < 0.6) | torch.eye(L, dtype=torch.bool)
    allowed[0, 0, 2] = False
    return allowed


@ladder.step(
    what="the output",
    cases=[lambda: (*qkv(2, 3, 4, 5), *leaves((2, 1, 4, 4))), lambda: (*qkv(1, 1, 1, 3), 0.0)],
    mistakes={
        "the scores are not divided by sqrt(D)": dict(power=0),
        "the softmax runs over the queries, not the keys: use -1": dict(axis=-2),
        "mu is added after the softmax: add it to the scores": dict(late=True),
    },
)
def general_attention(q, k, v, mu, *, power=0.5, axis=-1, late=False):
    scores = q @ k.mT / q.shape[-1] ** power
    return (scores.softmax(axis) + mu if late else (scores + mu).softmax(axis)) @ v


@ladder.step(
    what="the output",
    cases=[
        lambda: (*qkv(2, 2, 4, 3), *leaves((2, 1, 4, 4)), padding(4, 2)),
        lambda: (*qkv(2, 2, 4, 3), MASKED_SCORE * padding(4, 2).to(DOUBLE), padding(4, 2)),
        lambda: (*qkv(2, 2, 4, 3), *leaves((2, 1, 4, 4)), holes(2, 4)),
        lambda: (*qkv(2, 2, 1, 3), *leaves((2, 1, 1, 1)), padding(1, 0)),
    ],
    mistakes={
        "`allowed` is used the wrong way round: True may be seen": dict(turned=True),
        "padding is attended to where mu is as low: -10000 is not enough": dict(low=MASKED_SCORE),
        "a row without keys must give zeros, not the mean of v": dict(empty=True),
    },
)
def padded_attention(q, k, v, mu, allowed, *, turned=False, low=-9e99, empty=False):
    allowed = ~allowed if turned else allowed
    scores = q @ k.mT / q.shape[-1] ** 0.5 + mu + torch.zeros_like(mu).masked_fill(~allowed, low)
    return scores.softmax(-1) @ v * (allowed.any(-1, keepdim=True) | empty)


@ladder.step(
    what="the score matrix",
    cases=[lambda: leaves((2, 4, 6), (6, 6), (6, 6)), lambda: leaves((2, 0, 3), (3, 3), (3, 3))],
    mistakes={
        "a gradient reaches x: it must be detached": dict(detach=torch.clone),
        "rows and columns are swapped: rows are queries, x wq": dict(swap=True),
        "a weight is transposed: here it is x @ wq and x @ wk": dict(weight=torch.t),
    },
)
def adversary_scores(x, wq, wk, *, detach=torch.detach, swap=False, weight=torch.clone):
    x = detach(x)
    scores = (x @ weight(wq)) @ (x @ weight(wk)).mT / x.shape[-1] ** 0.5
    return scores.mT if swap else scores


STEPS = [
    lambda: (torch.tensor([-1000.0, -2.0, -0.5, 0.0, 0.5, 2.0, 1000.0], dtype=DOUBLE, requires_grad=True),),
    lambda: leaves((2, 20, 20), dtype=SINGLE),
    lambda: leaves((2, 0, 3)),
]


def straight_through(above=torch.gt, back=lambda g, s: g * s.sigmoid() * (1 - s.sigmoid())):
    return function_class("StraightThrough", lambda s: above(s, 0).to(s.dtype), back)


def observe_step(function, s):
    y, right = call(function, s), torch.gt(s, 0).to(s.dtype)
    exact = equal(y, right, 0) or not equal(y, right, 1e-4)
    require(exact, "the step has rounding errors: bracket what shall cancel exactly")
    return y


StraightThrough = ladder.step(
    what="the step",
    cases=STEPS,
    observe=observe_step,
    mistakes={
        "a score of exactly 0 must give 0: s > 0, not s >= 0": straight_through(torch.ge),
        "the gradient passes unchanged: multiply by the slope": straight_through(back=lambda g, s: g),
        "the arriving gradient is not used: multiply by it": straight_through(
            back=lambda g, s: s.sigmoid() * (1 - s.sigmoid())
        ),
    },
)(straight_through())


@ladder.step(
    what="the step",
    cases=STEPS,
    observe=observe_step,
    mistakes={
        "the result is the smooth sigmoid: it must be the step itself": torch.sigmoid,
        "the gradient passes unchanged: multiply by the slope": dict(soft=torch.clone),
        "the step has rounding errors: bracket what shall cancel exactly": dict(bracket=False),
    },
)
def step_by_detach(s, *, soft=torch.sigmoid, bracket=True):
    hard, soft = torch.gt(s, 0).to(s.dtype), soft(s)
    return hard + (soft - soft.detach()) if bracket else hard + soft - soft.detach()


def random_mask(B, L, dtype=DOUBLE):
    mask = (torch.rand(B, L, L) < 0.6).to(dtype)
    mask[0, 0] = 0  # a row that is masked entirely
    return mask.requires_grad_()


@ladder.step(
    what="the masked score matrix",
    tolerance=1e-3,  # in float32 rounding times 10000
    cases=[
        lambda: (*leaves((2, 2, 4, 4)), random_mask(2, 4), padding(4, 2)),
        lambda: (*leaves((1, 3, 5, 5), dtype=SINGLE), random_mask(1, 5, SINGLE), holes(1, 5)),
    ],
    mistakes={
        "a masked score must be exactly -10000: multiply the score by the mask": dict(times=torch.ones_like),
        "the mask's gradient must be 10000 times what arrives: detach a factor": dict(times=torch.clone),
        "padding must be far below a masked score: half of the dtype's lowest": dict(low=MASKED_SCORE),
    },
)
def masked_scores(scores, mask, allowed, *, times=torch.detach, low=None):
    mask = mask[:, None]
    scores = scores * times(mask) + MASKED_SCORE * (1 - mask)
    return scores.masked_fill(~allowed, low or torch.finfo(scores.dtype).min / 2)


@ladder.step(
    what="the number of units",
    cases=[
        lambda: (random_mask(3, 4), padding(4, 2, 0)),
        lambda: (random_mask(2, 3), holes(2, 3)),
        lambda: (random_mask(1, 400, torch.float16), padding(400)),  # 96000 units
    ],
    mistakes={
        "padding keys are not left out: `allowed` is not used": dict(seen=torch.ones_like),
        "padded query rows count, too: only keys are left out": dict(seen=lambda real: real & real.mT),
        "float16 ends at 65504: sum in float32": dict(dtype=None),
    },
)
def kept_units(mask, allowed, *, seen=torch.clone, dtype=SINGLE):
    return (mask[:, None] * seen(allowed)).sum((1, 2, 3), dtype=dtype).to(SINGLE)


def observe_adversary(student, hidden_size, x, *scale):
    module = call(student, hidden_size)
    require(isinstance(module, nn.Module), "it must inherit from nn.Module")
    right = MaskAdversary.reference(hidden_size)
    have, want = ({name: list(p.shape) for name, p in m.named_parameters()} for m in (module, right))
    same(have, want, "", hint="it needs two nn.Linear(E, E) with bias, called query and key")
    parameters = {name: module.to(x.dtype).get_parameter(name) for name in want}
    weights = torch.stack([parameters["query.weight"], parameters["key.weight"]])
    drawn = hidden_size < 64 or torch.allclose(weights.std((1, 2)), torch.tensor(0.02), atol=0.002)
    seen = {"whether the weights of a new adversary have std 0.02": drawn}
    seen["whether its biases are zeros"] = not any(p.any() for p in parameters.values() if p.ndim == 1)
    torch.manual_seed(0)
    for p in parameters.values():
        nn.init.normal_(p)
    return seen | gradients("the mask", call(module, x, *scale), **parameters, x=x)


@ladder.step(
    cases=[
        lambda: (6, *leaves((2, 4, 6)), 0.3),
        lambda: (4, torch.zeros(1, 3, 4, requires_grad=True)),  # scores that may be exactly 0
        lambda: (64, *leaves((2, 1, 64), dtype=SINGLE)),
    ],
    observe=observe_adversary,
    mistakes={
        "the gradient is not reversed": dict(reverse=lambda mask, _: mask),
        "the gradient is not scaled: pass `scale` on": dict(reverse=lambda mask, _: reverse_gradient(mask)),
        "query.weight must be drawn with std 0.02": dict(std=0.2),
    },
)
class MaskAdversary(nn.Module):
    def __init__(self, hidden_size, *, std=0.02, reverse=reverse_gradient):
        super().__init__()
        self.query, self.key = nn.Linear(hidden_size, hidden_size), nn.Linear(hidden_size, hidden_size)
        self.reverse = reverse
        for linear in (self.query, self.key):
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)

    def forward(self, x, scale=1.0):
        x = x.detach()
        return self.reverse(HardStep.apply(self.query(x) @ self.key(x).mT / x.shape[-1] ** 0.5), scale)


def adversary(*shape):
    qa, ka = leaves(shape, shape)
    ka.data[-1] = ka.data[-1, 0]  # the last sentence: each query keeps everything or nothing
    return qa, ka


@ladder.step(
    what=("the output", "the number of kept units"),
    cases=[
        lambda: (*qkv(2, 2, 4, 3), *adversary(2, 4, 10), padding(4, 2), 0.3),
        lambda: (*qkv(1, 3, 4, 4), *adversary(1, 4, 12), holes(1, 4), 1.0),
        lambda: (*qkv(2, 2, 1, 2), *adversary(2, 1, 4), padding(1, 0), 1.0),
    ],
    mistakes={
        "the adversary needs sqrt(E), not sqrt(D)": dict(root=True),
        "the mask's gradient is not reversed": dict(reversal=lambda scale: -1.0),
        "the mask's gradient is reversed but not scaled": dict(reversal=lambda scale: 1.0),
    },
)
def asa_layer(q, k, v, adversary_q, adversary_k, allowed, scale, *, root=False, reversal=float):
    adversary_q = adversary_q * (adversary_q.shape[-1] / q.shape[-1]) ** 0.5 if root else adversary_q
    options = {"gradient_reversal_scale": reversal(scale)}
    output, kept, _ = asa_attention(q, k, v, adversary_q, adversary_k, allowed, **options)
    return output, kept.to(SINGLE)
