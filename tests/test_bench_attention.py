"""The attention bench compares like with like, and counts what it says it counts."""

import json

import pytest
import torch
from attention_cases import triton_only

from asa_mini.bench import attention as bench
from asa_mini.bench.step import bench_step
from asa_mini.cli import main
from asa_mini.errors import InputError

SHAPE = (2, 24, 2, 16, torch.float32)  # B, L, H, D


def gradients(kind):
    tensors = bench._inputs(*SHAPE)
    output, *kept = bench.KINDS[kind](*tensors)
    grads = [torch.linspace(-1, 1, output.numel()).reshape(output.shape), *map(torch.ones_like, kept[:1])]
    found = torch.autograd.grad([output, *kept[:1]], tensors, grads, allow_unused=True)
    return output, found


@pytest.mark.parametrize("kind", [pytest.param("triton", marks=triton_only), "float bias"])
def test_every_form_of_asa_computes_the_same(kind):
    """A form that computes less would look faster. flex_attention has no backward pass on a CPU."""
    output, ours = gradients(kind)
    expected, theirs = gradients("reference")
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * b.abs().max().item())


def test_plain_attention_knows_no_adversary():
    _, found = gradients("sdpa")
    assert [x is None for x in found] == [False, False, False, True, True]


@pytest.mark.parametrize(
    "kind, products",
    [("sdpa", 7), ("triton", 11)],
)
def test_counted_by_hand(kind, products):
    assert bench.counted(kind, 2, 100, 3, 32, 2)[0] == products * 2 * 2 * 100**2 * 96


def test_bytes_grow_as_they_should():
    def moved(kind, length):  # at the same number of tokens
        return bench.counted(kind, 4096 // length, length, 4, 32, 2)[1]

    assert moved("sdpa", 2048) == moved("sdpa", 512)
    assert moved("reference", 2048) > 3 * moved("reference", 512)
    assert moved("sdpa", 512) < moved("triton", 512) < moved("reference", 512)


def test_command_writes_the_table(tmp_path, capsys):
    output = tmp_path / "attention.json"
    shape = ["--length", "8", "16", "--tokens", "32", "--heads", "2", "--dim", "8", "--dtype", "float32"]
    assert main(["bench", "attention", *shape, "--output_file", str(output)]) == 0
    result = json.loads(output.read_text(encoding="utf-8"))
    kinds = tuple(bench.KINDS) if torch.cuda.is_available() else bench.CPU_KINDS
    assert [(row["length"], row["kind"]) for row in result["rows"]] == [
        (n, k) for n in (8, 16) for k in kinds
    ]
    assert [row["batch_size"] for row in result["rows"][:: len(kinds)]] == [4, 2]
    assert all(row["error"] is None and row["seconds"] > 0 for row in result["rows"])
    assert result["rows"][0]["ratio"] == 1 and result["machine"]["copy_bytes_per_s"] > 1e8
    assert result["heads"] == 2 and "device" in result
    printed = capsys.readouterr().out
    assert "float bias" in printed and "GB/s" in printed


def test_a_form_that_fails_is_named_in_the_table(monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("no such instruction\nand a long trace")

    monkeypatch.setitem(bench.KINDS, "flex", broken)
    result = bench.bench_attention([8], 8, 1, 8, "float32", ("sdpa", "flex"))
    bench.print_attention(result)
    assert result["rows"][1]["seconds"] is None
    assert capsys.readouterr().out.splitlines()[-1].split() == [
        "1",
        "8",
        "flex",
        "RuntimeError:",
        "no",
        "such",
        "instruction",
    ]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([64], 32, 2, 8, "float32"), "no length above --tokens"),
        (([0], 32, 2, 8, "float32"), "at least 1"),
        (([8], 32, 2, 8, "float64"), "float64.*dtypes: bfloat16, float16, float32"),
        (([8], 32, 2, 8, "float32", ["flash"]), "flash.*kinds: sdpa, triton"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        bench.bench_attention(*arguments)


def test_a_gpu_whose_launches_block_is_not_timed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    with pytest.raises(InputError, match=r"CUDA_LAUNCH_BLOCKING is set.*unset it"):
        bench.bench_attention([8], 8, 1, 8, "float32")
    with pytest.raises(InputError, match=r"CUDA_LAUNCH_BLOCKING is set.*unset it"):
        bench_step("default", [1], [8], 2)
