"""ASA attention in Triton: memory linear in L, the values of the dense reference.

Read `tiles` (the steps that all kernels share), then `adversary`, `flash`, and `ops`, which launches them.
"""

import torch
from torch import Tensor

from asa_mini.kernels.ops import attention
from asa_mini.kernels.tiles import INTERPRETED as _INTERPRETED

INTERPRETED = _INTERPRETED.value


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
    """`asa_attention` by the kernels, for what `asa_mini.attention.choose_backend` lets through.

    Returns:
        output (B, H, L, D), kept units of each query (B, L).
    """
    tensors = [q, k, v, adversary_q, adversary_k]
    if torch.is_autocast_enabled(q.device.type):  # as for PyTorch's own attention
        tensors = [x.to(torch.get_autocast_dtype(q.device.type)) for x in tensors]
    batch, length = q.shape[0], q.shape[2]
    key_mask, key_ends = None, q.new_full((batch,), length, dtype=torch.int32)
    if allowed is not None:
        key_mask = allowed[:, 0, 0].expand(batch, length).contiguous()
        key_ends = (key_mask * torch.arange(1, length + 1, device=q.device)).amax(1).to(torch.int32)
    # Drawn on the device and left there: nothing waits for it.
    seed = torch.randint(2**63 - 1, (1,), device=q.device) if dropout > 0 else None
    q, k, v = (x.transpose(1, 2).contiguous() for x in tensors[:3])  # (B, L, H, D), as transformers made them
    adversary_q, adversary_k = (x.contiguous() for x in tensors[3:])
    masks = key_mask, key_ends, seed, causal
    output, kept, *_ = attention(
        q, k, v, adversary_q, adversary_k, *masks, scaling, dropout, gradient_reversal_scale
    )
    return output.transpose(1, 2), kept
