"""What `asa_attention` refuses, and what it says; the refusals of the kernels are in test_kernels."""

from dataclasses import replace

import pytest
import torch
from attention_cases import make

from asa_mini.errors import InputError


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
    with pytest.raises(InputError, match=r"unknown attention backend 'flash'.*auto, reference, triton"):
        make().run(backend="flash")
