"""What the checks of exercises 06 see of an interpreted kernel: every address that it touches."""

import linecache

import pytest
import torch

from asa_classroom.checks import CheckFailed
from asa_classroom.checks.gpu_attention import vector_add

triton = pytest.importorskip("triton", reason="it exists for Linux alone")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="nobody can watch a compiled kernel")

CELL = """
@triton.jit
def add_kernel(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    {}

def vector_add(x, y, out, block=16):
    add_kernel[(triton.cdiv(len(x), block),)](x, y, out, len(x), BLOCK=block)
"""
SUM = "tl.load(x + i, mask=i < n) + tl.load(y + i, mask=i < n)"


def cell(line):
    """The variables that a cell with this kernel defines; triton.jit reads its source."""
    source, variables = CELL.format(line), {"triton": triton, "tl": triton.language}
    linecache.cache["<cell>"] = len(source), None, source.splitlines(keepends=True), "<cell>"
    exec(compile(source, "<cell>", "exec"), variables)
    return variables


def test_a_kernel_that_minds_its_edges_passes(capsys):
    vector_add(cell(f"tl.store(out + i, {SUM}, mask=i < n)")["vector_add"])
    assert "passed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "tl.store(out + i, tl.load(x + i) + tl.load(y + i), mask=i < n)",
            "a tl.load reads outside its tensor",
        ),
        (f"tl.store(out + i, {SUM})", "a tl.store writes outside its tensor"),
        (f"tl.store(x + i, {SUM}, mask=i < n)", "the kernel writes into its inputs"),
        (f"tl.store(out + i, {SUM}, mask=i < n - 1)", "1 of 20 numbers of `out` were never written"),
        (
            f"tl.store(out + i, {SUM.replace('n)', 'n - 1)')}, mask=i < n)",
            "the result uses places that a tl.load",
        ),
        ("out[i] = x[i] + y[i]", r"a tensor is an address here: read with tl\.load"),
        (
            "tl.store(out + i, tl.load(x + i, mask=i < n).exp(), mask=i < n)",
            r"in a kernel write tl\.exp\(s\)",
        ),
        ("raise NotImplementedError()", r"not finished yet\. Complete `add_kernel`"),
    ],
)
def test_a_kernel_that_touches_what_it_should_not_is_told(line, message):
    with pytest.raises(CheckFailed, match=message):
        vector_add(cell(line)["vector_add"])


def test_the_check_takes_the_launcher():
    with pytest.raises(CheckFailed, match="the check takes the launcher, the second function of the cell"):
        vector_add(cell(f"tl.store(out + i, {SUM}, mask=i < n)")["add_kernel"])
