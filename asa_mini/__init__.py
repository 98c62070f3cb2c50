"""asa_mini: Adversarial Self-Attention (arXiv 2206.12608), small enough to read in an afternoon.

The method, in reading order: gradient_reversal, config, adversary, attention, heads, objective, hf, model.
Each imports only from those before it; attention also from kernels, where it is written again for a GPU.
Around it: train (a run, from data to folder), look (what trained models attend to), bench (what it costs),
cli. The exercises' checks, grading and notebook tools are another package, asa_classroom.

One set of letters everywhere::

    B batch   H heads   L length   D head dimension   E hidden size = H D   C classes
    An attention unit is one (query i, key j) cell of an L x L attention matrix.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# ruff: noqa: F401
if TYPE_CHECKING:  # for editors; see `__getattr__`
    from asa_mini.adversary import Adversary, keep_mask
    from asa_mini.attention import asa_attention
    from asa_mini.config import AsaConfig
    from asa_mini.errors import AsaError
    from asa_mini.gradient_reversal import reverse_gradient
    from asa_mini.model import AsaModel, wrap
    from asa_mini.objective import AsaOutput, asa_objective, symmetric_divergence

__version__ = "0.1.0"
HOMES = {
    "adversary": ("Adversary", "keep_mask"),
    "attention": ("asa_attention",),
    "config": ("AsaConfig",),
    "errors": ("AsaError",),
    "gradient_reversal": ("reverse_gradient",),
    "model": ("AsaModel", "wrap"),
    "objective": ("AsaOutput", "asa_objective", "symmetric_divergence"),
}
__all__ = [name for names in HOMES.values() for name in names]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: `asa-mini --help` need not wait for torch."""
    for home, names in HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"asa_mini.{home}"), name)
            return value
    raise AttributeError(f"module 'asa_mini' has no attribute {name!r}")
