"""AsaConfig: the options of Adversarial Self-Attention, and the reasons for their defaults."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from numbers import Real
from typing import Literal, get_args, get_origin

from asa_mini.errors import InputError

Backend = Literal["auto", "reference", "triton"]
BACKENDS: tuple[str, ...] = get_args(Backend)
Paid = Literal["all_rows", "real_units"]
PAID: tuple[str, ...] = get_args(Paid)


@dataclass
class AsaConfig:
    """Options of Adversarial Self-Attention; the defaults are the authors'.

    Args:
        temperature: tau, how much the adversary is paid for each unit it keeps (tau^2).
        alpha: weight of the divergence between the clean and the adversarial prediction.
        layers: indices of the attacked layers, counted from 0 (default: all). With no layer attacked,
            `layers=()`, two dropout passes and the divergence remain: the R-Drop control.
        gradient_reversal_scale: strength of the reversal in front of the adversaries.
        joint_pass: run the clean and the adversarial half as one batch of 2B; False runs them one after the
            other. The result is the same.
        divergence_over: how the divergence of predictions for each token is counted. "all_tokens": their sum,
            padding included, over the batch size; "real_tokens": their mean over the tokens that are no
            padding, so that neither padding nor length matters.
        regression_likelihood: by which the divergence compares scores. "batch_softmax": a softmax across the
            batch, so each with its neighbours; "gaussian": half the squared difference, as the squared error
            of the task is a Gaussian's likelihood.
        pay_over: units that the adversary is paid for, see `asa_attention`. "all_rows": of padded queries,
            too, so that padding changes what a temperature does; "real_units": of real tokens alone, 128 rows
            for each sequence whatever its length, as many as the authors pad it to.
        backend: attention backend, see `choose_backend`; `AsaModel.asa_backend` and the log say which it is.

    Raises:
        InputError: a value cannot be used.
    """

    temperature: float = 0.5  # of their GLUE runs, in which 128 rows are paid for, padding included
    alpha: float = 1.0  # they add the divergence as it is
    layers: list[int] | None = None  # they attack all; a part is cheaper, and gains less
    gradient_reversal_scale: float = 1.0  # theirs; the adversaries' learning rate is the better handle
    joint_pass: bool = True  # feeds the device better than two passes
    divergence_over: Literal["all_tokens", "real_tokens"] = "all_tokens"  # theirs; grows with the length
    regression_likelihood: Literal["batch_softmax", "gaussian"] = "batch_softmax"  # theirs
    pay_over: Paid = "all_rows"  # theirs
    backend: Backend = "auto"  # the fastest that can compute it

    def __post_init__(self):
        for name in ("temperature", "alpha", "gradient_reversal_scale"):
            value = getattr(self, name)
            number = isinstance(value, Real) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value < 0:
                raise InputError(f"{name} must be a finite number >= 0, but is {value!r}")
        if not isinstance(self.joint_pass, bool):
            raise InputError(f"joint_pass must be True or False, but is {self.joint_pass!r}")
        for option in fields(self):
            value, choices = getattr(self, option.name), get_args(option.type)
            if get_origin(option.type) is Literal and value not in choices:
                raise InputError(f"{option.name} must be one of {', '.join(choices)}, but is {value!r}")
        if self.layers is None:
            return
        if not isinstance(self.layers, Iterable) or isinstance(self.layers, str):
            raise InputError(f"layers must be a list of layer indices, but is {self.layers!r}")
        self.layers = list(self.layers)
        if not all(type(layer) is int and layer >= 0 for layer in self.layers):
            raise InputError(f"layers must be indices counted from 0, but are {self.layers}")
        if len(set(self.layers)) < len(self.layers):
            raise InputError(f"a layer is attacked once, but layers are {self.layers}")
