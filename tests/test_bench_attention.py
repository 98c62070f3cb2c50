"""The attention bench compares like with like, and counts what it says it counts."""

import json

import pytest
import torch
from attention_cases import triton_only

from asa_mini.bench import attention as bench
from asa_mini.bench.attention import Case, of_tokens
from asa_mini.bench.measuring import print_rows
from asa_mini.bench.step import bench_step
from asa_mini.cli import main
from asa_mini.errors import InputError


def step(kind, padded):
    inputs = Case(2, 24, 2, 16, "float32", padded).inputs()
    return bench.step(kind, inputs, torch.linspace(-1, 1, inputs[0].numel()).reshape(inputs[0].shape))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", [pytest.param("triton", marks=triton_only), "float bias"])
def test_every_form_of_asa_computes_the_same(kind, padded):
    """A form that computes less would look faster. flex_attention has no backward pass on a CPU."""
    output, *ours = step(kind, padded)
    expected, *theirs = step("reference", padded)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * b.abs().max().item())


def test_plain_attention_knows_no_adversary():
    assert len(step("flash", False)) == 1 + 3 and len(step("reference", False)) == 2 + 5


def test_padded_sequences_have_half_to_all_of_their_tokens():
    *_, allowed = Case(3, 8, 1, 4, padded=True).inputs()
    assert allowed.shape == (3, 1, 1, 8) and allowed.sum((1, 2, 3)).tolist() == [4, 6, 8]
    assert Case(3, 8, 1, 4).inputs()[-1] is None


@pytest.mark.parametrize(
    "kind, products",
    [("flash", 7), ("cuDNN", 7), ("triton", 11)],
)
def test_counted_by_hand(kind, products):
    assert bench.counted(kind, 2, 100, 3, 32, 2)[0] == products * 2 * 2 * 100**2 * 96


def test_bytes_grow_as_they_should():
    def moved(kind, length):  # at the same number of tokens
        return bench.counted(kind, 4096 // length, length, 4, 32, 2)[1]

    assert moved("flash", 2048) == moved("flash", 512)
    assert moved("reference", 2048) > 3 * moved("reference", 512)
    assert moved("flash", 512) < moved("triton", 512) < moved("reference", 512)


def test_command_writes_the_table(tmp_path, capsys):
    output = tmp_path / "attention.json"
    shape = ["--length", "8", "16", "--tokens", "32", "--heads", "2", "--dim", "8", "--dtype", "float32"]
    assert main(["bench", "attention", *shape, "--output_file", str(output)]) == 0
    result = json.loads(output.read_text(encoding="utf-8"))
    kinds = bench.GPU_KINDS if torch.cuda.is_available() else bench.CPU_KINDS
    rows = result["rows"]
    assert [(row["length"], row["kind"]) for row in rows] == [(n, kind) for n in (8, 16) for kind in kinds]
    assert [row["batch_size"] for row in rows[:: len(kinds)]] == [4, 2] and rows[0]["heads"] == 2
    assert all("error" not in row and row["seconds"] > 0 for row in rows) and "device" in result
    flash, other = rows[0], rows[len(kinds) - 1]
    assert flash["to_flash"] == 1 and other["to_flash"] == other["seconds"] / flash["seconds"]
    assert "float bias" in capsys.readouterr().out


def test_a_form_that_fails_is_named_in_the_table(monkeypatch, capsys):
    def broken(*_, **options):
        raise RuntimeError("no such instruction\nand a long trace")

    monkeypatch.setitem(bench.KINDS, "flex", broken)
    rows = list(bench.compare([Case(1, 8, 1, 8, "float32")], ("flash", "flex")))
    assert "seconds" not in rows[1] and rows[1]["error"] == "RuntimeError: no such instruction"
    print_rows(rows, seconds=".5f", error="")
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert last == ["1", "8", "flex", "RuntimeError:", "no", "such", "instruction"]


@pytest.mark.parametrize(
    "tokens, lengths, shape, message",
    [
        (32, [64], {}, "no length above --tokens"),
        (32, [0], {}, "at least 1"),
        (32, [8], {"heads": 0}, "at least 1"),
    ],
)
def test_bad_arguments(tokens, lengths, shape, message):
    with pytest.raises(InputError, match=message):
        of_tokens(tokens, lengths, **shape)


def test_a_gpu_whose_launches_block_is_not_timed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    with pytest.raises(InputError, match=r"CUDA_LAUNCH_BLOCKING is set.*unset it"):
        list(bench.compare([Case(1, 8, 1, 8)]))
    with pytest.raises(InputError, match=r"CUDA_LAUNCH_BLOCKING is set.*unset it"):
        list(bench_step("default", [1], [8], 2))
