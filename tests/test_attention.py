"""`asa_attention` against its definition; the numbers of the authors' code are in test_parity."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from attention_cases import (
    Case,
    arguments,
    cases,
    close,
    every_backend,
    keep_everything,
    make,
    mask_everything,
    padded_cases,
    padding,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from asa_mini.adversary import keep_mask

some = settings(max_examples=4, deadline=None)


@every_backend
def test_by_hand(backend):
    def column(*values):
        return torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1)

    # Signs of s:  row 0: + - +   row 1: - + -   row 2: 0 0 0, which is masked, because s > 0 is needed.
    adversary_q, adversary_k = column(1, -1, 0), column(1, -1, 1)
    q, k, v = (x[None] for x in (column(1, 2, 0), column(math.log(2), 5, 0), column(3, 7, 9)))
    case = Case(q, k, v, adversary_q, adversary_k)
    output, kept, units = case.run(backend, scaling=1.0)
    # Row 0: weights 2 : 1 on 3 and 9.  Row 1: its only kept unit.  Row 2: all masked, so uniform.
    close(output, column(5, 7, 19 / 3)[None], backend)
    assert (kept.item(), units.item()) == (3, 9)

    case.allowed = torch.tensor([True, True, False])[None, None, None]  # the last token is padding
    output, kept, units = case.run(backend, scaling=1.0)
    close(output, column(3, 7, 5)[None], backend)
    assert (kept.item(), units.item()) == (2, 6)

    output, kept, units = case.run(backend, scaling=1.0, causal=True)
    # Row 0 sees the first key alone, rows 1 and 2 as before, because the third token is padding.
    close(output, column(3, 7, 5)[None], backend)
    assert (kept.item(), units.item()) == (2, 5)


@every_backend
@some
@given(padded_cases())
def test_padded_keys_cannot_matter(backend, case):
    padded = ~case.allowed[:, 0, 0]  # (B, L)
    loud = replace(
        case,
        k=case.k.masked_fill(padded[:, None, :, None], 50.0),
        v=case.v.masked_fill(padded[:, None, :, None], -70.0),
        adversary_k=case.adversary_k.masked_fill(padded[..., None], 30.0),
    )
    quiet, loud = case.step(backend=backend), loud.step(backend=backend)
    for name in quiet:
        close(quiet[name], loud[name], backend, name)
    for name in ("k", "v"):
        assert not quiet[name].transpose(1, 2)[padded].any()
    assert not quiet["adversary_k"][padded].any()


@every_backend
@some
@given(cases(), st.booleans(), st.booleans(), st.integers(0, 10**6))
def test_nothing_masked_is_ordinary_attention(backend, case, padded, causal, seed):
    batch, _, length, _ = case.q.shape
    case = keep_everything(case)
    case.allowed = padding(batch, length, seed).flip(-1) if padded else None  # left: rows without keys
    allowed = torch.ones(batch, 1, length, length, dtype=torch.bool)
    allowed = allowed if case.allowed is None else allowed & case.allowed
    allowed = allowed.tril() if causal else allowed
    check_ordinary_attention(case, allowed, backend=backend, causal=causal)


@some
@given(cases(), st.integers(0, 10**6))
def test_any_mask_by_query(case, seed):
    batch, _, length, _ = case.q.shape
    generator = torch.Generator().manual_seed(seed)
    case = keep_everything(case)
    case.allowed = torch.rand(batch, 1, length, length, generator=generator) > 0.5
    check_ordinary_attention(case, case.allowed)


def check_ordinary_attention(case, allowed, backend="reference", **options):
    def plain(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, allowed, enable_gqa=True)

    ours = case.step("q k v", backend=backend, **options)
    leaves = [x.detach().requires_grad_() for x in (case.q, case.k, case.v)]
    output = plain(*leaves)
    close(ours["output"], output, backend)
    assert torch.equal(ours["kept"], allowed.sum(dim=(1, 2, 3)).double())
    assert torch.equal(ours["allowed"], ours["kept"]) and not ours["allowed"].requires_grad

    weights = torch.arange(1.0, output.numel() + 1, dtype=torch.float64).sin().reshape(output.shape)
    theirs = torch.autograd.grad((output * weights).sum(), leaves)
    for name, expected in zip("qkv", theirs, strict=True):
        close(ours[name], expected, backend)


@every_backend
@pytest.mark.parametrize("scaling", [None, 0.2])
def test_scaling(backend, scaling):
    case = keep_everything(make())
    output, *_ = case.run(backend, scaling=scaling)
    close(output, F.scaled_dot_product_attention(case.q, case.k, case.v, scale=scaling), backend)


@every_backend
@some
@given(padded_cases())
def test_everything_masked_is_uniform_over_the_real_tokens(backend, case):
    case = mask_everything(case)
    step = case.step("q k", backend=backend)
    weights = case.allowed.double() / case.allowed.sum(-1, keepdim=True)  # (B, 1, 1, L)
    v = case.v.repeat_interleave(case.q.shape[1] // case.v.shape[1], dim=1)
    close(step["output"], (weights @ v).expand_as(case.q), backend)
    assert not step["kept"].any()
    assert torch.equal(step["allowed"], case.allowed.sum((1, 2, 3)).double() * case.q.shape[2])
    assert not step["q"].any() and not step["k"].any()  # scores are switched off, not moved


@every_backend
@some
@given(padded_cases(), st.randoms(use_true_random=False))
def test_permuting_the_keys_permutes_nothing_else(backend, case, random):
    order = list(range(case.q.shape[2]))
    random.shuffle(order)
    permuted = Case(
        case.q,
        case.k[:, :, order],
        case.v[:, :, order],
        case.adversary_q,
        case.adversary_k[:, order],
        case.allowed[..., order],
    )
    for ours, theirs in zip(case.run(backend), permuted.run(backend), strict=True):
        close(ours, theirs, backend)


@every_backend
@some
@given(cases())
def test_grouped_queries_equal_repeated_heads(backend, case):
    groups = case.q.shape[1] // case.k.shape[1]
    repeated = replace(
        case, k=case.k.repeat_interleave(groups, dim=1), v=case.v.repeat_interleave(groups, dim=1)
    )
    ours, theirs = case.step(backend=backend), repeated.step(backend=backend)
    for name in ("k", "v"):  # the gradient of a shared head is the sum over its copies
        theirs[name] = theirs[name].unflatten(1, (-1, groups)).sum(2)
    for name in ours:
        close(ours[name], theirs[name], backend, name)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_rows_without_allowed_key_are_zero(backend, dtype):
    case = make(dtype=dtype)
    case.allowed = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    case.allowed[0, ..., 0] = False  # the first query of a causal model sees this key alone
    case.allowed[1] = False
    step = case.step(backend=backend, causal=True)
    output, kept, units = (step[name] for name in ("output", "kept", "allowed"))
    assert not output[0, :, 0].any() and not output[1].any()
    assert kept[1] == units[1] == 0 and units[0] == 10  # of 15, without the first column
    assert output[0, :, 1].any()
    assert all(x.isfinite().all() for x in step.values())
    assert not step["q"][0, :, 0].any() and not step["q"][1].any()
    assert not step["adversary_q"][1].any()


def test_scores_of_padding_do_not_overflow_in_float16():
    """The lowest number plus a negative score is -inf, and a row of -inf is NaN."""
    case = keep_everything(make(dtype=torch.float16))
    case.q, case.k = 8 * case.q.abs(), -8 * case.k.abs()
    case.allowed = torch.zeros(2, 1, 1, 5, dtype=torch.bool)
    assert not case.run()[0].any()


def test_gradcheck():
    case = make(length=4)
    case.allowed = padding(2, 4, seed=1)
    assert not case.allowed.all() and 0 < case.run()[1].sum() < case.allowed.sum() * 4
    leaves = [x.requires_grad_() for x in (case.q, case.k, case.v)]
    assert torch.autograd.gradcheck(lambda q, k, v: replace(case, q=q, k=k, v=v).run()[0], leaves)


@every_backend
@some
@given(padded_cases(), st.floats(0, 3))
def test_adversary_gradient_by_hand(backend, case, scale):
    """Written out from the equations, since finite differences know no straight-through rule."""
    groups = case.q.shape[1] // case.k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (case.k, case.v))
    width = case.adversary_q.shape[-1]
    s = torch.einsum("bie,bje->bij", case.adversary_q, case.adversary_k) / math.sqrt(width)
    mask, allowed = s > 0, case.allowed[:, 0].expand_as(s)
    scores = torch.einsum("bhid,bhjd->bhij", case.q, k) / math.sqrt(case.q.shape[-1])
    scores = torch.where(mask[:, None], scores, torch.full_like(scores, -10000.0))
    p = torch.where(allowed[:, None], scores, -math.inf).softmax(-1)

    d_output = torch.arange(1.0, case.q.numel() + 1, dtype=torch.float64).sin().reshape(case.q.shape)
    d_p = torch.einsum("bhid,bhjd->bhij", d_output, v)
    jacobian = torch.diag_embed(p) - p[..., :, None] * p[..., None, :]  # of the softmax, (B, H, L, L, L)
    d_scores = torch.einsum("bhijk,bhij->bhik", jacobian, d_p)
    d_mask = (
        10000 * d_scores.sum(1) + 0.3 * allowed.double()
    )  # through the attention, and through the kept units
    d_s = -scale * d_mask * s.sigmoid() * (1 - s.sigmoid()) / math.sqrt(width)

    ours = case.gradients("adversary_q adversary_k", backend=backend, gradient_reversal_scale=scale)
    theirs = {"adversary_q": d_s @ case.adversary_k, "adversary_k": d_s.mT @ case.adversary_q}
    for name in theirs:
        close(ours[name], theirs[name], backend, name)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_low_precision_with_padding(dtype, tolerance):
    """The lowest float32 number as a mask turns to -inf in float16, and a row of -inf to NaN."""
    low = make(length=9, dim=8, dtype=dtype)
    low.q = low.q * 8  # scores that are large, and negative in places
    low.allowed = padding(2, 9, seed=4)
    low.adversary_q[:, 3] = 0  # a row with every unit masked
    high = Case(*(x.double() for x in arguments(low)[:5]), low.allowed)
    output, kept, _ = low.run()
    assert output.dtype == dtype
    # The same mask in both precisions: no s of this example is near zero.
    assert torch.equal(kept.double(), high.run()[1])
    torch.testing.assert_close(output.double(), high.run()[0], rtol=tolerance, atol=tolerance)
    for gradient in low.gradients().values():
        assert gradient.isfinite().all()


def test_kept_units_do_not_overflow_in_float16():
    length = 300  # 90,000 units; the largest float16 is 65,504
    case = keep_everything(make(1, 1, length=length, dim=1, width=1, dtype=torch.float16))
    assert case.run()[1].item() == length**2


def test_dropout_keeps_the_mean_and_is_off_by_default():
    case = make(batch=1)
    expected, *_ = case.run()
    state = torch.random.get_rng_state()
    assert torch.equal(case.run()[0], expected)
    assert torch.equal(torch.random.get_rng_state(), state)

    torch.manual_seed(0)
    many = Case(*(x.expand(4000, *x.shape[1:]) for x in arguments(case)[:5]))
    output, kept, _ = many.run(dropout=0.3)
    error = output.std(0) / math.sqrt(4000)
    assert (output.std(0) > 0.05).any()
    assert ((output.mean(0) - expected[0]).abs() < 4.5 * error + 1e-12).all()
    assert (kept == case.run()[1]).all()  # what the adversary keeps is counted before dropout


def test_auto_is_the_reference_on_the_cpu():
    case = make()
    assert torch.equal(case.run(backend="auto")[0], case.run(backend="reference")[0])


@every_backend
def test_mask_is_shared_by_all_heads(backend):
    case = make(kv_heads=3, length=6, dim=6)
    case.v = torch.eye(6, dtype=torch.float64).expand(2, 3, 6, 6)  # so that the output is the weights
    mask = keep_mask(case.adversary_q, case.adversary_k).bool()
    some_left = mask.any(-1)
    weights = case.run(backend)[0]
    for head in range(3):
        assert torch.equal((weights[:, head] > 0)[some_left], mask[some_left])
