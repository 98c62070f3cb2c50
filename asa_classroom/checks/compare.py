"""What several ladders need: comparing values, then gradients, and hints for errors that torch raises."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from asa_classroom.checks.harness import CheckFailed, _equal, attempt, fail, require, same


def hinted(hints: Mapping[str, str], run: Callable, *args: Any) -> Any:
    """Return `run(*args)`; where that raises CheckFailed, put a hint in front of its text.

    Args:
        hints: {part of the text: the first line to show}.
        run: `call` or `attempt`, with the student's function as its first argument.
    """
    try:
        return run(*args)
    except CheckFailed as error:
        for part, hint in hints.items():
            if part in str(error):
                fail(f"{hint}\n  {error}")
        raise


def compare(
    got: Any,
    right: Tensor,
    leaves: Mapping[str, Tensor],
    what: str,
    case: str,
    known: Mapping[str, Tensor],
    visible: Tensor | float = 1.0,
) -> None:
    """Compare a result, then the gradients that it sends to `leaves`; raise CheckFailed with a hint.

    Args:
        got: the student's result.
        right: the expected one, float64 for a tight comparison.
        leaves: {name: tensor that both were made from}; no gradient may arrive where `right` has none.
        what: the result's name in a student's terms; messages about a gradient say that it came from there.
        case: the input, in words.
        known: {hint: wrong result} made from `leaves`, so that its gradient is known as well.
        visible: factor that hides cells whose gradient nobody asked for.
    """
    tolerance = 1e-7 if right.dtype == torch.float64 else 1e-2  # 10000 times float32 rounding
    same(got, right, what, case, known, tolerance)
    require(got.requires_grad, f"{what} has no gradient: is it detached, or made by a comparison?")

    def gradients(y: Tensor, weight: Tensor) -> tuple[Tensor | None, ...]:
        y, asked = (y * weight).sum(), [*leaves.values()]
        return attempt(torch.autograd.grad, y, asked, retain_graph=True, allow_unused=True)

    probe = torch.randn_like(right) * visible
    invisible = [(h, y) for h, y in known.items() if y.requires_grad and _equal(y, right, tolerance)]
    wrong = {hint: gradients(y, probe) for hint, y in invisible}  # mistakes that the values do not show
    wrong["the arriving gradient is not used: multiply by it"] = gradients(right, torch.ones_like(right))
    rows = zip(leaves, gradients(got, probe), gradients(right, probe), strict=True)
    for n, (name, mine, true) in enumerate(rows):
        way = f"{name} from {what}"
        if true is None:
            require(mine is None, f"a gradient reaches {way}: it must be detached")
            continue
        require(mine is not None, f"no gradient reaches {way}: a detach or where() cuts it off")
        require(not mine.isnan().any(), f"the gradient of {way} is NaN: -inf or an overflow is on the way")
        hints = {hint: grads[n] for hint, grads in wrong.items() if grads[n] is not None}
        same(mine, true, f"the gradient of {way}", f"{case}; gradient of {way}", hints, tolerance)
