"""Compile every kernel for NVIDIA GPUs that need not be here, and say what the machine code shows, as JSON.

    python tests/compile_kernels.py 90,bfloat16,64 [86,float32,128 ...]

The first case is stored in results/kernel_counts.jsonl, which lesson 06 reads.

A process of its own, because the tests' has the interpreter on: what it accepts, the compiler may refuse.
"""

import json
import sys

import torch
import triton
from machine_code import disassemble, early_copies, inner_loop, overwritten_operands
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from asa_mini.kernels import adversary, flash, ops

KERNELS = {
    "mask": adversary.mask_kernel,
    "forward": flash.forward_kernel,
    "delta": flash.delta_kernel,
    "key_value": flash.key_value_gradient_kernel,
    "query": flash.query_gradient_kernel,
    "mask_gradient": adversary.mask_gradient_kernel,
}
TYPES = {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32"}
POINTERS = {"key_mask": "*i1", "seed": "*i64"}
POINTERS |= dict.fromkeys(["key_ends", "words", "words_t", "row_kept"], "*i32")
POINTERS |= dict.fromkeys(["lse", "delta", "factors", "d_kept"], "*fp32")
NUMBERS = dict.fromkeys(["scale2", "survivor_scale", "reversal"], "fp32")
NUMBERS |= dict.fromkeys(
    ["length", "H", "kv_heads", "E", "drop_below", "first_sequence", "sides_before", "lines", "width"], "i32"
)
# What is asked of a kernel: little; padding and dropout, as in BERT; everything, at an odd length. "plain"
# takes the adversary's mask out of the two flash kernels that read it: what attention itself needs.
ASKED = {
    "plain": dict(key_mask=None, seed=None, CAUSAL=False),
    "plain, dropout": dict(CAUSAL=False),
    "bare": dict(key_mask=None, seed=None, CAUSAL=False),
    "padding and dropout": dict(CAUSAL=False),
    "all": dict(CAUSAL=True),
}

MASKED = flash.attended


@triton.jit
def unmasked(scores, words, batch, lines, first, length):
    return scores


def compiled(name: str, asked: str, capability: int, dtype: str, dim: int):
    """The kernel; and how many units of its tile a thread computes in one round."""
    flash.attended = unmasked if "plain" in asked else MASKED
    KERNELS[name].hash = None  # of the source, with the functions that it calls
    tile = ops.tile_sizes(torch.empty(1, 1, 1, dim, dtype=getattr(torch, dtype)))[name]
    launch = {key: tile[key] for key in ("num_warps", "num_stages")}
    given = tile | dict(D=dim, PRECISION="tf32x3") | ASKED[asked]
    signature, constants, hints = {}, {}, {}
    for place, parameter in enumerate(KERNELS[name].params):
        key = parameter.name
        if key in given:
            signature[key], constants[key] = "constexpr", given[key]
        else:
            signature[key] = NUMBERS.get(key) or POINTERS.get(key, TYPES[dtype])
        even = key in ("E", "lines", "width") or (key == "length" and asked != "all")
        if even or signature[key].startswith("*"):
            hints[place,] = [["tt.divisibility", 16]]
    source = ASTSource(KERNELS[name], signature, constants, hints)
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch)
    return kernel, tile["M"] * tile["N"] / (32 * tile["num_warps"])


def report(name: str, asked: str, capability: int, dtype: str, dim: int) -> dict:
    kernel, units = compiled(name, asked, capability, dtype, dim)
    code, stack = disassemble(kernel.asm["cubin"])
    loop = inner_loop(code)
    exponentials = sum("MUFU.EX2" in instruction for _, instruction in loop)
    return {
        "triton": triton.__version__, "capability": capability, "dtype": dtype, "dim": dim,
        "kernel": name, "asked": asked, "shared": kernel.metadata.shared, "spilled": stack,
        "instructions_per_unit": round(len(loop) / units, 1),
        "exponentials_per_unit": round(exponentials / units, 2),
        "faults": overwritten_operands(code) + early_copies(kernel.asm["ptx"]),
    }  # fmt: skip


if __name__ == "__main__":
    for case in sys.argv[1:]:
        capability, dtype, dim = case.split(",")
        for asked in [x for x in ASKED if (x == "all") != (capability == "90")]:
            for name in ("forward", "key_value") if "plain" in asked else KERNELS:
                print(json.dumps(report(name, asked, int(capability), dtype, int(dim))), flush=True)
