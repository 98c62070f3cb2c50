"""The bench measures what it says; how fast a machine is, no test can know."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from asa_mini.bench import measuring
from asa_mini.bench import step as bench
from asa_mini.cli import main
from asa_mini.errors import InputError
from asa_mini.model import AsaModel


def test_every_kind_takes_a_real_step(model_folder):
    for kind in bench.KINDS:
        step = bench.Step(kind, model_folder)
        assert isinstance(step.model, AsaModel) == (kind != "plain")
        assert step.model.training
        before = [p.detach().clone() for p in step.model.parameters()]
        step(bench._batch(3, 8, step.model))
        moved = [not torch.equal(a, b) for a, b in zip(before, step.model.parameters(), strict=True)]
        assert all(moved[-3:]) and sum(moved) > len(moved) / 2


def test_batch_is_padded_like_a_real_one(model_folder):
    mask = bench._batch(4, 8, bench.Step("plain", model_folder).model)["attention_mask"]
    assert mask.sum(1).tolist() == [4, 6, 7, 8]


def test_command_writes_the_table(model_folder, tmp_path, capsys, monkeypatch):
    # Four processes that import torch would be a long test of multiprocessing.
    monkeypatch.setattr(bench, "_peak_memory_of", lambda *_: 1.5)
    output = tmp_path / "bench.json"
    options = ["--batch-size", "2", "--length", "8", "--repeats", "2", "--output_file", str(output)]
    assert main(["bench", "step", "--model_name_or_path", model_folder, *options]) == 0
    rows = json.loads(output.read_text(encoding="utf-8"))["rows"]
    assert [row["kind"] for row in rows] == list(bench.KINDS)
    assert rows[0]["ratio"] == 1
    assert all(row["seconds"] > 0 and row["ratio_low"] <= row["ratio"] <= row["ratio_high"] for row in rows)
    assert "sequential" in capsys.readouterr().out


def test_windows_counts_its_peak_itself(monkeypatch):
    """There is no `resource` there, and psutil's memory_info has a peak that Linux's lacks."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=2**20, peak_wset=5 * 2**20))
    monkeypatch.setattr(measuring.psutil, "Process", lambda: process)
    assert measuring.peak_mib(lambda: None) == 4


def test_peak_memory_counts_the_activations(model_folder):
    small = bench._peak_memory("plain", model_folder, 1, 2, False, 1)
    large = bench._peak_memory("plain", model_folder, 1500, 40, False, 1)
    assert large > small + 50  # MiB; the tensors of one layer alone are larger


@pytest.mark.parametrize(
    ("sizes", "lengths", "repeats", "message"),
    [
        ([1, 2], [8], 3, "2 batch sizes but 1 lengths"),
        ([0], [8], 3, "at least 1"),
        ([1], [8], 1, "repeats at least 2"),
        ([1], [41], 2, "longer than the model's 40 positions"),
    ],
)
def test_bad_arguments(model_folder, sizes, lengths, repeats, message):
    with pytest.raises(InputError, match=message):
        list(bench.bench_step(model_folder, sizes, lengths, repeats))
