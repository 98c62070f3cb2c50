"""Checks of `ex03_asa_layer`: from a straight-through threshold to the whole ASA attention layer."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import asa_mini
from asa_classroom.checks.compare import compare, hinted
from asa_classroom.checks.harness import Ladder, attempt, call, require, same
from asa_mini.adversary import keep_mask
from asa_mini.attention import MASKED_SCORE

ladder = Ladder("ex03_asa_layer")
DOUBLE, SINGLE, HALF = torch.float64, torch.float32, torch.float16
IN_PLACE = "backward changed the arriving gradient in place: return a new tensor"


def _numbers(*shape: int, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def _padding(*lengths: int) -> Tensor:
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])[:, None, None]  # (B, 1, 1, L)


def _holes(B: int, L: int) -> Tensor:
    """A random `allowed` (B, 1, L, L); the third query of the first sentence may see no key."""
    holes = (torch.rand(B, 1, L, L) < 0.6) | torch.eye(L, dtype=torch.bool)
    holes[0, 0, 2] = False
    return holes


def _misread(of, allowed):
    """Known mistakes with padding: `of` makes a result from (B, 1, L, L) `allowed`."""
    return {
        "padding keys are not left out: `allowed` is not used": of(torch.ones_like(allowed)),
        "`allowed` is used the wrong way round: True may be seen": of(~allowed),
        "queries are left out, not keys: keys are the last axis": of(allowed.mT),
    }


@ladder.step
def general_attention(student):
    for B, H, L, D, dtype in ((2, 3, 4, 5, DOUBLE), (1, 2, 3, 2, SINGLE), (1, 1, 1, 3, DOUBLE)):
        q, k, v = (_numbers(B, H, L, D, dtype=dtype) for _ in range(3))
        mu, dots, s = _numbers(B, 1, L, L, dtype=dtype), q @ k.mT, q @ k.mT / D**0.5
        known = {
            "the scores are not divided by sqrt(D)": (dots + mu).softmax(-1) @ v,
            "the scores are divided by D, not by its square root": (dots / D + mu).softmax(-1) @ v,
            "mu is divided by sqrt(D), too: add it after the division": (s + mu / D**0.5).softmax(-1) @ v,
            "the softmax runs over the queries, not the keys: use -1": (s + mu).softmax(-2) @ v,
            "the softmax runs over the heads: use -1": (s + mu).softmax(1) @ v,
            "mu is not used": s.softmax(-1) @ v,
            "mu is added after the softmax: add it to the scores": (s.softmax(-1) + mu) @ v,
            "q and k are swapped: rows are queries": (s.mT + mu).softmax(-1) @ v,
            "these are the weights: multiply them by v": (s + mu).softmax(-1),
        }
        right, leaves = F.scaled_dot_product_attention(q, k, v, mu), {"q": q, "k": k, "v": v, "mu": mu}
        case = f"B {B}, H {H}, L {L}, D {D}, mu of shape {tuple(mu.shape)}"
        compare(call(student, q, k, v, mu), right, leaves, "the output", case, known)
        same(call(student, q, k, v, 0.0), F.scaled_dot_product_attention(q, k, v), "the output", "mu = 0.0")
    return "three shapes, one token among them, mu a tensor and a number"


@ladder.step
def padded_attention(student):
    free, padding, holes = torch.randn(2, 1, 4, 4, dtype=DOUBLE), _padding(3, 2, 4)[:2], _holes(2, 4)
    low, holes[1] = MASKED_SCORE * padding.double().expand_as(free), False
    float32 = "value cannot be converted to type float without overflow"
    hints = {float32: "the bias is float32, too narrow for float64's lowest: see torch.zeros_like(mu)"}
    for case, numbers, allowed in (
        ("sentences of 3 and 2 tokens, L 4", free, padding),
        ("mu = -10000 on real keys, 0 on padding", low, padding),
        ("one query, and one whole sentence, may see no key", free, holes),
        ("sentences of 1 and 0 tokens", free[..., :1, :1], _padding(1, 0)),
    ):
        q, k, v = (_numbers(2, 2, numbers.shape[-1], 3) for _ in range(3))
        mu, some = numbers.clone().requires_grad_(), allowed.any(-1, keepdim=True)
        s = (free_s := q @ k.mT / 3**0.5) + mu
        weak, only_real = s + MASKED_SCORE * ~allowed, s.masked_fill(~allowed, -9e99)
        right, seen = only_real.softmax(-1) * allowed @ v, allowed.expand_as(mu)
        nan = torch.full_like(right, torch.nan)
        known = _misread(lambda on, s=s, o=some, v=v: o * s.masked_fill(~on, -9e99).softmax(-1) @ v, seen) | {
            "padding is removed after the softmax: rows no longer sum to 1": s.softmax(-1) * allowed @ v,
            "padding is attended to where mu is as low: -10000 is not enough": weak.softmax(-1) * some @ v,
            "mu is not used": free_s.masked_fill(~allowed, -9e99).softmax(-1) * allowed @ v,
            "a row without keys must give zeros, not the mean of v": only_real.softmax(-1) @ v,
            "all is NaN, from 0 * inf: is the bias in mu's dtype? float32 ends at 3e38": nan,
            "a row without keys must give zeros, not NaN": right.masked_fill(~some, torch.nan),
        }
        # mu.clone(): a change in place is then seen by `call`, while torch would refuse to change a leaf
        got = hinted(hints, call, student, q, k, v, mu.clone(), allowed)
        leaves = {"q": q, "k": k, "v": v, "mu": mu}
        compare(got, right, leaves, "the output", case, known)
    return "padding, a very low mu, rows and sentences without keys, one token"


@ladder.step
def adversary_scores(student):
    for B, L, E, dtype in ((2, 4, 6, DOUBLE), (3, 2, 5, SINGLE), (1, 1, 3, DOUBLE), (2, 0, 3, DOUBLE)):
        leaf, wq, wk = (_numbers(*shape, dtype=dtype) for shape in ((B, L, E), (E, E), (E, E)))
        x, root = leaf.detach(), E**0.5
        dots = (x @ wq) @ (x @ wk).mT
        known = {
            "the scores are not divided by sqrt(E)": dots,
            "the scores are divided by E, not by its square root": dots / E,
            "the root is taken of L, not of E": dots / max(L, 1) ** 0.5,
            "rows and columns are swapped: rows are queries, x wq": dots.mT / root,
            "a weight is transposed: here it is x @ wq and x @ wk": (x @ wq.T) @ (x @ wk.T).mT / root,
        }
        got, leaves = call(student, leaf, wq, wk), {"wq": wq, "wk": wk, "x": leaf}
        require(leaf.requires_grad, "x itself was changed: x.detach() makes a new tensor, and leaves x alone")
        compare(got, dots / root, leaves, "the score matrix", f"B {B}, L {L}, E {E}", known)
    return "four shapes, one token and none among them; no gradient for x"


def _check_step(function):
    for s, case in (
        (torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0], dtype=DOUBLE), "five scores, a zero among them"),
        (torch.randn(2, 20, 20), "random scores (2, 20, 20) in float32"),
        (torch.tensor([[-1000.0, -30.0, 30.0, 1000.0]]), "scores far from 0"),
        (torch.zeros(2, 0, 3), "no score at all"),
    ):
        s.requires_grad_()
        hard, sigmoid = (s > 0).to(s.dtype), s.sigmoid()
        zero, smooth = s - s.detach(), sigmoid.detach()  # zero has the gradient 1
        slope, of_mask = smooth * (1 - smooth), hard.sigmoid() * (1 - hard.sigmoid())
        known = {
            "a score of exactly 0 must give 0: s > 0, not s >= 0": (s >= 0).to(s.dtype),
            "the step is upside down: 1 where s > 0": (s <= 0).to(s.dtype),
            "the step is upside down: it must be 1 where s > 0": (s < 0).to(s.dtype),
            "the result is the smooth sigmoid: it must be the step itself": sigmoid,
            "the gradient passes unchanged: it needs the slope of the sigmoid": hard + zero,
            "the gradient is multiplied by sigmoid(s), not by its slope": hard + smooth * zero,
            "the gradient has the wrong sign: nothing is reversed here": hard - slope * zero,
            "the slope is taken at the step's result: it belongs to s": hard + of_mask * zero,
            "the gradient is zero where s <= 0: rejected units must feel it, too": hard + slope * hard * zero,
            "the gradient is zero everywhere: that is the step's own, useless here": hard + 0 * zero,
        }
        y = call(function, s)
        compare(y, hard + slope * zero, {"s": s}, "the step", case, known)
        weight = torch.randn_like(s)
        attempt(torch.autograd.grad, y, s, arriving := weight.clone())
        require(torch.equal(arriving, weight), IN_PLACE)
        require(torch.equal(y, hard), "the step has rounding errors: bracket what shall cancel exactly")


@ladder.step
def StraightThrough(student):
    is_function = isinstance(student, type) and issubclass(student, torch.autograd.Function)
    require(is_function, "it must be a class that inherits from torch.autograd.Function")
    _check_step(student.apply)
    return "a score of exactly 0, two dtypes, scores far from 0, none at all"


@ladder.step
def step_by_detach(student):
    _check_step(student)
    return "the same cases, and the values are exact"


@ladder.step
def masked_scores(student):
    for B, H, L, allowed, dtype in (
        (2, 2, 4, _padding(4, 2), DOUBLE),
        (1, 3, 5, _holes(1, 5), SINGLE),
        (1, 2, 1, _padding(1), DOUBLE),
    ):
        scores, units = _numbers(B, H, L, L, dtype=dtype), (torch.rand(B, L, L) < 0.6).to(dtype)
        units[0, 0] = 0  # a row that is masked entirely
        mask, seen = units.requires_grad_()[:, None], allowed.expand(B, 1, L, L)
        bias, kept, low = MASKED_SCORE * (1 - mask), mask.detach(), torch.finfo(dtype).min / 2
        right = (free := scores * kept + bias).masked_fill(~seen, low)
        known = {
            "a masked score must be exactly -10000: multiply the score by the mask": scores + bias,
            "the mask is used the wrong way round: 1 keeps": scores * (1 - kept) + MASKED_SCORE * mask,
            "masked scores are 0: the bias of -10000 is missing": scores * mask,
            "the mask's gradient must be 10000 times what arrives: detach a factor": scores * mask + bias,
            "the bias has the wrong sign: a masked score is -10000": scores * kept - bias,
            "kept units get no gradient: where() cuts it off": torch.where(mask > 0, scores, bias),
            "mask b went to head b: use mask[:, None]": scores * units.detach() - 1e4 * (1 - units),
        }
        known = {hint: y.masked_fill(~seen, low) for hint, y in known.items()} | {
            "padding must be far below a masked score": right.masked_fill(~seen, MASKED_SCORE),
            "padding must stay finite: half of the dtype's lowest": right.masked_fill(~seen, -torch.inf),
        }
        known |= _misread(lambda on, y=free, low=low: y.masked_fill(~on, low), seen)
        case = f"B {B}, H {H}, L {L}, `allowed` of shape {tuple(allowed.shape)}"
        got, leaves = call(student, scores, units, allowed), {"the scores": scores, "the mask": units}
        if isinstance(got, Tensor) and got.shape == right.shape:
            half = "padding must be half of the lowest float: torch.finfo(scores.dtype).min / 2"
            known[half] = torch.where(seen, right, got).detach()
        compare(got, right, leaves, "the masked score matrix", case, known, visible=seen)
    return "three shapes, one token, a row masked entirely, two dtypes"


def _count(mask, seen):
    return (mask.float()[:, None] * seen).sum((1, 2, 3))


@ladder.step
def kept_units(student):
    for case, B, L, allowed, dtype in (
        ("sentences of 4, 2 and 0 tokens", 3, 4, _padding(4, 2, 0), SINGLE),
        ("`allowed` of shape (1, 1, 1, 3)", 3, 3, _padding(3, 2)[1:], DOUBLE),
        ("`allowed` of shape (2, 1, 3, 3)", 2, 3, _holes(2, 3), SINGLE),
        ("400 tokens, float16", 1, 400, _padding(400), HALF),
    ):
        mask = torch.rand(B, L, L).round().to(dtype).requires_grad_()
        seen, right = allowed.expand(B, 1, L, L), _count(mask, allowed)
        got, heads = call(student, mask, allowed), mask * allowed
        sums = [heads.sum(axes) for axes in ((1, 2, 3), (1, 2), (2, 3))]
        met = [y for y in sums if y.shape == getattr(got, "shape", None)]
        known = _misread(partial(_count, mask), seen) | {
            "float16 ends at 65504: sum in float32": torch.full_like(right, torch.inf),
            "padded query rows count, too: only keys are left out": _count(mask, seen & seen.mT),
            "masked units are counted: 1 means kept": _count(1 - mask, seen),
            "this is a share: return the number of units": right / seen.sum((1, 2, 3)),
            "`allowed` has an axis of heads: use mask[:, None]": met[0] if met else sums[0],
        }
        compare(got, right, {"mask": mask}, "the number of units", case, known)
    return "padding, one mask for all, one for each query, 80000 units in float16"


@ladder.step
def MaskAdversary(student):
    require(isinstance(student, type) and issubclass(student, nn.Module), "it must inherit from nn.Module")
    fresh, ours = call(student, 64), asa_mini.Adversary(64)
    want, have = (sorted((name, tuple(p.shape)) for name, p in m.named_parameters()) for m in (ours, fresh))
    wrong = {"it needs two nn.Linear(E, E) with bias, called query and key": have}
    same(have, want, "the list of parameters", "hidden_size 64", wrong)
    for name, linear in (("query", fresh.query), ("key", fresh.key)):
        std = float(linear.weight.detach().std())
        require(0.018 < std < 0.022, f"{name}.weight must be drawn with std 0.02, but has {std:.3f}")
        same(linear.bias, torch.zeros(64), f"{name}.bias of a new adversary", "hidden_size 64")
    for B, L, E, scale, dtype in ((2, 4, 6, 0.3, DOUBLE), (1, 3, 5, 1.0, SINGLE), (2, 1, 4, 0.0, DOUBLE)):
        ours, module, x = asa_mini.Adversary(E).to(dtype), call(student, E), _numbers(B, L, E, dtype=dtype)
        for p in ours.parameters():
            nn.init.normal_(p)
        module.query, module.key = ours.query, ours.key  # so that both have the same leaves
        (qa, ka), leaves = ours(x), dict(ours.named_parameters()) | {"x": x}
        known = {
            "the step is upside down: 1 where s > 0": 1 - keep_mask(qa, ka),
            "the scores are not divided by sqrt(E), and the slope tells": keep_mask(qa * E**0.5, ka, scale),
            "the scores are divided by E, not by its square root": keep_mask(qa / E**0.5, ka, scale),
            "the gradient is not reversed": keep_mask(qa, ka, -1.0),
            "the gradient is reversed but not scaled: pass `scale` on": keep_mask(qa, ka, 1.0),
            "the gradient is reversed twice": keep_mask(qa, ka, -(scale**2)),
        }
        case = f"B {B}, L {L}, E {E}, scale {scale}"
        compare(call(module, x, scale), keep_mask(qa, ka, scale), leaves, "the mask", case, known)
    still, kept = call(student, 4), torch.zeros(1, 3, 3)
    same(call(still, torch.zeros(1, 3, 4)), kept, "the mask", "every score is 0; no scale given")
    return "its parameters, three shapes and scales, scores of exactly 0"


def _layer(scores, qa, ka, scale, v, seen, low=None, extra=0.0):
    mask = keep_mask(qa, ka, scale)[:, None]
    S = scores * mask.detach() + MASKED_SCORE * (1 - mask)
    S = S.masked_fill(~seen, torch.finfo(S.dtype).min / 2 if low is None else low)
    return (S + extra).softmax(-1) @ v * seen.any(-1, keepdim=True)


@ladder.step
def asa_layer(student):
    for B, H, L, D, E, allowed, scale, dtype in (
        (2, 2, 4, 3, 10, _padding(4, 2), 0.3, DOUBLE),
        (1, 3, 4, 4, 12, _holes(1, 4), 1.0, SINGLE),
        (2, 2, 1, 2, 4, _padding(1, 0), 1.0, DOUBLE),
    ):
        q, k, v = (_numbers(B, H, L, D, dtype=dtype) for _ in range(3))
        qa, ka = (_numbers(B, L, E, dtype=dtype) for _ in range(2))
        ka.data[-1] = ka.data[-1, 0]  # the last sentence: each query keeps everything or nothing
        s, seen, case = q @ k.mT / D**0.5, allowed.expand(B, 1, L, L), f"{B=}, {H=}, {D=}, {E=}, {scale=}"
        rest, mean, nothing = {"scale": scale, "v": v, "seen": seen}, v.mean(-2, True), ~seen.any(-1, True)
        right, count, _ = asa_mini.asa_attention(q, k, v, qa, ka, allowed, gradient_reversal_scale=scale)
        twice = "the scores are added twice: general_attention adds them itself; take S.softmax(-1) @ v"
        known = {
            twice: _layer(s, qa, ka, **rest, extra=s),
            "the scores are not divided by sqrt(D)": _layer(q @ k.mT, qa, ka, **rest),
            "the adversary needs sqrt(E), not sqrt(D)": _layer(s, qa * (E / D) ** 0.5, ka, **rest),
            "the scores are divided by D, not by its square root": _layer(s / D**0.5, qa, ka, **rest),
            "the adversary's scores are not divided by sqrt(E)": _layer(s, qa * E**0.5, ka, **rest),
            "the adversary's scores are divided by E, not sqrt(E)": _layer(s, qa / E**0.5, ka, **rest),
            "the mask's gradient is not reversed": _layer(s, qa, ka, -1.0, v, seen),
            "the mask's gradient is reversed but not scaled": _layer(s, qa, ka, 1.0, v, seen),
            "the step is upside down: 1 where the adversary's score is above 0": _layer(s, -qa, ka, **rest),
            "padding is seen where a row is masked entirely": _layer(s, qa, ka, **rest, low=MASKED_SCORE),
            "a row without keys must give zeros, not the mean of v": right + mean * nothing,
        } | _misread(partial(_layer, s, qa, ka, scale, v), seen)
        got, leaves = call(student, q, k, v, qa, ka, allowed, scale), {"adversary_q": qa, "adversary_k": ka}
        require(isinstance(got, tuple) and len(got) == 2, "return two things: the output and the kept units")
        compare(got[0], right, leaves | {"q": q, "k": k, "v": v}, "the output", case, known)
        known = _misread(partial(_count, keep_mask(qa, ka, scale)), seen)
        hint = "the pay's gradient is not reversed: give kept_units the reversed mask"
        known[hint] = _count(keep_mask(qa, ka, -1.0), seen)
        compare(got[1], count.float(), leaves, "the number of kept units", case, known)
    return "values and five gradients: padding, masked rows, rows without keys, one token"
