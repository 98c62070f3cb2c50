"""What the benchmarks share: when a timing may be trusted, time, memory, and the table that they print."""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median

import psutil
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer

from asa_mini.errors import InputError


def device() -> str:
    """The device that is measured, "cuda" or "cpu".

    Raises:
        InputError: every launch on the GPU is waited for, and small kernels would look many times as slow.
    """
    if not torch.cuda.is_available():
        return "cpu"
    if os.environ.get("CUDA_LAUNCH_BLOCKING", "0") not in ("", "0"):
        raise InputError(
            "CUDA_LAUNCH_BLOCKING is set (full determinism does that), which distorts every timing on a GPU; "
            "unset it and measure in a new process"
        )
    return "cuda"


def synchronize() -> None:
    """Wait until the GPU has done what it was given; a CPU has."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(run: Callable[[], object], least: float = 0.3) -> float:
    """Median time of `run`, repeated for `least` seconds; on a GPU the time that it works itself.

    There it sleeps for some milliseconds before each repetition, so that all is launched when it begins: as
    in training, where the queue is full, and not as in a loop of small kernels that waits for Python.
    """
    if not torch.cuda.is_available():
        return Timer("run()", globals={"run": run}).blocked_autorange(min_run_time=least).median
    times, end = [], time.perf_counter() + least
    while len(times) < 5 or time.perf_counter() < end:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(8_000_000)  # clock cycles
        start.record()
        run()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 1e3)
    return median(times)


def ms_by_kernel(run: Callable[[], object], repeats: int = 5) -> dict[str, float]:
    """Milliseconds that each of the GPU's kernels takes in one `run`: the twenty that take most."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(repeats):
            run()
        synchronize()
    times = {event.key: event.self_device_time_total / repeats / 1e3 for event in profiled.key_averages()}
    return dict(sorted(times.items(), key=lambda item: -item[1])[:20])


def compile_ahead(compile: Callable, choices: Sequence) -> None:
    """Call it with each choice, in many processes: Triton keeps what it compiled on disk, for all of them.

    What is not done within a minute is compiled where it is used: a process may have died.
    """
    if device() == "cuda":
        with multiprocessing.get_context("spawn").Pool(min(os.cpu_count(), 16)) as pool:
            pool.map_async(compile, choices, chunksize=1).wait(60)


def peak_mib(run: Callable[[], object]) -> float:
    """The most memory in use while `run` runs, above what is in use before, in MiB.

    Of the GPU's tensors; on a CPU of this whole process, whose peak never falls again: measure in a new one.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        in_use, peak = torch.cuda.memory_allocated, torch.cuda.max_memory_allocated
    else:
        in_use, peak = lambda: psutil.Process().memory_info().rss, _process_peak
    before = in_use()
    run()
    return (peak() - before) / 2**20


def _process_peak() -> int:
    """Bytes that this process had in memory at most."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def print_rows(rows: list[dict], **formats: str) -> None:
    """Print the rows' shape, kind, and the entries that `formats` names; what is None or missing is blank."""
    formats = dict(batch_size="d", length="d", kind="", **formats)
    lines = [list(formats)]
    for row in rows:
        cells = [(row.get(key), form) for key, form in formats.items()]
        lines.append(["" if cell is None else format(cell, form) for cell, form in cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
