"""Small encoders and padded batches for the checks; and whether a model is left as it was."""

import sys
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from asa_classroom.checks.compare import require
from asa_classroom.checks.harness import attempt, call


def classifier(
    family: str = "bert", layers: int = 2, attention: str = "sdpa", positions: int = 12
) -> PreTrainedModel:
    """Return a random classifier with 3 classes and 30 words in evaluation mode, without dropout."""
    options = {"hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2, "num_labels": 3}
    options |= {"vocab_size": 30, "max_position_embeddings": positions, "initializer_range": 0.5}
    options |= dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    config = AutoConfig.for_model(family, **options, attn_implementation=attention)
    return AutoModelForSequenceClassification.from_config(config).eval()


def tokens(*lengths: int) -> Tensor:
    """Boolean (B, L), True for tokens, of sequences so long; padding at the end, at the front if negative."""
    n = torch.tensor(lengths)[:, None]
    place = torch.arange(int(n.abs().max()))
    return torch.where(n > 0, place < n, place >= len(place) + n)


def random_batch(*lengths: int) -> dict[str, Tensor]:
    """Return input_ids and attention_mask, both (B, L), of sequences with so many real tokens."""
    real = tokens(*lengths)
    return {"input_ids": torch.randint(1, 30, real.shape) * real, "attention_mask": real.long()}


def noting(calls: list[tuple]) -> nn.Module:
    """Return a module that appends (args, kwargs) of each call to `calls`."""
    layer = nn.Module()
    layer.forward = lambda *args, **kwargs: calls.append((args, kwargs))
    return layer


@contextmanager
def hooked(modules: list[nn.Module], hooks: list[Callable], careful: bool = True):
    """Give each module a forward pre-hook inside the block; unless `careful`, they stay after an error."""
    pairs = zip(modules, hooks, strict=True)
    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module, hook in pairs]
    try:
        yield
    finally:
        for handle in handles if careful or sys.exc_info()[0] is None else ():
            handle.remove()


@contextmanager
def left_alone(modules: Iterable[nn.Module], when: str):
    """Raise CheckFailed unless hooks, attention, modes and attributes are afterwards what they were."""

    def state(module: nn.Module) -> tuple:
        attention = getattr(getattr(module, "config", None), "_attn_implementation", None)
        hooks = len(module._forward_pre_hooks) + len(module._forward_hooks)
        return hooks, attention, module.training, sorted(vars(module))

    before = [state(module) for module in modules]
    yield
    for now, then in zip(map(state, modules), before, strict=True):
        require(now[0] >= then[0], "a hook that is not yours is gone, too: remove your own handles only")
        require(now[0] == then[0], f"{when} your hooks are still there: remove() each handle in `finally`")
        require(now[1] == then[1], f"{when} the attention is not {then[1]!r} again: go back in `finally`")
        require(now[2:] == then[2:], f"{when} a module's mode or attributes are other ones")


def in_block(student: Callable, args: tuple, body: Callable[[Any], Any], modules: list[nn.Module]) -> Any:
    """Return what `body` returns inside `with student(*args)`; after it all must be `left_alone`."""
    modules[0].register_forward_pre_hook(lambda module, args: None)  # not the student's: it must stay

    def run() -> Any:
        with call(student, *args) as value:
            return body(value)

    with left_alone(modules, "after the block"):
        result = attempt(run)
    with left_alone(modules, "after an error"), suppress(ZeroDivisionError), student(*args):
        raise ZeroDivisionError
    return result
