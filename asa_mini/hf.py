"""How ASA reaches into transformers: one keyword, one pre-hook per layer, one attention function.

An attention function named "asa" is registered with transformers, and every self-attention module gets a
pre-hook. A training step calls the model with one extra keyword, `asa=AsaPass(...)`, which transformers hands
down to every layer. Where a hook finds it, it reads the layer's hidden states, lets the layer's adversary
project them, and adds the projections to the keywords; the attention function uses them. The keyword is the
only switch: nothing is stored on a module, so recomputation under gradient checkpointing sees exactly what
the first pass saw.
"""

import math
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

from asa_mini.adversary import Adversary
from asa_mini.attention import allowed_units, asa_attention
from asa_mini.errors import InputError

SUPPORTED = "bert, roberta, xlm-roberta, camembert, electra, distilbert, albert, mobilebert, ernie, "
SUPPORTED += "modernbert, eurobert, llama"
# Keywords by which some decoders change the scores; the adversarial pass would leave them out without a word.
UNKNOWN_TERMS = ("softcap", "s_aux", "position_bias")
# Keywords with a row for each example, which a joint pass doubles; and without, which both halves share.
PER_EXAMPLE = {"input_ids", "attention_mask", "token_type_ids", "task_type_ids", "position_ids"}
PER_EXAMPLE |= {"inputs_embeds", "encoder_hidden_states", "encoder_attention_mask"}
SHARED = {"cache_position", "head_mask", "logits_to_keep"}
# With a mask and L % 128 = 64, cuDNN's backward pass can put NaN into the queries' gradient; on Hopper GPUs
# it is the default (github.com/pytorch/pytorch/issues/196678, torch 2.11 to 2.13).
ALL_BUT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass
class AsaPass:
    """The keyword that makes one forward call adversarial, and what the layers report back through it."""

    joint: bool  # the batch is [clean half; adversarial half]
    backend: str = "auto"
    gradient_reversal_scale: float = 1.0
    pay_over: str = "all_rows"
    # Reentrant gradient checkpointing runs the layers first without gradients. The adversary sees detached
    # input, so its graph can be built all the same, and the kept units must not lose theirs.
    grad: bool = field(default_factory=torch.is_grad_enabled)
    # One entry per call of an attacked layer:
    kept_units: list[Tensor] = field(default_factory=list)  # scalar, kept units per sequence
    kept_share: list[Tensor] = field(default_factory=list)  # scalar, kept / allowed units
    # For analysis: called with what `attend` gets, at every call of a layer, attacked or not.
    record: Callable | None = None


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
        x = _hidden_states(args, kwargs)  # (B or 2B, L, E)
        with torch.set_grad_enabled(asa.grad):
            projections = self.adversary(x[x.shape[0] // 2 :] if asa.joint else x)
        return args, {**kwargs, "adversary_projections": projections}


def _hidden_states(args: tuple, kwargs: dict) -> Tensor | None:
    return args[0] if args else kwargs.get("hidden_states")


def _asa_attention_forward(
    module, query, key, value, attention_mask, asa=None, adversary_projections=None, is_causal=None, **kwargs
):
    """The function behind attn_implementation="asa"; q, k, v: (B or 2B, H, L, D) -> (B or 2B, L, H, D)."""
    # By the rules of sdpa_attention_forward; a mask with a row for each query holds everything already.
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = causal and (attention_mask is None or attention_mask.shape[2] == 1)
    inputs = (module, query, key, value, attention_mask, causal, asa, adversary_projections)
    if isinstance(asa, AsaPass) and asa.record is not None:
        asa.record(*inputs, **kwargs)
    return attend(*inputs, **kwargs), None


def attend(module, query, key, value, allowed, causal, asa, projections, **kwargs) -> Tensor:
    """(B or 2B, L, H, D); with projections adversarial attention, in a joint pass of the second half."""
    if projections is None:
        return plain_attention(module, query, key, value, allowed, causal, **kwargs)
    clean = None
    if asa.joint:
        (clean_q, query), (clean_k, key), (clean_v, value) = (x.chunk(2) for x in (query, key, value))
        clean_allowed = allowed
        if allowed is not None and allowed.shape[0] > 1:  # else one mask for all examples
            clean_allowed, allowed = allowed.chunk(2)
        clean = plain_attention(module, clean_q, clean_k, clean_v, clean_allowed, causal, **kwargs)
    with torch.set_grad_enabled(asa.grad):
        options = dict(causal=causal, scaling=kwargs.get("scaling"), dropout=kwargs.get("dropout", 0.0))
        options |= dict(gradient_reversal_scale=asa.gradient_reversal_scale, pay_over=asa.pay_over)
        options |= dict(backend=asa.backend)
        output, kept, units = asa_attention(query, key, value, *projections, allowed, **options)
        asa.kept_units.append(kept.mean())
        asa.kept_share.append(kept.detach().sum() / units.sum())
    output = output.transpose(1, 2)  # (B, L, H, D)
    return (output if clean is None else torch.cat([clean, output])).contiguous()


def plain_attention(module, query, key, value, allowed, causal, **kwargs) -> Tensor:
    """PyTorch's own attention, in which a mask replaces causality, by a backend with finite gradients."""
    length, backends = query.shape[2], nullcontext()
    if allowed is not None:
        allowed = allowed_units(allowed, causal, length, query.device)
        if length % 128 == 64:
            backends = sdpa_kernel(ALL_BUT_CUDNN)
    with backends:
        return sdpa_attention_forward(module, query, key, value, allowed, is_causal=causal, **kwargs)[0]


def key_mask(*, mask_function, attention_mask=None, q_length, kv_length, **options) -> Tensor | None:
    """The mask function behind attn_implementation="asa": padding as (B, 1, 1, L), never as an L x L matrix.

    None where nothing is padded. Causality is left to the attention function. Masks of other kinds (sliding
    windows, packed sequences) come dense, (B, 1, L, L), from transformers.
    """
    skips = options.get("allow_is_bidirectional_skip") or options.get("allow_is_causal_skip")
    plain = mask_function in (bidirectional_mask_function, causal_mask_function) and q_length == kv_length
    fits = attention_mask is None or attention_mask.shape[-1] == kv_length
    if not (plain and fits and skips):
        lengths = dict(q_length=q_length, kv_length=kv_length)
        return sdpa_mask(mask_function=mask_function, attention_mask=attention_mask, **lengths, **options)
    if attention_mask is None or (not torch.compiler.is_compiling() and attention_mask.all()):
        return None
    return attention_mask.bool()[:, None, None]


AttentionInterface.register("asa", _asa_attention_forward)
AttentionMaskInterface.register("asa", key_mask)  # without it, padding would be attended to without a word


def find_self_attention(model: PreTrainedModel) -> dict[nn.Module, int]:
    """The modules that call the attention function, in the order of the forward pass, and E that each reads.

    Found by running two tokens through the encoder, which proves at the same time that the family hands
    keywords down to its attention; InputError if it does not. The model comes back as it was.
    """
    unsupported = InputError(
        f"{model.config.model_type} models do not run plain attention through transformers' "
        f"AttentionInterface, so ASA cannot reach it; supported families: {SUPPORTED}"
    )
    if not model._supports_attention_backend or model.config.is_encoder_decoder:
        raise unsupported
    read, widths = {}, {}  # E of each module that gets the keyword; of those that call the attention function

    def look(module, args, kwargs):  # pre-hook of every module
        x = _hidden_states(args, kwargs)
        if kwargs.get("asa") is probe and isinstance(x, Tensor):
            read[module] = x.shape[-1]

    def record(module, *_, **options):
        if module not in read or any(options.get(name) is not None for name in UNKNOWN_TERMS):
            raise ValueError(f"{type(module).__name__} computes more than attention of its hidden states")
        widths[module] = read[module]

    probe, cuda = AsaPass(joint=False, record=record), [model.device] if model.device.type == "cuda" else []
    tokens = torch.ones(1, 2, dtype=torch.long, device=model.device)
    with ExitStack() as undo, torch.no_grad(), torch.random.fork_rng(devices=cuda):
        undo.callback(model.set_attn_implementation, model.config._attn_implementation)
        for module in model.modules():
            undo.enter_context(module.register_forward_pre_hook(look, with_kwargs=True))
        try:
            model.set_attn_implementation("asa")
            model.base_model(input_ids=tokens, attention_mask=torch.ones_like(tokens), asa=probe)
        except (TypeError, ValueError) as error:  # takes no such keyword, or `record` refuses
            raise unsupported from error
    if not widths:
        raise unsupported
    return widths  # ALBERT calls one shared module many times


def max_positions(model: PreTrainedModel) -> int | float:
    """Longest sequence, in tokens, that the position embeddings hold; inf if there is no such limit."""
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    if table is None:  # rotary positions have no end
        return math.inf
    # RoBERTa-like models start counting positions after the padding index.
    return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)


def double(name: str, value, size: int):
    """A keyword of a joint pass, from that of its `size` examples."""
    if not isinstance(value, Tensor) or value.ndim == 0 or name in SHARED:
        return value
    if name not in PER_EXAMPLE:
        raise InputError(
            f"a joint pass cannot tell whether {name}, {tuple(value.shape)}, has a row for each example; "
            "AsaConfig(joint_pass=False) passes it on as it is"
        )
    # One row for all examples, as in position_ids (1, L), serves both halves.
    return torch.cat([value, value]) if value.ndim > 1 and value.shape[0] == size else value


def check_inputs(model: PreTrainedModel, batch: dict, training: bool) -> int:
    """The batch size; InputError if there is no input, or if it is too long for the model; in training also
    if an example is all padding (only on the CPU, where looking costs no wait)."""
    if "asa" in batch:
        raise InputError("the wrapped model itself sets the keyword `asa`; to give your own, call .model")
    if not batch.keys() & {"input_ids", "inputs_embeds"}:
        raise InputError("the model needs input_ids or inputs_embeds")
    ids = batch["input_ids"] if "input_ids" in batch else batch["inputs_embeds"][..., 0]  # (B, L)
    size, length = ids.shape[0], ids.shape[-1]
    if length > (limit := max_positions(model)):
        raise InputError(f"sequences of {length} tokens are longer than the model's {limit} positions")
    mask = batch.get("attention_mask")
    looks = training and mask is not None and mask.ndim <= 3 and mask.device.type == "cpu"
    if looks and not torch.compiler.is_compiling():
        empty = (mask == 0).all(-1).nonzero()  # (n, 1), or with choices (n, 2)
        if len(empty):
            example = int(empty[0, 0])
            raise InputError(f"example {example} of the batch is all padding: its attention_mask has no 1")
    return size
