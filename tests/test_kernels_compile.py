"""The kernels compile for real GPUs, fit them, and do not spill; no GPU is needed to find out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from attention_cases import triton_only

pytestmark = triton_only
SHARED_MEMORY = 99 * 1024  # bytes a program may use on consumer cards of Ampere and Ada (CUDA guide)
CASES = ["80,float16,128", "86,float32,128", "90,bfloat16,64"]


@pytest.fixture(scope="module")
def reports() -> list[dict]:
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_kernels.py")
    command = [sys.executable, str(script), *CASES]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_fits_every_gpu(reports):
    assert len({(x["capability"], x["dtype"]) for x in reports}) == len(CASES)
    for x in reports:
        assert x["shared"] <= SHARED_MEMORY, x


def test_the_card_that_the_tiles_are_chosen_for(reports):
    """No spills; and no loop much longer than Triton 3.6 and 3.7 made it."""
    # Instructions a unit: bare, padding and dropout. Triton 3.6 makes 21.3 and 41.0 where 3.7
    # makes 19.2 and 32.9.
    longest = {"forward": (17, 31), "key_value": (22, 42)}
    for x in [x for x in reports if x["capability"] == 90]:
        assert x["spilled"] == 0, x
        assert x["instructions_per_unit"] <= longest.get(x["kernel"], (4, 4))[x["asked"] != "bare"], x


def test_no_fault_of_the_compiler(reports):
    assert [x for x in reports if x["faults"]] == []


def test_the_faults_are_found():
    from machine_code import early_copies, overwritten_operands

    product, write = "HGMMA.64x64x16.F32.BF16 R24, R4, gdesc[UR8], R24", "IMAD.WIDE R6, R2, 0x4, R8"
    wait = "WARPGROUP.DEPBAR.LE gsb0, 0x0"
    for code, faulty in (
        ([product, write], True),
        ([product, wait, write], False),
        ([write, product], False),
    ):
        assert bool(overwritten_operands(list(enumerate(code)))) == faulty

    copy, product = "cp.async.cg.shared.global [%r1], [%rd2], 16;", "wgmma.commit_group.sync.aligned;"
    wait, barrier = "wgmma.wait_group.sync.aligned 0;", "bar.sync 0;"
    for body, faulty in (
        ([copy, product, wait], True),
        ([copy, product, barrier, wait], True),
        ([copy, product, wait, barrier], False),
        ([barrier, product, wait, copy], False),
    ):
        assert bool(early_copies("\n".join(["$L__BB0_1:", *body, "@%p1 bra $L__BB0_1;"]))) == faulty
