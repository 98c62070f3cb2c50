"""What both benchmarks share: when a timing may be trusted, memory, and the table that they print."""

import os
import sys
from collections.abc import Callable

import psutil
import torch

from asa_mini.errors import InputError


def device() -> str:
    """The device that is measured, "cuda" or "cpu".

    Raises:
        InputError: kernels of the GPU wait for each other, as under full determinism: then the launches are
            timed as well, and small kernels look many times as slow as they are.
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
