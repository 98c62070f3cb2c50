"""`bench gpu` keeps what it measured, whatever happens; here its parts run tiny, interpreted on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import test_gpu
from attention_cases import triton_only

from asa_mini.bench import attention, gpu, measuring
from asa_mini.bench.attention import Case
from asa_mini.cli import main

ROOT = Path(__file__).parents[1]
TINY = Case(1, 20, 1, 8)


@pytest.fixture
def part(monkeypatch, tmp_path):
    """part(run): the exit code of a part that is `run`, as if there were a GPU, and what its file holds."""

    def part(run):
        monkeypatch.setattr(gpu, "device", lambda: "cuda")
        monkeypatch.setitem(gpu.PARTS, "some", (run, 10))
        code = main(["bench", "gpu", "--part", "some", "--output_dir", str(tmp_path / "new")])
        return code, json.loads((tmp_path / "new" / "gpu_some.json").read_text(encoding="utf-8"))

    return part


def faulty(fault):
    """The reference, with a fault, in place of the kernels."""

    def attend(*inputs, dropout=0.0):
        output, *kept = attention.KINDS["reference"](*inputs, dropout=dropout)
        return fault(output), *kept

    return attend


@triton_only
def test_table_part(part):
    code, result = part(gpu.each(attention.compare, [TINY], attention.GPU_KINDS, timed=False))
    assert (code, result["error"]) == (0, None) and {"device", "date", "command"} <= result.keys()
    assert [row["kind"] for row in result["rows"]] == list(attention.GPU_KINDS)
    assert [row["kind"] for row in result["rows"] if "error" in row] == ["cuDNN"]  # which knows no CPU


def test_an_error_of_our_own_kernels_fails_the_part(part, monkeypatch):
    monkeypatch.setitem(attention.KINDS, "triton", faulty(lambda output: 1 / 0))
    code, result = part(gpu.each(attention.compare, [TINY], ("triton", "flash"), timed=False))
    assert code == 1 and "the kernels gave an error" in result["error"]
    assert [row.get("error") for row in result["rows"]] == ["ZeroDivisionError: division by zero", None]


@triton_only
def test_tiles_part_measures_each_change(part, monkeypatch):
    from asa_mini.kernels import ops

    def measure(kind, case, timed):
        tiles = ops.tile_sizes(case.inputs()[0])
        return {
            "seen": [ops.BLOCK_KEYS, *(tile["M"] for name, tile in tiles.items() if name != "BLOCK_KEYS")]
        }

    monkeypatch.setattr(gpu, "measure", measure)
    code, result = part(gpu.each(gpu.tiles, [TINY], [128], [(8, 32, 4, 1)]))
    usual, blocks, *tiles = (row["seen"] for row in result["rows"])
    assert code == 0 and blocks == [128, *usual[1:]] and len(tiles) == 5  # delta has rows alone
    differing = [[b for a, b in zip(usual, row, strict=True) if a != b] for row in tiles]
    assert differing == [[8]] * 5 and result["rows"][1]["change"] == {"BLOCK_KEYS": 128}


def test_tests_part(part, tmp_path):
    body = "import pytest\npytestmark = pytest.mark.gpu\n"
    body += "def test_a(record_property): record_property('errors', 3)\ndef test_b(): assert False"
    (tmp_path / "test_gpu_some.py").write_text(body, "utf-8")
    code, result = part(lambda record: gpu.tests(record, tmp_path / "test_gpu_some.py"))
    good, bad = result["rows"]
    assert (code, good["passed"], good["errors"], bad["passed"]) == (1, True, 3, False)
    assert "assert False" in bad["output"] and "TESTS_FAILED" in result["error"]


def test_tests_that_cannot_be_imported(part, tmp_path):
    (tmp_path / "test_gpu_other.py").write_text("import no_such_package", "utf-8")
    code, result = part(lambda record: gpu.tests(record, tmp_path / "test_gpu_other.py"))
    assert code == 1 and "No module named 'no_such_package'" in result["rows"][0]["output"]


@triton_only
def test_the_tests_of_a_gpu_find_wrong_kernels(monkeypatch):
    cases = Case(1, 20, 2, 8, "float32"), Case(2, 33, 2, 8, padded=True)
    errors = {}
    for case in cases:
        test_gpu.test_as_exact_as_the_reference(case, errors.__setitem__)
    assert list(errors["errors"]["triton"]) == list(test_gpu.NAMES)
    test_gpu.test_pytorchs_own_gradients_are_finite(cases[1])
    for fault in (lambda output: 1.1 * output, lambda output: output / 0):
        monkeypatch.setitem(attention.KINDS, "triton", faulty(fault))
        for case in cases:
            with pytest.raises(AssertionError):
                test_gpu.test_as_exact_as_the_reference(case, errors.__setitem__)
    count = iter(range(100))
    monkeypatch.setattr(test_gpu, "POISON", 100)
    monkeypatch.setitem(attention.KINDS, "triton", faulty(lambda output: output + next(count) // 10))
    with pytest.raises(AssertionError, match="output"):  # it is another at the last time
        test_gpu.test_the_same_bits_ten_times(cases[0])


def test_a_part_that_stops_keeps_its_rows(part, tmp_path, monkeypatch):
    def rows():
        yield {"ms": 1.5}
        stored = json.loads((tmp_path / "new" / "gpu_some.json").read_text(encoding="utf-8"))
        assert (stored["rows"], stored["error"]) == ([{"ms": 1.5}], "it has not ended")
        raise RuntimeError("no more")

    code, result = part(gpu.each(rows))
    assert (code, result["rows"]) == (1, [{"ms": 1.5}]) and "RuntimeError: no more" in result["error"]


def test_every_part_is_tried_in_its_time(monkeypatch, tmp_path, capsys):
    """The first fails, the second is stopped, the third is complete, for the fourth there is no time."""
    now, limits = [0.0], {}

    def run(command, timeout):
        name = command[command.index("--part") + 1]
        limits[name], seconds = timeout, {"c": 30, "d": 30}.get(name, 100)
        now[0] += min(seconds, max(timeout, 0))
        if seconds > timeout:
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, int(name == "a"))

    monkeypatch.setattr(gpu, "device", lambda: "cuda")
    monkeypatch.setattr(gpu, "PARTS", {"a": (None, 120), "b": (None, 50), "c": (None, 50), "d": (None, 50)})
    monkeypatch.setattr(gpu.subprocess, "run", run)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now[0])
    assert gpu.bench_gpu(tmp_path, minutes=3) == 1
    assert limits == {"a": 120, "b": 50, "c": 30, "d": 0}
    ends = [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()]
    assert ends == ["failed", "no time left", "complete", "no time left"]
    assert json.loads((tmp_path / "gpu_d.json").read_text("utf-8"))["error"] == "it has not begun"
    monkeypatch.setattr(
        gpu.subprocess, "run", lambda command, timeout: subprocess.CompletedProcess(command, 0)
    )
    assert gpu.bench_gpu(tmp_path) == 0


def test_compiling_ahead_takes_every_choice(monkeypatch, tmp_path):
    monkeypatch.setattr(measuring, "device", lambda: "cuda")
    measuring.compile_ahead(os.mkdir, [tmp_path / "a", tmp_path / "b", tmp_path / "a"])
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_no_such_part(refused):
    line = refused(main(["bench", "gpu", "--part", "smoke"]))
    assert "no part 'smoke'; choose one of tests, attention" in line


def test_torch_triton_and_transformers_are_enough(tmp_path):
    """What a machine for measuring may lack is set to None, which makes its import fail."""
    script = """if True:
        import sys
        for name in ("datasets", "dill", "multiprocess", "scipy", "sklearn", "accelerate", "pandas"):
            sys.modules[name] = None
        sys.path.insert(0, "tests")
        import conftest, test_gpu
        from asa_mini.cli import main
        sys.exit(main(["bench", "gpu"]))
    """
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    needs = "asa_mini: error: bench gpu needs an NVIDIA GPU, and PyTorch finds none here\n"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(needs)  # torch 2.11 says before it that there is no CUDA
