"""The Triton kernels where they differ from the reference in kind: rounding, tiles, dropout, determinism.

What both backends share is in test_attention. Without a GPU the kernels run interpreted, on the CPU.
"""

import math
from dataclasses import replace

import pytest
import torch
from attention_cases import DEVICE, Case, arguments, make, triton_only
from torch import Tensor

from asa_mini import asa_attention, attention
from asa_mini.adversary import keep_mask

pytestmark = triton_only
LOW = (torch.float16, torch.bfloat16)
PADDINGS = ("none", "right", "left", "holes", "one sequence gone")


def padded(kind: str, batch: int, length: int) -> Tensor | None:
    """(B, 1, 1, L) with about a third of the tokens padding."""
    at = torch.arange(length).repeat(batch, 1)
    masks = {
        "none": None,
        "right": at <= 2 * length // 3,
        "left": at >= length // 3,
        "holes": (at * 7 + torch.arange(batch)[:, None]) % 3 > 0,
        "one sequence gone": (at >= 0) & (torch.arange(batch)[:, None] > 0),
    }
    return None if masks[kind] is None else masks[kind][:, None, None]


def random_case(
    length: int, dtype=torch.float32, padding="right", kv_heads=2, groups=1, dim=24, width=40, seed=0
) -> Case:
    """Scores of every size, one row with everything masked, and one with everything kept."""
    case = make(2, kv_heads, groups, length, dim, width, seed=seed, dtype=dtype)
    case.q = 2 * case.q
    case.adversary_k[..., 0] = 1
    case.adversary_q[:, length // 2] = 0
    case.adversary_q[:, -1] = 0
    case.adversary_q[:, -1, 0] = 1
    case.allowed = padded(padding, 2, length)
    return case


def errors(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """Of each tensor: largest difference, relative to the largest entry.

    The adversary's gradient is 10000 times the scores', so 1000 is its usual size here; where terms cancel,
    as in a row with one key, their rounding still counts.
    """
    scales = {
        name: max(x.abs().max().item(), 1000.0 * name.startswith("adversary")) for name, x in exact.items()
    }
    return {
        name: (found[name].double() - x).abs().max().item() / (scales[name] or 1) for name, x in exact.items()
    }


def assert_as_exact_as_the_reference(case: Case, **options) -> None:
    """Measured against float64, the kernels may err as the dense reference does in the same precision."""
    exact = Case(*(x.double() for x in arguments(case)[:5]), case.allowed)
    exact = exact.step(**options)
    ours = errors(case.step(backend="triton", **options), exact)
    theirs = errors(case.step(**options), exact)
    assert ours["kept"] == 0
    # The interpreter cuts bfloat16 off where a GPU rounds: twice the error. The 8 eps: the backward pass
    # starts from the output as it was rounded, where the reference, in a row of one key, is exact by luck.
    factor = 4 if DEVICE == "cpu" and case.q.dtype == torch.bfloat16 else 2
    for name, error in ours.items():
        bound = factor * theirs[name] + 8 * torch.finfo(case.q.dtype).eps
        assert error <= bound, f"{name}: error {error:.1e}, bound {bound:.1e}"


# One token; a word of the mask and one more; whole tiles; more than a side, so in half precision two tiles.
@pytest.mark.parametrize(
    "length, dtype",
    [(1, torch.float32), (33, torch.float32), (64, torch.float32), (140, torch.float32)]
    + [(n, dtype) for dtype in LOW for n in (64, 140)],
    ids=str,
)
def test_error_bounded_by_the_references_own(length, dtype):
    assert_as_exact_as_the_reference(random_case(length, dtype, kv_heads=1 if length > 64 else 2))


@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
@pytest.mark.parametrize("padding", PADDINGS)
def test_padding_anywhere(padding, causal):
    assert_as_exact_as_the_reference(random_case(40, padding=padding, kv_heads=1, groups=2), causal=causal)


@pytest.mark.parametrize("dim", [16, 80, 128])
def test_head_dimensions(dim):
    assert_as_exact_as_the_reference(random_case(40, dim=dim, dtype=torch.bfloat16), causal=True)


def test_options_reach_the_kernels():
    assert_as_exact_as_the_reference(random_case(40), scaling=0.7, gradient_reversal_scale=0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mask_is_the_references_except_at_zero(dtype):
    from asa_mini.kernels.ops import attention as operator

    case = random_case(127, dtype)
    q, k, v = (x.to(DEVICE).transpose(1, 2).contiguous() for x in (case.q, case.k, case.v))
    projections = case.adversary_q.to(DEVICE), case.adversary_k.to(DEVICE)
    key_mask = case.allowed[:, 0, 0].to(DEVICE)
    ends = torch.full((2,), 127, dtype=torch.int32, device=DEVICE)
    masks = key_mask, ends, None, False
    _, kept, _, words_t, factors = operator(q, k, v, *projections, *masks, 1.0, 0.0, 1.0)
    bits = (words_t.cpu()[:, :, None] >> torch.arange(32)[:, None]) & 1  # (B, words, 32, L)
    mask = bits.flatten(1, 2)[:, :127].bool()  # (B, L, L)

    s = case.adversary_q.double() @ case.adversary_k.double().mT
    expected = keep_mask(case.adversary_q.double(), case.adversary_k.double()).bool() & case.allowed[:, 0]
    certain = s.abs() > 1e-5 * s.abs().max()  # not in a row with nothing kept, whose scores are all 0
    assert torch.equal(mask[certain], expected[certain]) and certain.float().mean() > 0.97
    empty = factors.cpu() == 0  # a row with nothing kept has the bits of all that is allowed
    assert torch.equal(mask[empty], case.allowed[:, 0].expand_as(mask)[empty]) and 0 < empty.sum() < 10
    assert torch.equal(kept.cpu(), (mask & ~empty[..., None]).sum(2).float())


@pytest.mark.parametrize("causal, dropout", [(False, 0.0), (True, 0.3)])
def test_same_bits_from_run_to_run(causal, dropout):
    case = random_case(70, torch.bfloat16, kv_heads=1, groups=2)
    torch.manual_seed(3)
    first = case.step(backend="triton", causal=causal, dropout=dropout)
    torch.manual_seed(3)
    second = case.step(backend="triton", causal=causal, dropout=dropout)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("block_keys, causal", [(64, False), (128, True)])
def test_blocks_of_sequences_and_keys(monkeypatch, block_keys, causal):
    """The scores' gradient exists for some keys of one sequence at a time, or for some sequences."""
    from asa_mini.kernels import ops

    case = random_case(140, torch.bfloat16, kv_heads=1, groups=2, dim=16)
    whole = case.gradients(backend="triton", causal=causal)
    monkeypatch.setattr(ops, "BLOCK_KEYS", block_keys)
    parts = case.gradients(backend="triton", causal=causal)
    for name in ("k", "v"):
        assert torch.equal(whole[name], parts[name])
    found = errors(parts, {name: x.double() for name, x in whole.items()})
    assert max(found.values()) < 2 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("causal", [False, True])
def test_nothing_is_read_that_was_not_written(causal):
    """PyTorch fills new tensors with NaN where its algorithms are to be deterministic."""
    case = random_case(150, torch.bfloat16, kv_heads=1)
    expected = case.step(backend="triton", causal=causal)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        found = case.step(backend="triton", causal=causal)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class TestDropout:
    """Philox makes the same decisions in forward and backward; here they are read off the output."""

    p = 0.3

    def survivors(self, case: Case, seed: int) -> Tensor:
        """(B, H, L, L): with unit vectors for values, the output is the matrix of weights."""
        length = case.q.shape[2]
        shape = *case.k.shape[:3], length
        readable = replace(case, v=torch.eye(length, dtype=case.q.dtype).expand(shape))
        torch.manual_seed(seed)
        return readable.run("triton", dropout=self.p)[0] > 0

    def case(self) -> Case:
        case = random_case(64, dim=64, kv_heads=1, groups=2)
        ones = torch.ones_like(case.adversary_q)
        return replace(case, adversary_q=ones, adversary_k=ones, allowed=None, q=case.q / 4)

    def test_share(self):
        kept = self.survivors(self.case(), 0).double()
        deviation = math.sqrt(self.p * (1 - self.p))
        assert abs(kept.mean() - (1 - self.p)) < 4 * deviation / math.sqrt(kept.numel())
        for dimension in range(4):  # no query, key, head or sequence is favoured
            means = kept.mean([d for d in range(4) if d != dimension])
            assert (means - (1 - self.p)).abs().max() < 5 * deviation * math.sqrt(len(means) / kept.numel())

    def test_decisions_are_independent(self):
        kept = self.survivors(self.case(), 0).double() - (1 - self.p)
        others = [kept.roll(1, d) for d in range(4)] + [
            self.survivors(self.case(), 1).double() - (1 - self.p)
        ]
        for other in others:
            correlation = (kept * other).mean() / (self.p * (1 - self.p))
            assert abs(correlation) < 5 / math.sqrt(kept.numel())

    @pytest.mark.parametrize("causal", [False, True])
    def test_gradients_given_the_same_decisions(self, monkeypatch, causal):
        case = random_case(64, kv_heads=1, groups=2, dim=64)
        survivors = self.survivors(self.case(), seed=5)  # of the same shape, so of the same decisions

        def decided(weights, p):
            return weights * survivors / (1 - p) if p else weights

        monkeypatch.setattr(attention.F, "dropout", decided)
        exact = Case(*(x.double() for x in arguments(case)[:5]), case.allowed)
        exact = exact.step(dropout=self.p, causal=causal)
        torch.manual_seed(5)
        ours = case.step(backend="triton", dropout=self.p, causal=causal)
        for name, error in errors(ours, exact).items():
            assert error < 2e-6, name

    def test_everything_dropped(self):
        assert_as_exact_as_the_reference(random_case(20), dropout=1.0)

    def test_off_draws_nothing(self):
        state = torch.random.get_rng_state()
        self.case().run("triton")
        assert torch.equal(torch.random.get_rng_state(), state)


def test_operator_is_what_torch_library_expects():
    """Schema, fake tensors and autograd registration: what torch.compile relies on."""
    from asa_mini.kernels.ops import attention as operator

    case = random_case(5, kv_heads=1)
    tensors = [x.to(DEVICE).transpose(1, 2).contiguous() for x in (case.q, case.k, case.v)]
    tensors += [case.adversary_q.to(DEVICE), case.adversary_k.to(DEVICE)]
    tensors = [x.requires_grad_() for x in tensors]
    key_mask = case.allowed[:, 0, 0].to(DEVICE)
    ends = torch.full((2,), 5, dtype=torch.int32, device=DEVICE)
    torch.library.opcheck(operator, (*tensors, key_mask, ends, None, True, 0.5, 0.0, 1.0))


def test_autocast_casts_as_for_pytorchs_own_attention():
    case = random_case(20)
    with torch.autocast(DEVICE, torch.bfloat16):
        output, *_ = asa_attention(*(x.to(DEVICE) for x in arguments(case)), backend="triton")
    assert output.dtype == torch.bfloat16
