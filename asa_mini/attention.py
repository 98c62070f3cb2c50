"""ASA attention: the one public function, the dense reference that specifies it, the choice of a backend."""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils.logging import get_logger

from asa_mini.adversary import MASKED_SCORE, keep_mask
from asa_mini.config import BACKENDS, PAID
from asa_mini.errors import InputError

logger = get_logger(__name__)

PAID_ROWS = 128  # with pay_over="real_units"; the authors pad the sequences of their GLUE runs to so many

# What the triton backend can do, and why no more:
MAX_DIM = 128  # head dimension; a wider tile does not fit into the shared memory of consumer GPUs
MAX_SEQUENCES = 65_535  # heads x batch; CUDA's limit for the second dimension of a grid
DTYPES = (torch.float16, torch.bfloat16, torch.float32)  # what tensor cores multiply
MIN_CAPABILITY = (8, 0)  # Ampere; our tiles do not fit into the shared memory of older ones, as of a free T4


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
    pay_over: str = "all_rows",
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of q over k, v under an adversary's binary mask::

        mask = R(step(Qa Ka^T / sqrt(E)))                         (B, L, L), see `keep_mask`
        S    = scaling Q K^T          where mask = 1
        S    = -10000                 where mask = 0              (the gradient of S reaches mask as 10000 dS)
        O    = dropout(softmax(S over the allowed keys)) V

    (The authors' modeling/bert.py, Bert.SelfAttention.forward: score * ge(mask, 0) + mask, mask 0 or -10000.)
    A masked unit gets probability 0, unless its whole row is masked: then the row attends uniformly to all
    allowed keys; theirs to padding as well, this is the one difference. A row with no allowed key gives
    zeros, as in `scaled_dot_product_attention`.

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
        pay_over: what is counted as kept; padded keys never are. "all_rows": the units of all query rows, of
            padding, too, as in the authors' AsaBertForSequenceClassification.forward. "real_units"::

                PAID_ROWS / n  *  units of the n rows of real tokens

            so as many as PAID_ROWS rows have that keep what the real ones keep on average.
        backend: "reference" (dense, any device, any float type), "triton" (memory linear in L, an NVIDIA
            GPU), or "auto", see `choose_backend`.

    Returns:
        O (B, H, L, D); the number of kept allowed units (B,), differentiable with respect to the adversary;
        the number of allowed units (B,), counted likewise, so that their ratio is the kept share.

    Raises:
        InputError: shapes that do not fit, an `allowed` that is not boolean or that differs between heads, an
            unknown backend, something that the chosen one cannot do, an unknown `pay_over`.
    """
    if pay_over not in PAID:
        raise InputError(f"pay_over must be one of {', '.join(PAID)}, but is {pay_over!r}")
    tensors = (q, k, v, adversary_q, adversary_k)
    _check_shapes(*tensors, allowed)
    batch, heads, length, dim = q.shape
    autocast = torch.is_autocast_enabled(q.device.type)  # then the kernels cast, as PyTorch's own do
    chosen = choose_backend(
        backend,
        capability=gpu_capability(q.device),
        dtypes={torch.get_autocast_dtype(q.device.type)} if autocast else {x.dtype for x in tensors},
        dims={dim, v.shape[-1]},
        mask_rows=1 if allowed is None else allowed.shape[2],
        sequences=batch * heads,
    )
    attend = reference_attention if chosen == "reference" else _kernels().triton_attention
    scaling = dim**-0.5 if scaling is None else scaling
    output, kept = attend(*tensors, allowed, causal, scaling, dropout, gradient_reversal_scale)
    counts = kept, count_allowed(allowed, causal, length, q.device).to(kept.dtype)  # (B, L), (B or 1, L or 1)
    weights = kept.new_ones(1, length) if pay_over == "all_rows" else row_weights(allowed, length, kept)
    kept, units = ((count * weights).sum(1) for count in counts)
    return output, kept, units.expand(batch)


def reference_attention(
    q: Tensor,  # (B, H, L, D)
    k: Tensor,  # (B, Hkv, L, D)
    v: Tensor,  # (B, Hkv, L, D)
    adversary_q: Tensor,  # (B, L, E)
    adversary_k: Tensor,  # (B, L, E)
    allowed: Tensor | None,  # (B or 1, 1, L or 1, L) boolean
    causal: bool,
    scaling: float,
    dropout: float,
    gradient_reversal_scale: float,
) -> tuple[Tensor, Tensor]:
    """The equations of `asa_attention`, line by line; every tensor is dense.

    Returns:
        O (B, H, L, D), the kept units of each query (B, L).
    """
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))  # (B, H, L, D)
    seen = allowed_units(allowed, causal, q.shape[2], q.device)  # (B or 1, 1, L or 1, L)
    seen = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=q.device) if seen is None else seen

    mask = keep_mask(adversary_q, adversary_k, gradient_reversal_scale)[:, None]  # (B, 1, L, L)
    # Half of the lowest number, so that adding a score to it cannot overflow to -inf.
    bias = (MASKED_SCORE * (1 - mask)).masked_fill(~seen, torch.finfo(mask.dtype).min / 2)
    scores = scaling * q @ k.mT  # (B, H, L, D) x (B, H, D, L) -> (B, H, L, L)
    scores = torch.addcmul(bias, scores, mask.detach().to(scores.dtype))  # 0 * score + bias where masked
    weights = F.dropout(scores.softmax(-1), dropout)  # (B, H, L, L)
    output = weights.to(v.dtype) @ v  # (B, H, L, L) x (B, H, L, D) -> (B, H, L, D)
    output = output * seen.any(-1, keepdim=True)
    # Counted in float32 at least: float16 overflows at 65504 units, one sequence of 256 tokens.
    return output, (mask * seen).sum(dim=(1, 3), dtype=torch.promote_types(mask.dtype, torch.float32))


def allowed_units(allowed: Tensor | None, causal: bool, length: int, device) -> Tensor | None:
    """`allowed` and causality as one mask, (B or 1, 1, L or 1, L) boolean; None allows everything."""
    if not causal:
        return allowed
    past = torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]  # j <= i
    return past if allowed is None else allowed & past


def count_allowed(allowed: Tensor | None, causal: bool, length: int, device) -> Tensor:
    """The allowed units of each query, (B or 1, L), or (B or 1, 1) for all; dense only where `allowed` is."""
    if allowed is not None and allowed.shape[2] > 1:
        return allowed_units(allowed, causal, length, device)[:, 0].sum(-1)
    keys = torch.ones(1, length, device=device, dtype=torch.bool) if allowed is None else allowed[:, 0, 0]
    return keys.cumsum(-1) if causal else keys.sum(-1, keepdim=True)


def row_weights(allowed: Tensor | None, length: int, like: Tensor) -> Tensor:
    """(B or 1, L) in `like`'s dtype: PAID_ROWS / n for the n real tokens of a sequence, 0 for padding."""
    if allowed is None:
        return like.new_full((1, length), PAID_ROWS / length)
    real = allowed[:, 0].any(-2)  # padding is a key that nobody may see
    return PAID_ROWS * real.to(like.dtype) / real.sum(-1, keepdim=True).clamp_min(1)


def gpu_capability(device: torch.device) -> tuple[int, int] | None:
    """Compute capability of an NVIDIA GPU, (8, 0) for an A100; None of any other device."""
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)  # get_device_capability would break torch.compile
    return properties.major, properties.minor


def choose_backend(
    wanted: str,
    *,
    capability: tuple[int, int] | None,
    dtypes: set[torch.dtype],
    dims: set[int],
    mask_rows: int = 1,
    sequences: int = 1,
) -> str:
    """The backend that computes attention, "reference" or "triton".

    Args:
        wanted: one of BACKENDS; "auto" is triton on a GPU for what the kernels can do, else the reference,
            which a GPU's user is told once.
        capability: of the tensors' device, see `gpu_capability`.
        dtypes: of q, k, v and the adversary's projections.
        dims: D of q, and of v. sequences: heads x batch.
        mask_rows: of `allowed`: 1 for padding alone, more for a mask with a row for each query.

    Raises:
        InputError: an unknown name, or "triton" for what the kernels cannot do.
    """
    if wanted not in BACKENDS:
        raise InputError(f"unknown attention backend {wanted!r}; choose one of {', '.join(BACKENDS)}")
    if wanted == "reference" or (wanted == "auto" and capability is None):
        return "reference"
    if (kernels := _kernels()) is None:
        obstacle = "needs the triton package (Linux: pip install 'asa_mini[gpu]')"
    elif len(dtypes) > 1 or not dtypes <= set(DTYPES):
        obstacle = f"has one of {DTYPES}, the same for all inputs, not {sorted(map(str, dtypes))}"
    elif len(dims) > 1 or max(dims) > MAX_DIM:
        obstacle = f"has one dimension for queries and values, up to {MAX_DIM}, not {sorted(dims)}"
    elif mask_rows > 1:
        obstacle = "knows padding and causal masks alone, not one with a row for each query"
    elif sequences > MAX_SEQUENCES:
        obstacle = f"takes up to {MAX_SEQUENCES} heads x sequences at once, not {sequences} (smaller batches)"
    elif capability is None and not kernels.INTERPRETED:
        obstacle = "needs an NVIDIA GPU (or TRITON_INTERPRET=1 before Python starts, slowly on the CPU)"
    elif capability is not None and capability < MIN_CAPABILITY:
        obstacle = f"needs compute capability {MIN_CAPABILITY} (Ampere) or higher, not {capability}"
    else:
        return "triton"
    if wanted == "triton":
        raise InputError(f"backend='triton' {obstacle}; backend='reference' works everywhere")
    if not torch.compiler.is_compiling():
        logger.warning_once(f"the dense reference computes attention, slowly: backend='triton' {obstacle}")
    return "reference"


def _kernels():
    """The kernels, imported on first use: triton is slow to import. None where it does not exist."""
    try:
        import asa_mini.kernels as kernels
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        return None
    return kernels


def _check_shapes(q, k, v, adversary_q, adversary_k, allowed) -> None:
    batch, heads, length, dim = q.shape
    fits = k.shape[0] == batch and k.shape[2:] == (length, dim) and v.shape[:3] == k.shape[:3]
    if not fits or heads % k.shape[1]:
        shapes = f"q {tuple(q.shape)} does not fit k {tuple(k.shape)} and v {tuple(v.shape)}"
        raise InputError(f"asa_attention is self-attention: {shapes}")
    for name, x in (("adversary_q", adversary_q), ("adversary_k", adversary_k)):
        if x.ndim != 3 or x.shape[:2] != (batch, length):
            raise InputError(f"{name} must be ({batch}, {length}, E) to fit q, but is {tuple(x.shape)}")
    fitting = [(b, 1, n, length) for b in (1, batch) for n in (1, length)]
    if allowed is not None and (allowed.dtype != torch.bool or allowed.shape not in fitting):
        raise InputError(
            f"`allowed` must be boolean, ({batch} or 1, 1, {length} or 1, {length}), the same for all heads, "
            f"but is {tuple(allowed.shape)}, {allowed.dtype}"
        )
