"""The kernels compile for real GPUs, fit them, and hardly spill; no GPU is needed to find out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from attention_cases import triton_only

SHARED_MEMORY = {80: 163, 86: 99, 90: 227}  # KiB a program may use, by compute capability (CUDA guide)


@triton_only
@pytest.mark.parametrize(
    "capability, dtype, dim",
    [(80, "float16", 64), (86, "bfloat16", 128), (86, "float32", 128), (90, "bfloat16", 64)],
)
def test_compiles_fits_and_hardly_spills(capability, dtype, dim):
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_kernels.py")
    command = [sys.executable, str(script), str(capability), dtype, str(dim)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    for name, used in json.loads(result.stdout).items():
        assert used["shared"] <= 1024 * SHARED_MEMORY[capability], name
        if capability == 90:  # the card that the tiles are chosen for
            assert used["spilled"] <= 128, f"{name} spills {used['spilled']} bytes a thread"
