"""ASA attention: the one public function, and the dense reference that specifies it."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from asa_mini.adversary import keep_mask
from asa_mini.errors import InputError

BACKENDS = ("auto", "reference", "triton")
MAX_DIM = 128  # head dimension of the triton backend
MASKED_SCORE = -10000.0  # the reference's bias; exp(-10000) is exactly 0 in every float format


def asa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    adversary_q: Tensor,
    adversary_k: Tensor,
    allowed: Tensor | None = None,
    *,
    causal: bool = False,
    scaling: float | None = None,
    dropout: float = 0.0,
    gradient_reversal_scale: float = 1.0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Attention of q over k, v under an adversary's binary mask.

        mask = R(step(Qa Ka^T / sqrt(E)))                         (B, L, L), see `keep_mask`
        S    = scaling Q K^T          where mask = 1
        S    = -10000                 where mask = 0              (the gradient of S reaches mask as 10000 dS)
        O    = dropout(softmax(S over the allowed keys)) V

    A masked unit gets probability 0, unless its whole row is masked: then the row attends uniformly to all
    allowed keys. (The reference attends to padding as well in that case; this is the one difference.)
    A row with no allowed key gives zeros, as in `scaled_dot_product_attention`.

    Args:
        q: (B, H, L, D).
        k, v: (B, Hkv, L, D), Hkv a divisor of H (grouped-query attention).
        adversary_q, adversary_k: (B, L, E), from an `Adversary`; the mask is shared by the H heads.
        allowed: boolean, True = key j may be seen from query i: (B, 1, L, L), or (B, 1, 1, L) for padding
            alone; B may be 1, for one mask that fits all. None allows everything.
        causal: query i may see no key j > i, whatever `allowed` says.
        scaling: factor of Q K^T, 1/sqrt(D) by default.
        dropout: probability of dropping an attention weight.
        gradient_reversal_scale: strength of the reversal in front of the adversary.
        backend: "reference" (dense, any device, any float type), "triton" (memory linear in L; an NVIDIA GPU,
            D up to MAX_DIM, masks of padding or causality alone), or "auto": triton for tensors on a GPU.

    Returns:
        O (B, H, L, D), and the number of kept allowed units (B,), padded query rows included as in the
        reference; both are differentiable with respect to the adversary.

    Raises:
        InputError: unknown backend, shapes that do not fit, an `allowed` that is not boolean or that differs
            between heads, something that the chosen backend cannot do (it names the one that can).
    """
    if backend not in BACKENDS:
        raise InputError(f"unknown attention backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    _check_shapes(q, k, v, adversary_q, adversary_k, allowed)
    if scaling is None:
        scaling = q.shape[-1] ** -0.5
    if backend == "auto":
        backend = "triton" if q.is_cuda else "reference"
    compute = reference_attention if backend == "reference" else _triton_attention()
    return compute(
        q, k, v, adversary_q, adversary_k, allowed, causal, scaling, dropout, gradient_reversal_scale
    )


def _triton_attention() -> Callable:
    """The kernels, imported on first use: triton exists for Linux alone, and is slow to import."""
    try:
        from asa_mini.kernels import triton_attention
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise InputError(
            "backend='triton' needs the triton package (Linux: pip install 'asa_mini[gpu]'); "
            "backend='reference' works everywhere"
        ) from error
    return triton_attention


def reference_attention(
    q, k, v, adversary_q, adversary_k, allowed, causal, scaling, dropout, gradient_reversal_scale
):
    """The equations of `asa_attention`, line by line; every tensor is dense."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)  # (B, H, L, D)

    mask = keep_mask(adversary_q, adversary_k, gradient_reversal_scale)[:, None]  # (B, 1, L, L)
    if causal:
        past = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
        allowed = past[None, None] if allowed is None else allowed & past  # (B or 1, 1, L, L)
    bias = MASKED_SCORE * (1 - mask)
    counted = mask
    if allowed is not None:
        counted = mask * allowed
        # Half of the lowest number, so that adding a score to it cannot overflow to -inf.
        bias = bias.masked_fill(~allowed, torch.finfo(bias.dtype).min / 2)

    scores = scaling * q @ k.mT  # (B, H, L, D) x (B, H, D, L) -> (B, H, L, L)
    scores = torch.addcmul(bias, scores, mask.detach().to(scores.dtype))  # 0 * score + bias where masked
    weights = F.dropout(scores.softmax(-1), dropout)  # (B, H, L, L)
    output = weights.to(v.dtype) @ v  # (B, H, L, L) x (B, H, L, D) -> (B, H, L, D)
    if allowed is not None:
        output = output * allowed.any(-1, keepdim=True)
    # Counted in float32 at least: float16 overflows at 65504 units, one sequence of 256 tokens.
    return output, counted.sum(dim=(1, 2, 3), dtype=torch.promote_types(counted.dtype, torch.float32))


def _check_shapes(
    q: Tensor, k: Tensor, v: Tensor, adversary_q: Tensor, adversary_k: Tensor, allowed: Tensor | None
) -> None:
    batch, heads, length, dim = q.shape
    fits = k.shape[0] == batch and k.shape[2:] == (length, dim) and v.shape[:3] == k.shape[:3]
    if not fits or heads % k.shape[1]:
        raise InputError(
            f"asa_attention is self-attention: q {tuple(q.shape)} does not fit k {tuple(k.shape)} "
            f"and v {tuple(v.shape)}"
        )
    for name, x in (("adversary_q", adversary_q), ("adversary_k", adversary_k)):
        if x.ndim != 3 or x.shape[:2] != (batch, length):
            raise InputError(f"{name} must be ({batch}, {length}, E) to fit q, but is {tuple(x.shape)}")
    if allowed is None:
        return
    if allowed.dtype != torch.bool:
        raise InputError(f"`allowed` must be boolean (True = may be attended to), but is {allowed.dtype}")
    shapes = [(b, 1, n, length) for b in (1, batch) for n in (1, length)]
    if allowed.shape not in shapes:
        raise InputError(
            f"`allowed` must be ({batch} or 1, 1, {length} or 1, {length}), the same for all heads, "
            f"but is {tuple(allowed.shape)}"
        )
