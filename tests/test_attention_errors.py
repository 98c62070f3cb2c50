"""What `asa_attention` refuses, and what it says; and which backend computes what."""

import re
import sys
from dataclasses import replace

import pytest
import torch
from attention_cases import arguments, make, triton_only

from asa_mini import asa_attention, attention
from asa_mini.attention import choose_backend
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


FITS = dict(capability=(8, 0), dtypes={torch.bfloat16}, dims={64})
# What the kernels cannot do: the fact, a call that has it, and what is said.
CANNOT = [
    (
        dict(dtypes={torch.float64}),
        dict(dtype=torch.float64),
        r"float16, torch.bfloat16, torch.float32\), .*not \['torch.float64'\]",
    ),
    (
        dict(dtypes={torch.float32, torch.float16}),
        dict(v=torch.zeros(2, 2, 5, 3, dtype=torch.float16)),
        "the same for all inputs.*float16', 'torch.float32",
    ),
    (
        dict(dims={64, 65}),
        dict(v=torch.zeros(2, 2, 5, 4)),
        r"one dimension for queries and values.*not \[\d+, \d+\]",
    ),
    (dict(dims={144}), dict(dim=144), r"up to 128, not \[144\]"),
    (
        dict(mask_rows=5),
        dict(allowed=torch.ones(2, 1, 5, 5, dtype=torch.bool)),
        "padding and causal masks alone",
    ),
    (
        dict(sequences=80_000),
        dict(batch=40_000, length=1, dim=1, width=1),
        "65535 .*at once, not 80000.*smaller",
    ),
]


@triton_only
@pytest.mark.parametrize("fact, call, message", CANNOT, ids=lambda x: x if isinstance(x, str) else "")
def test_what_the_kernels_cannot_do(caplog, fact, call, message):
    """Asked for by name it is refused; left to "auto" it goes to the reference, and on a GPU it says so."""
    attention.logger.warning_once.cache_clear()
    assert choose_backend("auto", **FITS | fact | dict(capability=None)) == "reference"
    assert not caplog.records  # nothing faster was to be had
    for _ in range(2):
        assert choose_backend("auto", **FITS | fact) == "reference"
    (said,) = caplog.messages
    assert re.search(f"reference computes attention, slowly: backend='triton' .*{message}", said)

    message += ".*backend='reference' works everywhere"
    with pytest.raises(InputError, match=message):
        choose_backend("triton", **FITS | fact)
    shape = {name: x for name, x in call.items() if not isinstance(x, torch.Tensor)}
    case = replace(
        make(**{"dtype": torch.float32} | shape), **{n: call[n] for n in call.keys() - shape.keys()}
    )
    with pytest.raises(InputError, match=message):
        asa_attention(*arguments(case), backend="triton")


@triton_only
def test_auto():
    assert choose_backend("auto", **FITS) == choose_backend("triton", **FITS) == "triton"
    assert choose_backend("reference", **FITS) == "reference"
    assert choose_backend("auto", **FITS | dict(capability=None)) == "reference"


@triton_only
def test_a_gpu_that_is_too_old():
    with pytest.raises(InputError, match=r"capability \(8, 0\) .*, not \(7, 5\); backend='reference'"):
        choose_backend("triton", **FITS | dict(capability=(7, 5)))
    assert choose_backend("auto", **FITS | dict(capability=(7, 5))) == "reference"


@triton_only
def test_no_gpu_and_no_interpreter(monkeypatch):
    from asa_mini import kernels

    monkeypatch.setattr(kernels, "INTERPRETED", False)
    with pytest.raises(InputError, match=r"needs an NVIDIA GPU.*TRITON_INTERPRET=1"):
        asa_attention(*arguments(make(dtype=torch.float32)), backend="triton")


def test_no_triton(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("asa_mini.kernels")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(InputError, match=r"triton package.*asa_mini\[gpu\].*'reference' works everywhere"):
        asa_attention(*arguments(make(dtype=torch.float32)), backend="triton")
    assert choose_backend("auto", **FITS) == "reference"
