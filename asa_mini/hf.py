"""How ASA reaches into transformers: one keyword, one pre-hook per layer, one attention function.

An attention function named "asa" is registered with transformers, and every self-attention module gets a
pre-hook. A training step calls the model with one extra keyword, `asa=AsaPass(...)`, which transformers hands
down to every layer. Where a hook finds it, it reads the layer's hidden states, lets the layer's adversary
project them, and adds the projections to the keywords; the attention function uses them. The keyword is the
only switch: nothing is stored on a module, so recomputation under gradient checkpointing sees exactly what
the first pass saw.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

from asa_mini.adversary import Adversary, keep_mask
from asa_mini.attention import MAX_DIM, asa_attention
from asa_mini.errors import InputError

SUPPORTED = (
    "bert, roberta, xlm-roberta, camembert, electra, distilbert, albert, ernie, modernbert, eurobert, llama"
)


# Keywords by which some decoders change the scores; the adversarial pass would leave them out without a word.
UNKNOWN_TERMS = ("softcap", "s_aux", "position_bias")


@dataclass
class AsaPass:
    """The keyword that makes one forward call adversarial, and what the layers report back through it."""

    joint: bool  # the batch is [clean half; adversarial half]
    backend: str = "auto"
    gradient_reversal_scale: float = 1.0
    # Reentrant gradient checkpointing runs the layers first without gradients. The adversary sees detached
    # input, so its graph can be built all the same, and the kept units must not lose theirs.
    grad: bool = field(default_factory=torch.is_grad_enabled)
    # One entry per call of an attacked layer:
    kept_units: list[Tensor] = field(default_factory=list)  # scalar, kept units per sequence
    kept_share: list[Tensor] = field(default_factory=list)  # scalar, kept / allowed units
    # One entry per call of any layer, attacked or not, if a list is given to take them; both for analysis:
    masks: list[Tensor] | None = None  # (B, L, L) boolean, True = kept and allowed
    maps: list[Tensor] | None = None  # (B or 2B, H, L, L), attention weights


@dataclass
class _Probe:
    """Passed as `asa=` once, to find out which modules call the attention function, and in which order."""

    modules: list[nn.Module] = field(default_factory=list)


class AdversaryHook:
    """Pre-hook of a self-attention module: adds the adversary's projections to its keywords."""

    def __init__(self, adversary: Adversary | None):
        self.adversary = adversary

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        asa = kwargs.get("asa")
        if self.adversary is None or not isinstance(asa, AsaPass):
            return None
        implementation = module.config._attn_implementation
        if implementation != "asa":
            raise InputError(
                f"attn_implementation is {implementation!r}, which knows no adversary: call train() on the "
                "wrapped model (then .model.eval(), if dropout is to stay off)"
            )
        x = args[0] if args else kwargs["hidden_states"]  # (B or 2B, L, E)
        with torch.set_grad_enabled(asa.grad):
            projections = self.adversary(x[x.shape[0] // 2 :] if asa.joint else x)
        return args, {**kwargs, "adversary_projections": projections}


def _asa_attention_forward(
    module, query, key, value, attention_mask, asa=None, adversary_projections=None, is_causal=None, **kwargs
):
    """The function behind attn_implementation="asa"; q, k, v: (B or 2B, H, L, D) -> (B or 2B, L, H, D)."""
    if isinstance(asa, _Probe) and all(kwargs.get(name) is None for name in UNKNOWN_TERMS):
        asa.modules.append(module)
    # By the rules of sdpa_attention_forward; a mask with a row for each query holds everything already.
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = causal and (attention_mask is None or attention_mask.shape[2] == 1)
    inputs = dict(attention_mask=attention_mask, asa=asa, projections=adversary_projections, causal=causal)
    output, kept = _attend(module, query, key, value, **inputs, **kwargs)
    if not isinstance(asa, AsaPass):
        return output, None
    if kept is not None:
        asa.kept_units.append(kept)
        # Both halves of a joint pass have the same padding, so that this is right for them as well.
        asa.kept_share.append(kept.detach() * len(query) / _count_allowed(attention_mask, causal, query))
    if asa.masks is not None:
        asa.masks.append(_kept_and_allowed(query, adversary_projections, attention_mask, causal, asa.joint))
    if asa.maps is not None:  # the weights are what attention makes of the identity: softmax(S) I
        one_hot = torch.eye(query.shape[2], dtype=value.dtype, device=value.device)
        one_hot = one_hot.expand(*value.shape[:2], -1, -1)  # (B or 2B, Hkv, L, L)
        maps, _ = _attend(module, query, key, one_hot, **inputs, **kwargs)
        asa.maps.append(maps.transpose(1, 2))
    return output, None


def _attend(module, query, key, value, attention_mask, asa, projections, causal, **kwargs):
    """Plain attention, or with projections the adversarial one, in a joint pass for the second half only.

    Returns:
        (B or 2B, L, H, D), and the kept units per sequence, a scalar; None for plain attention.
    """
    if projections is None:
        return _plain_attention(module, query, key, value, attention_mask, causal, **kwargs), None
    clean = None
    if asa.joint:
        (clean_q, query), (clean_k, key), (clean_v, value) = (x.chunk(2) for x in (query, key, value))
        clean_mask = attention_mask
        if attention_mask is not None and attention_mask.shape[0] > 1:  # else one mask for all examples
            clean_mask, attention_mask = attention_mask.chunk(2)
        clean = _plain_attention(module, clean_q, clean_k, clean_v, clean_mask, causal, **kwargs)
    with torch.set_grad_enabled(asa.grad):
        output, kept = asa_attention(
            query,
            key,
            value,
            *projections,
            attention_mask,
            causal=causal,
            scaling=kwargs.get("scaling"),
            dropout=kwargs.get("dropout", 0.0),
            gradient_reversal_scale=asa.gradient_reversal_scale,
            backend=asa.backend,
        )
        kept = kept.mean()
    output = output.transpose(1, 2)  # (B, L, H, D)
    return (output if clean is None else torch.cat([clean, output])).contiguous(), kept


def _kept_and_allowed(query, projections, attention_mask, causal, joint) -> Tensor:
    """(B, L, L) boolean, of the attacked half of a joint pass; a layer without an adversary keeps all."""
    length = query.shape[2]
    kept = query.new_ones(query.shape[0] // (1 + joint), length, length, dtype=torch.bool)
    if projections is not None:
        kept = keep_mask(*(x.detach() for x in projections)).bool()
    if causal:
        kept = kept & _past(query)[0]
    if attention_mask is not None:
        kept = kept & attention_mask[-len(kept) :, 0]
    return kept


def _plain_attention(module, query, key, value, attention_mask, causal, **kwargs):
    """PyTorch's own attention, in which a mask replaces causality."""
    if causal and attention_mask is not None:
        attention_mask = attention_mask & _past(query)
    return sdpa_attention_forward(module, query, key, value, attention_mask, is_causal=causal, **kwargs)[0]


def _past(query: Tensor) -> Tensor:
    """(1, 1, L, L) boolean, True where key j is not in the future of query i."""
    length = query.shape[2]
    return torch.ones(length, length, dtype=torch.bool, device=query.device).tril()[None, None]


def _count_allowed(allowed: Tensor | None, causal: bool, query: Tensor) -> Tensor | int:
    """Attention units of the batch that exist, from its (B or 1, 1, L or 1, L) mask."""
    batch, _, length, _ = query.shape
    if not causal:
        return batch * length * length if allowed is None else allowed.expand(batch, 1, length, length).sum()
    queries = torch.arange(length, 0, -1, device=query.device)  # key j is seen by the L - j queries from j on
    return batch * queries.sum() if allowed is None else (queries * allowed.expand(batch, 1, 1, length)).sum()


def key_mask(*, mask_function, attention_mask=None, q_length, kv_length, **options) -> Tensor | None:
    """The mask function behind attn_implementation="asa": padding as (B, 1, 1, L), never as an L x L matrix.

    None where nothing is padded. Causality is left to the attention function. Masks of other kinds (sliding
    windows, packed sequences) come dense, (B, 1, L, L), from transformers.
    """
    skips = options.get("allow_is_bidirectional_skip") or options.get("allow_is_causal_skip")
    plain = mask_function in (bidirectional_mask_function, causal_mask_function) and q_length == kv_length
    fits = attention_mask is None or attention_mask.shape[-1] == kv_length
    if not (plain and fits and skips):
        return sdpa_mask(
            mask_function=mask_function,
            attention_mask=attention_mask,
            q_length=q_length,
            kv_length=kv_length,
            **options,
        )
    if attention_mask is None or (not torch.compiler.is_compiling() and attention_mask.all()):
        return None
    return attention_mask.bool()[:, None, None]


def choose_backend(wanted: str, model: PreTrainedModel) -> str:
    """What "auto" means for a model where it is now: triton on a GPU, if the kernels can compute it."""
    if wanted != "auto":
        return wanted
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    windows = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    fits = head_dim <= MAX_DIM and not windows and model.dtype != torch.float64
    return "triton" if model.device.type == "cuda" and fits else "reference"


AttentionInterface.register("asa", _asa_attention_forward)
AttentionMaskInterface.register("asa", key_mask)  # without it, padding would be attended to without a word


def find_self_attention(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that call the attention function, in the order of the forward pass.

    Found by running two tokens through the encoder, which at the same time proves that the family hands
    keywords down to its attention.
    """
    unsupported = InputError(
        f"{model.config.model_type} models do not run plain attention through transformers' "
        f"AttentionInterface, so ASA cannot reach it; supported families: {SUPPORTED}"
    )
    if not model._supports_attention_backend or model.config.is_encoder_decoder:
        raise unsupported
    plain, probe = model.config._attn_implementation, _Probe()
    model.set_attn_implementation("asa")
    cuda = [model.device] if model.device.type == "cuda" else []
    tokens = torch.ones(1, 2, dtype=torch.long, device=model.device)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=cuda):
            model.base_model(input_ids=tokens, attention_mask=torch.ones_like(tokens), asa=probe)
    except (TypeError, ValueError) as error:  # takes no such keyword, or sdpa cannot compute its attention
        raise unsupported from error
    finally:
        model.set_attn_implementation(plain)
    if not probe.modules:
        raise unsupported
    return list(dict.fromkeys(probe.modules))  # ALBERT calls one shared module many times
