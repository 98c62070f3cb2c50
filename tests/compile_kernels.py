"""Compile every kernel for NVIDIA GPUs that need not be here; prints shared memory and spills as JSON.

A process of its own, because the tests' has the interpreter on: what it accepts, the compiler may refuse.
"""

import json
import re
import subprocess
import sys
import tempfile

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from asa_mini.kernels import adversary, flash, ops

KERNELS = {
    "mask": adversary.mask_kernel,
    "forward": flash.forward_kernel,
    "delta": flash.delta_kernel,
    "query": flash.query_gradient_kernel,
    "key_value": flash.key_value_gradient_kernel,
    "mask_gradient": adversary.mask_gradient_kernel,
}
FLOAT32 = ["lse", "delta", "d_kept"]
SCALARS = ["scale2", "scaling", "dropout", "reversal"]
INTEGERS = ["length", "H", "kv_heads", "first_row", "chunk", "width"]
POINTERS = {"key_mask": "*i1", "words": "*i32", "counts": "*i32", "row_kept": "*i32", "seed": "*i64"}
TYPES = {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32"}


def compiled(name: str, capability: int, dtype: str, dim: int):
    """With padding and dropout, causal: everything that a kernel can do at once."""
    options = ops.tile_sizes(torch.empty(1, 1, 1, dim, dtype=getattr(torch, dtype)))[name]
    launch = {key: options.pop(key) for key in ("num_warps", "num_stages") if key in options}
    options |= dict(D=dim, E=768, CAUSAL=True, PRECISION="tf32x3")
    signature, constants, hints = {}, {}, {}
    for place, parameter in enumerate(KERNELS[name].params):
        key = parameter.name
        if parameter.is_constexpr:
            signature[key], constants[key] = "constexpr", options[key]
        elif key in SCALARS or key in INTEGERS:
            signature[key] = "fp32" if key in SCALARS else "i32"
        else:
            signature[key] = "*fp32" if key in FLOAT32 else POINTERS.get(key, TYPES[dtype])
            hints[place,] = [["tt.divisibility", 16]]
    source = ASTSource(KERNELS[name], signature, constants, hints)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch)


def spilled_bytes(kernel) -> int:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", usage)[1])


if __name__ == "__main__":
    capability, dtype, dim = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    report = {}
    for name in KERNELS:
        kernel = compiled(name, capability, dtype, dim)
        report[name] = {"shared": kernel.metadata.shared, "spilled": spilled_bytes(kernel)}
    print(json.dumps(report))
