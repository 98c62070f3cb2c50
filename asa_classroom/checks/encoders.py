"""What the checks of `ex00_tour` need of encoders: small ones, attacked ones, and ones left as they were."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from asa_classroom.checks.old_harness import CheckFailed, Unfinished, attempt, call, fail, require
from asa_mini import wrap
from asa_mini.hf import AsaPass, find_self_attention


def classifier(family: str = "bert", layers: int = 2, attention: str = "sdpa") -> PreTrainedModel:
    """Return a random classifier with 3 classes in evaluation mode, without dropout, for up to 12 tokens."""
    options = {"hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2, "num_labels": 3}
    options |= {"vocab_size": 30, "max_position_embeddings": 12, "initializer_range": 0.5}
    options |= dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    config = AutoConfig.for_model(family, **options)
    config._attn_implementation = attention
    return AutoModelForSequenceClassification.from_config(config).eval()


def random_batch(*lengths: int) -> dict[str, Tensor]:
    """Return input_ids and attention_mask, both (B, L), of sequences with so many real tokens."""
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {"input_ids": torch.randint(1, 30, real.shape) * real, "attention_mask": real.long()}


def noting_layer(calls: list[tuple]) -> nn.Module:
    """Return a module that appends (args, kwargs) of each call to `calls`."""
    layer = nn.Module()
    layer.forward = lambda *args, **kwargs: calls.append((args, kwargs))
    return layer


def adversary_of(keep: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return an adversary that wants exactly `keep` (B, L, L), whatever it reads."""
    eye = torch.eye(keep.shape[-1]).expand(keep.shape)
    return lambda x: ((2 * keep - 1).to(x.dtype), eye.to(x.dtype))


def attacked(model: PreTrainedModel, batch: dict[str, Tensor], masks: list[Tensor | None]) -> Tensor:
    """Return the logits (B, C) by `wrap`, its adversaries replaced by ones that want `masks`."""
    wrapped = wrap(model)
    for module, keep in zip(find_self_attention(model), masks, strict=True):
        for hook in module._forward_pre_hooks.values():
            hook.adversary = None if keep is None else adversary_of(keep)
    with wrapped.attackable() as plain:
        logits = plain(**batch, asa=AsaPass(joint=False, backend="reference")).logits
    wrapped.unwrap()
    return logits


def built_in_attention() -> dict[str, Callable | None]:
    """Return what is registered under the names that a student must leave alone; None for nothing."""
    return {name: AttentionInterface._global_mapping.get(name) for name in ("sdpa", "eager", "asa")}


def tidy(check: Callable) -> Callable:
    """Forget afterwards what a student registers, so that no check helps or harms a later one."""
    for interface in (AttentionInterface, AttentionMaskInterface):
        check = patch.dict(interface._global_mapping)(check)
    return check


@contextmanager
def of_case(case: str) -> Iterator[None]:
    """Add the case, in words, to a CheckFailed that leaves the block."""
    try:
        yield
    except Unfinished:
        raise
    except CheckFailed as error:
        raise CheckFailed(f"{error}\n  case      {case}") from None


def state(modules: Iterable[nn.Module]) -> list[tuple]:
    """Return per module its number of hooks, attention function, mode, and the names of its attributes."""

    def look(module: nn.Module) -> tuple:
        attention = getattr(getattr(module, "config", None), "_attn_implementation", None)
        hooks = len(module._forward_pre_hooks) + len(module._forward_hooks)
        return hooks, attention, module.training, sorted(vars(module))

    return [look(module) for module in modules]


def require_state(modules: Iterable[nn.Module], before: list[tuple], when: str) -> None:
    """Raise CheckFailed unless `state(modules)` is still what it was `before`."""
    advice = " in `finally`" if "error" in when else ""
    for now, then in zip(state(modules), before, strict=True):
        require(now[0] >= then[0], "a hook that is not yours is gone, too: remove your own handles only")
        require(now[0] == then[0], f"{when} your hooks are still there: remove() each handle{advice}")
        chosen = repr(now[1]) if now[1] in ("sdpa", "eager") else "still the one of the block"
        require(now[1] == then[1], f"{when} the attention is {chosen}: go back to {then[1]!r}{advice}")
        require(now[2:] == then[2:], f"{when} a module's mode or attributes are other ones")


def in_block(student: Callable, args: tuple, body: Callable[[Any], Any], modules: list[nn.Module]) -> Any:
    """Return what `body` returns inside the `with` block of `student(*args)`, a context manager.

    Raises:
        CheckFailed: the modules are not as they were after the block, or after an error in it; the error
            was swallowed; the student's code stopped.
    """
    modules[0].register_forward_pre_hook(lambda module, args: None)  # not the student's: it must stay
    before = state(modules)

    def run(body: Callable[[Any], Any]) -> Any:
        manager = call(student, *args)
        usable = hasattr(manager, "__exit__") and hasattr(getattr(manager, "gen", iter(())), "__next__")
        require(usable, "`with` cannot use the result: is @contextmanager above it, and a `yield` in it?")
        with manager as value:
            return body(value)

    result = attempt(run, body)
    require_state(modules, before, "after the block")
    try:
        run(lambda value: 1 / 0)
    except ZeroDivisionError:
        require_state(modules, before, "after an error")
        return result
    fail("an error in the block was swallowed: `finally` needs no `except`, no `return`")
