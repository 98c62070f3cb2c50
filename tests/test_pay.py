"""What the adversary is paid for: the units of all query rows, or of the real ones."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from attention_cases import close, every_backend, make, padding
from tiny import batch, tiny, wrapped

from asa_mini.adversary import keep_mask
from asa_mini.errors import InputError


@every_backend
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_real_units_are_counted_and_their_gradient_follows(backend, causal, padded):
    case, real = make(3, length=6), torch.ones(3, 6, dtype=torch.bool)
    if padded:
        case.allowed = padding(3, 6, seed=2)
        real = case.allowed[:, 0, 0]
    leaves = {name: getattr(case, name).clone().requires_grad_() for name in ("adversary_q", "adversary_k")}
    options = dict(backend=backend, causal=causal, pay_over="real_units")
    _, kept, units = replace(case, **leaves).run(**options)

    seen = real[:, None].expand(3, 6, 6)
    seen = seen.tril() if causal else seen
    rows = 128 * real.double() / real.sum(1, keepdim=True)  # (B, L), by its definition
    expected = ((keep_mask(*leaves.values()) * seen).sum(2) * rows).sum(1)
    close(kept, expected, backend)
    close(units, (seen.sum(2) * rows).sum(1).to(units), backend)
    found, wanted = (torch.autograd.grad(x.sum(), leaves.values()) for x in (kept, expected))
    for ours, theirs in zip(found, wanted, strict=True):
        close(ours, theirs, backend)
    assert wanted[0].any() and not found[0][~real].any()


@pytest.mark.parametrize("family", ["bert", "modernbert"])  # the latter has masks with a row for each query
def test_more_padding_changes_the_pay_of_all_rows_alone(family):
    inputs = batch()
    longer = inputs | {name: F.pad(inputs[name], (0, 5)) for name in ("input_ids", "attention_mask")}
    for pay_over, same in (("real_units", True), ("all_rows", False)):
        model = wrapped(tiny(family), pay_over=pay_over)
        a, b = model(**inputs), model(**longer)
        assert torch.allclose(a.kept_units, b.kept_units) == same
        assert a.kept_units <= 2 * 128 * inputs["attention_mask"].sum() / 4 or not same


def test_an_unknown_pay_is_refused():
    with pytest.raises(InputError, match="pay_over must be one of all_rows, real_units, but is 'units'"):
        make().run(pay_over="units")
