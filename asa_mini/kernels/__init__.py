"""ASA attention in Triton: memory linear in L, the values of the dense reference.

Read `tiles` (the steps that all kernels share), then `adversary`, `flash`, and `ops`, which launches them.
"""

import torch
from torch import Tensor

from asa_mini.attention import MAX_DIM
from asa_mini.errors import InputError
from asa_mini.kernels.ops import attention
from asa_mini.kernels.tiles import INTERPRETED as _INTERPRETED

INTERPRETED = _INTERPRETED.value
MAX_GRID = 65_535  # CUDA's limit for the second dimension of a grid
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def triton_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    adversary_q: Tensor,
    adversary_k: Tensor,
    allowed: Tensor | None,
    causal: bool,
    scaling: float,
    dropout: float,
    gradient_reversal_scale: float,
) -> tuple[Tensor, Tensor]:
    """`asa_attention` by the kernels; the same arguments and results.

    Raises:
        InputError: no GPU and not interpreted, a dtype or head dimension that the kernels do not have, or an
            `allowed` that is more than padding.
    """
    if not q.is_cuda and not INTERPRETED:
        raise InputError(
            "backend='triton' needs an NVIDIA GPU; use backend='reference', or set TRITON_INTERPRET=1 before "
            "Python starts, to run the kernels slowly on the CPU"
        )
    tensors = [q, k, v, adversary_q, adversary_k]
    if torch.is_autocast_enabled(q.device.type):  # as for PyTorch's own attention
        tensors = [x.to(torch.get_autocast_dtype(q.device.type)) for x in tensors]
    dtypes = {x.dtype for x in tensors}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        names = ", ".join(str(x.dtype) for x in tensors)
        raise InputError(
            f"backend='triton' computes in one of float16, bfloat16, float32, the same for all inputs, which "
            f"are {names}; convert them, or use backend='reference'"
        )
    if v.shape[-1] != q.shape[-1]:
        raise InputError(
            f"backend='triton' needs values as wide as the queries, {q.shape[-1]}, not {v.shape[-1]}; "
            "use backend='reference'"
        )
    if q.shape[-1] > MAX_DIM:
        raise InputError(
            f"backend='triton' has head dimensions up to {MAX_DIM}, not {q.shape[-1]}; "
            "use backend='reference'"
        )
    batch, heads, length, _ = q.shape
    if batch * heads > MAX_GRID:
        raise InputError(
            f"backend='triton' takes up to {MAX_GRID} heads of sequences at once, not {batch} x {heads}; "
            "use smaller batches"
        )
    key_mask = None
    if allowed is not None:
        if allowed.shape[2] != 1:
            raise InputError(
                "backend='triton' knows padding and causal masks alone, not one with a row for each query, "
                f"{tuple(allowed.shape)}; use backend='reference'"
            )
        key_mask = allowed[:, 0, 0].expand(batch, length).contiguous()
    seed = None
    if dropout > 0:
        seed = torch.randint(2**63 - 1, (1,), device=q.device)  # stays on the device: nothing waits for it
    q, k, v = (x.transpose(1, 2).contiguous() for x in tensors[:3])  # (B, L, H, D), as transformers made them
    adversary_q, adversary_k = (x.contiguous() for x in tensors[3:])
    output, kept, *_ = attention(
        q, k, v, adversary_q, adversary_k, key_mask, seed, causal, scaling, dropout, gradient_reversal_scale
    )
    return output.transpose(1, 2), kept
