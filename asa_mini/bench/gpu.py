"""What only a GPU can say of the kernels, in minutes: `make gpu`.

Each part runs in a process of its own: a kernel that hangs, or spoils the memory, takes only its part along.
"""

import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from unittest.mock import patch

from asa_mini.bench.attention import Case, compare, measure, of_tokens
from asa_mini.bench.measuring import compile_ahead, device
from asa_mini.bench.step import BERT_BASE, bench_step
from asa_mini.errors import AsaError, InputError
from asa_mini.train.files import write_json
from asa_mini.train.run_folder import environment

TESTS = Path(__file__).parents[2] / "tests" / "test_gpu.py"


def tests(record: Callable[[dict], None], file: Path = TESTS) -> None:
    """One row for each test that needs a GPU, with the numbers that it gives to `record_property`."""
    import pytest  # the other parts do without

    class Recorder:
        def pytest_runtest_logreport(self, report):
            if report.when == "call" or not report.passed:
                row = {"test": report.nodeid, "passed": report.passed, "output": report.longreprtext}
                record(row | dict(getattr(report, "user_properties", ())))

        pytest_collectreport = pytest_runtest_logreport  # of a file that cannot be imported

    if code := pytest.main(["-m", "gpu", str(file)], plugins=[Recorder()]):
        raise AsaError(f"pytest ended with {code!r}")


def tuned(case: Case, change: dict, timed: bool = True) -> dict:
    """`measure` the kernels with other tiles, {kernel: its tile}, or with other {"BLOCK_KEYS": number}."""
    from asa_mini.kernels import ops

    chosen, keys = ops.tile_sizes, change.get("BLOCK_KEYS", ops.BLOCK_KEYS)
    with patch.multiple(ops, BLOCK_KEYS=keys, tile_sizes=lambda q: chosen(q) | change):
        return measure("triton", case, timed)


def tiles(cases: Sequence[Case], block_keys: Sequence[int], sizes: Sequence[tuple]) -> Iterator[dict]:
    """The kernels as they are, and with one thing changed: BLOCK_KEYS, or the tile of one kernel."""
    from asa_mini.kernels.ops import tile_sizes

    changes = [{"BLOCK_KEYS": number} for number in block_keys]
    for name, tile in tile_sizes(cases[0].inputs()[0]).items():
        if tile["N"] > 1:  # else it has rows alone
            changes += [{name: tile | dict(M=m, N=n, num_warps=w, num_stages=s)} for m, n, w, s in sizes]
    compile_ahead(partial(tuned, cases[0], timed=False), changes)
    for case in cases:
        for change in ({}, *changes):
            yield {"length": case.length, "change": change} | tuned(case, change)


def each(rows: Callable[..., Iterator[dict]], *given, **options) -> Callable:
    """A part that records each of the rows."""
    return lambda record: [record(row) for row in rows(*given, **options)]


LENGTHS, TOKENS = (512, 1024, 2048, 4096, 8192), 16_384
BLOCK_KEYS = (128, 256, 1024, 2048, 4096)
SIZES = [(128, 128, 8, 2), (128, 64, 8, 2), (128, 64, 8, 3), (64, 128, 8, 1), (64, 128, 4, 2)]
SIZES += [(64, 64, 4, 2), (64, 64, 4, 1), (32, 128, 8, 2), (32, 64, 4, 2)]  # M, N, warps, stages
# In the order of their worth, with the seconds that each may take.
PARTS: dict[str, tuple[Callable, float]] = {
    "tests": (tests, 150),
    "attention": (each(compare, of_tokens(TOKENS, LENGTHS, (False, True), (0.0, 0.1))), 150),
    "step": (each(bench_step, BERT_BASE, (32, 32), (128, 512), 9, bf16=True), 60),
    "longest": (each(compare, [Case(1, 2**n) for n in range(11, 19)], timed=False), 45),
    "tiles": (each(tiles, of_tokens(TOKENS, (2048, 512, 8192)), BLOCK_KEYS, SIZES), 120),
    "flex": (each(compare, of_tokens(TOKENS, (512, 2048, 8192)), ("flash", "flex")), 60),
}


def bench_gpu(output_dir: Path, part: str | None = None, minutes: float = 8) -> int:
    """Run every part in a process of its own, while there is time; or one part, in this process.

    Writes OUTPUT_DIR/gpu_PART.json anew with every row: `rows`, and `error`, null if all went well. Returns
    the exit code: 1 if a part failed, was stopped, or had no time left.

    Raises:
        InputError: no NVIDIA GPU, or no such part.
    """
    if part and part not in PARTS:
        raise InputError(f"there is no part {part!r}; choose one of {', '.join(PARTS)}")
    if device() != "cuda":
        raise InputError("bench gpu needs an NVIDIA GPU, and PyTorch finds none here")
    output_dir.mkdir(parents=True, exist_ok=True)
    if part:
        return run_part(part, output_dir)
    end, ends = time.monotonic() + 60 * minutes, {}
    for name, (_, seconds) in PARTS.items():
        write(name, output_dir, [], "it has not begun")
        command = [sys.executable, "-m", "asa_mini", "bench", "gpu", "--part", name]
        left = min(seconds, end - time.monotonic())
        try:
            code = subprocess.run([*command, "--output_dir", output_dir], timeout=left).returncode
            ends[name] = "failed" if code else "complete"
        except subprocess.TimeoutExpired:
            ends[name] = "no time left"
    print("\n".join(f"{output_dir / f'gpu_{name}.json'}: {end}" for name, end in ends.items()))
    return int(set(ends.values()) != {"complete"})


def run_part(name: str, output_dir: Path) -> int:
    """The exit code of a part: 1 if it raises, if a row did not pass, or if our own kernels gave an error."""
    rows, error = [], None

    def record(row: dict) -> None:
        rows.append(row)
        write(name, output_dir, rows, "it has not ended")
        shown = (f"{key} {x}" for key, x in row.items() if isinstance(x, (str, int, float)))
        print(f"{name}: {', '.join(shown)}", flush=True)

    try:
        PARTS[name][0](record)
        if any(row.get("kind") == "triton" and row.get("error") for row in rows):
            raise AsaError("the kernels gave an error, see the rows")
    except Exception:
        error = traceback.format_exc()
    write(name, output_dir, rows, error)
    return int(bool(error))


def write(name: str, output_dir: Path, rows: list[dict], error: str | None) -> None:
    write_json(output_dir / f"gpu_{name}.json", environment() | {"error": error, "rows": rows})
