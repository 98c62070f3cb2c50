"""The gradient reversal layer against its definition: R(x) = x, dR/dx := -scale."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.gradcheck import GradcheckError

from asa_mini.gradient_reversal import reverse_gradient


def double(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


def smooth(x: torch.Tensor) -> torch.Tensor:
    """Any scalar function whose gradient differs from entry to entry."""
    return (x.sin() * x.exp()).sum()


def finite_difference(function, x: torch.Tensor, step: float = 1e-6) -> torch.Tensor:
    """Central differences of a scalar `function`, one entry of `x` at a time; same shape as `x`."""
    x = x.detach()
    slopes = torch.empty_like(x)
    for i in range(x.numel()):
        nudge = torch.zeros_like(x)
        nudge.view(-1)[i] = step
        slopes.view(-1)[i] = (function(x + nudge) - function(x - nudge)) / (2 * step)
    return slopes


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (1,), (3, 4), (2, 0), (2, 3, 5)])
def test_forward_is_the_identity_to_the_bit(dtype, shape):
    x = torch.randn(shape).to(dtype)
    y = reverse_gradient(x, scale=0.7)
    assert y.dtype == dtype and y.shape == x.shape
    assert torch.equal(y, x)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), -0.0])
def test_forward_keeps_special_values(value):
    x = torch.tensor([value])
    assert torch.equal(reverse_gradient(x).view(torch.int32), x.view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_gradient_keeps_the_dtype(dtype):
    x = torch.ones(3, dtype=dtype, requires_grad=True)
    reverse_gradient(x).sum().backward()
    assert x.grad.dtype == dtype
    assert torch.equal(x.grad, -torch.ones_like(x))


def test_default_scale_only_flips_the_sign():
    x = double(3, 4)
    (plain,) = torch.autograd.grad(smooth(x), x)
    (reversed_,) = torch.autograd.grad(smooth(reverse_gradient(x)), x)
    assert torch.equal(reversed_, -plain)


@settings(deadline=None)  # the first backward pass of a process is slow
@given(scale=st.floats(min_value=-1e6, max_value=1e6, allow_subnormal=False))
def test_gradient_is_minus_scale_times_the_plain_one(scale):
    x = double(4)
    (plain,) = torch.autograd.grad(smooth(x), x)
    (reversed_,) = torch.autograd.grad(smooth(reverse_gradient(x, scale)), x)
    torch.testing.assert_close(reversed_, -scale * plain, rtol=0, atol=0)


@pytest.mark.parametrize("scale", [1.0, 0.3, 0.0, -2.0])
def test_gradient_against_finite_differences(scale):
    # The layer lies about its derivative: forward, where the numeric slope comes from, scale has no effect.
    x = double(3, 2)
    numeric = finite_difference(lambda value: smooth(reverse_gradient(value, scale)), x)
    (reported,) = torch.autograd.grad(smooth(reverse_gradient(x, scale)), x)
    torch.testing.assert_close(reported, -scale * numeric, rtol=1e-6, atol=1e-8)


def test_gradcheck_sees_the_lie_of_one_layer_and_passes_two():
    x = double(3, 2)
    with pytest.raises(GradcheckError):
        torch.autograd.gradcheck(lambda value: smooth(reverse_gradient(value)), x)
    assert torch.autograd.gradcheck(
        lambda value: smooth(reverse_gradient(reverse_gradient(value, 4.0), 0.25)), x
    )


def test_nested_layers_multiply():
    x = double(5)
    (plain,) = torch.autograd.grad(smooth(x), x)
    y = reverse_gradient(reverse_gradient(reverse_gradient(x, 2.0), 3.0), 0.5)
    (reversed_,) = torch.autograd.grad(smooth(y), x)
    torch.testing.assert_close(reversed_, -3.0 * plain)


def test_scale_zero_gives_a_zero_gradient_not_a_missing_one():
    x = double(3)
    smooth(reverse_gradient(x, 0.0)).backward()
    assert x.grad is not None and torch.count_nonzero(x.grad) == 0


def test_only_the_reversed_branch_is_reversed():
    x, w = double(3), double(3)
    (w * reverse_gradient(x) + x).sum().backward()
    torch.testing.assert_close(w.grad, x.detach())
    torch.testing.assert_close(x.grad, 1 - w.detach())


def test_non_contiguous_input():
    x = double(3, 4)
    (grad,) = torch.autograd.grad((reverse_gradient(x.t()) ** 2).sum(), x)
    torch.testing.assert_close(grad, -2 * x)


def test_no_graph_without_gradients():
    x = double(2)
    with torch.no_grad():
        y = reverse_gradient(x)
    assert y.grad_fn is None
    assert not reverse_gradient(torch.ones(2)).requires_grad


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_a_graph_break(backend):
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: smooth(reverse_gradient(x, 0.5) * 2), backend=backend, fullgraph=True)
    x = double(4)
    (expected,) = torch.autograd.grad(smooth(reverse_gradient(x, 0.5) * 2), x)
    value = compiled(x)
    (got,) = torch.autograd.grad(value, x)
    torch.testing.assert_close(value, smooth(2 * x))
    torch.testing.assert_close(got, expected)


def test_survives_gradient_checkpointing():
    x = double(4)
    (expected,) = torch.autograd.grad(smooth(reverse_gradient(x)), x)
    y = torch.utils.checkpoint.checkpoint(
        lambda value: smooth(reverse_gradient(value)), x, use_reentrant=False
    )
    (got,) = torch.autograd.grad(y, x)
    torch.testing.assert_close(got, expected)


def test_one_backward_pass_trains_both_sides_of_a_game():
    # f(theta, eta) = theta * eta + theta^2 / 2 - eta^2 / 2, by hand at (1, 2): df/dtheta = 3, df/deta = -1.
    def game(theta, eta):
        return theta * eta + theta**2 / 2 - eta**2 / 2

    theta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    eta = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    game(theta, reverse_gradient(eta)).backward()
    torch.optim.SGD([theta, eta], lr=0.1).step()
    assert theta.item() == pytest.approx(1 - 0.1 * 3)
    assert eta.item() == pytest.approx(2 + 0.1 * -1)
    start = game(torch.tensor(1.0), torch.tensor(2.0))
    assert game(theta, torch.tensor(2.0)) < start < game(torch.tensor(1.0), eta)
