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
    keep_everything,
    make,
    mask_everything,
    padded_cases,
    padding,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from asa_mini import asa_attention
from asa_mini.adversary import keep_mask
from asa_mini.errors import InputError

some = settings(max_examples=30, deadline=None)


def test_by_hand():
    def column(*values):
        return torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1)

    # Signs of s:  row 0: + - +   row 1: - + -   row 2: 0 0 0, which is masked, because s > 0 is needed.
    adversary_q, adversary_k = column(1, -1, 0), column(1, -1, 1)
    q, k, v = (x[None] for x in (column(1, 2, 0), column(math.log(2), 5, 0), column(3, 7, 9)))
    output, kept = asa_attention(q, k, v, adversary_q, adversary_k, scaling=1.0)
    # Row 0: weights 2 : 1 on 3 and 9.  Row 1: its only kept unit.  Row 2: all masked, so uniform.
    close(output, column(5, 7, 19 / 3)[None])
    close(kept, torch.tensor([3.0], dtype=torch.float64))

    allowed = torch.tensor([True, True, False])[None, None, None]  # the last token is padding
    output, kept = asa_attention(q, k, v, adversary_q, adversary_k, allowed, scaling=1.0)
    close(output, column(3, 7, 5)[None])
    close(kept, torch.tensor([2.0], dtype=torch.float64))


@some
@given(padded_cases())
def test_padded_keys_cannot_matter(case):
    padded = ~case.allowed[:, 0, 0]  # (B, L)
    loud = replace(
        case,
        k=case.k.masked_fill(padded[:, None, :, None], 50.0),
        v=case.v.masked_fill(padded[:, None, :, None], -70.0),
        adversary_k=case.adversary_k.masked_fill(padded[..., None], 30.0),
    )
    for ours, theirs in zip(case.run(), loud.run(), strict=True):
        close(ours, theirs)
    quiet, loud = case.gradients(), loud.gradients()
    for name in quiet:
        close(quiet[name], loud[name], rtol=1e-7, atol=1e-7)
    for name in ("k", "v"):
        assert not quiet[name].transpose(1, 2)[padded].any()
    assert not quiet["adversary_k"][padded].any()


@some
@given(cases(), st.sampled_from(["none", "padding", "causal", "per query"]), st.integers(0, 10**6))
def test_nothing_masked_is_ordinary_attention(case, kind, seed):
    batch, _, length, _ = case.q.shape
    generator = torch.Generator().manual_seed(seed)
    case = keep_everything(case)
    case.allowed = {
        "none": None,
        "padding": padding(batch, length, seed),
        "causal": torch.ones(1, 1, length, length, dtype=torch.bool).tril(),
        "per query": torch.rand(batch, 1, length, length, generator=generator)
        > 0.5,  # also rows without keys
    }[kind]

    def plain(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, case.allowed, enable_gqa=True)

    output, kept = case.run()
    close(output, plain(case.q, case.k, case.v))
    everything = torch.ones(batch, 1, length, length, dtype=torch.bool)
    allowed = everything if case.allowed is None else everything & case.allowed
    assert torch.equal(kept, allowed.sum(dim=(1, 2, 3)).double())

    leaves = [x.detach().requires_grad_() for x in (case.q, case.k, case.v)]
    weights = torch.arange(1.0, output.numel() + 1, dtype=torch.float64).sin().reshape(output.shape)
    theirs = torch.autograd.grad((plain(*leaves) * weights).sum(), leaves)
    for ours, expected in zip(case.gradients("q k v").values(), theirs, strict=True):
        close(ours, expected)


@pytest.mark.parametrize("scaling", [None, 0.2])
def test_scaling(scaling):
    case = keep_everything(make())
    output, _ = case.run(scaling=scaling)
    close(output, F.scaled_dot_product_attention(case.q, case.k, case.v, scale=scaling))


@some
@given(padded_cases())
def test_everything_masked_is_uniform_over_the_real_tokens(case):
    case = mask_everything(case)
    output, kept = case.run()
    weights = case.allowed.double() / case.allowed.sum(-1, keepdim=True)  # (B, 1, 1, L)
    v = case.v.repeat_interleave(case.q.shape[1] // case.v.shape[1], dim=1)
    close(output, (weights @ v).expand_as(output))
    assert not kept.any()
    gradients = case.gradients("q k")
    assert not gradients["q"].any() and not gradients["k"].any()  # scores are switched off, not moved


@some
@given(padded_cases(), st.randoms(use_true_random=False))
def test_permuting_the_keys_permutes_nothing_else(case, random):
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
    for ours, theirs in zip(case.run(), permuted.run(), strict=True):
        close(ours, theirs)


@some
@given(cases())
def test_grouped_queries_equal_repeated_heads(case):
    groups = case.q.shape[1] // case.k.shape[1]
    repeated = replace(
        case, k=case.k.repeat_interleave(groups, dim=1), v=case.v.repeat_interleave(groups, dim=1)
    )
    for ours, theirs in zip(case.run(), repeated.run(), strict=True):
        close(ours, theirs)
    ours, theirs = case.gradients(), repeated.gradients()
    for name in ("k", "v"):  # the gradient of a shared head is the sum over its copies
        theirs[name] = theirs[name].unflatten(1, (-1, groups)).sum(2)
    for name in ours:
        close(ours[name], theirs[name], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_rows_without_allowed_key_are_zero(dtype):
    case = make(dtype=dtype)
    case.allowed = torch.ones(2, 1, 5, 5, dtype=torch.bool).tril()
    case.allowed[0, 0, 2] = False
    case.allowed[1] = False
    output, kept = case.run()
    assert not output[0, :, 2].any() and not output[1].any() and kept[1] == 0
    assert output[0, :, 0].any()
    gradients = case.gradients()
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert not gradients["q"][0, :, 2].any() and not gradients["q"][1].any()
    assert not gradients["adversary_q"][1].any()


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


@some
@given(padded_cases(), st.floats(0, 3))
def test_adversary_gradient_by_hand(case, scale):
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
    d_mask = 10000 * d_scores.sum(1) + 0.3 * allowed  # through the attention, and through the kept units
    d_s = -scale * d_mask * s.sigmoid() * (1 - s.sigmoid()) / math.sqrt(width)

    ours = case.gradients("adversary_q adversary_k", gradient_reversal_scale=scale)
    close(ours["adversary_q"], d_s @ case.adversary_k, rtol=1e-7, atol=1e-7)
    close(ours["adversary_k"], d_s.mT @ case.adversary_q, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_low_precision_with_padding(dtype, tolerance):
    """The lowest float32 number as a mask turns to -inf in float16, and a row of -inf to NaN."""
    low = make(length=9, dim=8, dtype=dtype)
    low.q = low.q * 8  # scores that are large, and negative in places
    low.allowed = padding(2, 9, seed=4)
    low.adversary_q[:, 3] = 0  # a row with every unit masked
    high = Case(*(x.double() for x in arguments(low)[:5]), low.allowed)
    output, kept = low.run()
    assert output.dtype == dtype
    # The same mask in both precisions: no s of this example is near zero.
    assert torch.equal(kept.double(), high.run()[1])
    close(output.double(), high.run()[0], rtol=tolerance, atol=tolerance)
    for gradient in low.gradients().values():
        assert gradient.isfinite().all()


def test_kept_units_do_not_overflow_in_float16():
    length = 300  # 90,000 units; the largest float16 is 65,504
    case = keep_everything(make(1, 1, length=length, dim=1, width=1, dtype=torch.float16))
    assert case.run()[1].item() == length**2


def test_dropout_keeps_the_mean_and_is_off_by_default():
    case = make(batch=1)
    expected, _ = case.run()
    state = torch.random.get_rng_state()
    assert torch.equal(case.run()[0], expected)
    assert torch.equal(torch.random.get_rng_state(), state)

    torch.manual_seed(0)
    many = Case(*(x.expand(4000, *x.shape[1:]) for x in arguments(case)[:5]))
    output, kept = many.run(dropout=0.3)
    error = output.std(0) / math.sqrt(4000)
    assert (output.std(0) > 0.05).any()
    assert ((output.mean(0) - expected[0]).abs() < 4.5 * error + 1e-12).all()
    assert (kept == case.run()[1]).all()  # what the adversary keeps is counted before dropout


def test_auto_is_the_reference_on_the_cpu():
    case = make()
    assert torch.equal(case.run(backend="auto")[0], case.run(backend="reference")[0])


def test_mask_is_shared_by_all_heads():
    case = make(kv_heads=3, length=6)
    case.v = torch.eye(6, dtype=torch.float64).expand(2, 3, 6, 6)  # so that the output is the weights
    mask = keep_mask(case.adversary_q, case.adversary_k).bool()
    some_left = mask.any(-1)
    weights = case.run()[0]
    for head in range(3):
        assert torch.equal((weights[:, head] > 0)[some_left], mask[some_left])


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(k=torch.zeros(2, 2, 6, 3)), "self-attention.*does not fit"),
        (dict(k=torch.zeros(2, 2, 5, 4)), "self-attention.*does not fit"),
        (dict(q=torch.zeros(2, 3, 5, 3)), "self-attention.*does not fit"),
        (dict(v=torch.zeros(2, 2, 4, 3)), "self-attention.*does not fit"),
        (dict(adversary_q=torch.zeros(2, 4, 4)), r"adversary_q must be \(2, 5, E\)"),
        (dict(adversary_k=torch.zeros(2, 2, 5, 4)), r"adversary_k must be \(2, 5, E\)"),
        (dict(allowed=torch.zeros(2, 1, 1, 5)), "must be boolean.*torch.float32"),
        (dict(allowed=torch.ones(2, 2, 5, 5, dtype=torch.bool)), "the same for all heads"),
        (dict(allowed=torch.ones(2, 5, dtype=torch.bool)), r"`allowed` must be.*is \(2, 5\)"),
        (dict(allowed=torch.ones(2, 1, 5, 4, dtype=torch.bool)), r"`allowed` must be.*is \(2, 1, 5, 4\)"),
        (dict(allowed=torch.ones(3, 1, 1, 5, dtype=torch.bool)), r"`allowed` must be.*is \(3, 1, 1, 5\)"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(InputError, match=message):
        replace(make(dtype=torch.float32), **change).run()


def test_unknown_backend():
    with pytest.raises(InputError, match=r"unknown attention backend 'flash'.*auto, reference"):
        make().run(backend="flash")
