"""asa_mini: Adversarial Self-Attention (arXiv 2206.12608), small enough to read in an afternoon.

Read the modules in this order: gradient_reversal, adversary, attention, objective, wrap, data, training; then
analysis, kinds, attribution and baselines, which look into trained models; then kernels, which is attention
again, for a GPU.

The classroom is apart: checks (of the exercises, one module for each notebook), exercises, which makes the
students' notebooks from the solutions, publishing, and grading.

One set of letters everywhere:
    B batch   H heads   L length   D head dimension   E hidden size = H D   C classes
    An attention unit is one (query i, key j) cell of an L x L attention matrix.
"""

from asa_mini.adversary import Adversary, keep_mask
from asa_mini.attention import asa_attention
from asa_mini.errors import AsaError
from asa_mini.gradient_reversal import reverse_gradient
from asa_mini.objective import AsaOutput, asa_objective, symmetric_divergence
from asa_mini.wrap import AsaConfig, AsaModel, wrap

__version__ = "0.1.0"

__all__ = [
    "Adversary",
    "AsaConfig",
    "AsaError",
    "AsaModel",
    "AsaOutput",
    "asa_attention",
    "asa_objective",
    "keep_mask",
    "reverse_gradient",
    "symmetric_divergence",
    "wrap",
]
