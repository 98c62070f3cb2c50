"""Checks of `ex00_tour`: Adversarial Self-Attention put around an encoder by hand, from hooks."""

import sys
from contextlib import contextmanager
from functools import partial
from itertools import count
from unittest.mock import Mock

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from asa_classroom.checks.encoders import classifier, hooked, in_block, left_alone, noting, random_batch
from asa_classroom.checks.harness import Ladder, call, require
from asa_mini import AsaConfig, wrap

ladder = Ladder()
NAMES = (f"asa_check_{number}" for number in count())  # of attention functions: the registry is global


@ladder.step(
    what=("softmax of logits", "softmax of adversarial_logits", "kept_share"),
    cases=[
        lambda: (wrap(classifier(), AsaConfig()), random_batch(6, 3), torch.arange(2)),
        lambda: (wrap(classifier(), AsaConfig(layers=[1])), random_batch(4), torch.arange(1)),
    ],
    mistakes={
        "evaluation mode makes no adversarial pass: call wrapped.train() first": dict(train=False),
        "the softmax must run over the classes, the last axis": dict(axis=0),
        "kept_units is a count, the adversary's pay: see kept_share": dict(share="kept_units"),
    },
)
def two_predictions(wrapped, batch, labels, *, train=True, axis=-1, share="kept_share"):
    out = wrapped.train(train)(**batch, labels=labels)
    return out.logits.softmax(axis), out.adversarial_logits.softmax(axis), out[share]


def observe_search(student, family, layers):
    model = classifier(family, layers)
    model.pooler = type("SelfAttentionPooler", (nn.Identity,), {})()
    got = call(student, model)
    names = {module: name for name, module in model.named_modules()}
    fits = isinstance(got, list) and names.keys() >= set(got)
    require(fits, "return a list of the modules themselves, not of names or classes")
    return [names[module] for module in got]


@ladder.step(
    what="the list of modules",
    cases=[("bert", 2), ("electra", 3), ("distilbert", 2)],
    observe=observe_search,
    mistakes={
        "the blocks around self-attention are in it, too: look for SelfAttention": dict(end="Attention"),
        "SelfAttentionPooler is in it, too: the name must *end* so": dict(find=str.__contains__),
        "only the first is found: return all of them": dict(number=1),
    },
)
def find_attention(model, *, end="SelfAttention", find=str.endswith, number=None):
    return [module for module in model.modules() if find(type(module).__name__, end)][:number]


@ladder.step(
    what="the kept share",
    cases=[
        lambda: (torch.rand(3, 5, 5) < 0.4, random_batch(5, 3, 2)["attention_mask"]),
        lambda: (torch.rand(2, 4, 4) < 0.4, random_batch(4, 4)["attention_mask"]),
        lambda: (torch.ones(1, 1, 1, dtype=torch.bool), random_batch(1)["attention_mask"]),
    ],
    mistakes={
        "padding is counted: a unit is real only if both ends are": lambda keep, _: keep.float().mean(),
        "padded queries are counted: both ends must be real": dict(rows=torch.ones_like),
        "add up the whole batch first, then divide once": dict(axes=(1, 2)),
    },
)
def kept_share(keep, attention_mask, *, rows=torch.clone, axes=(0, 1, 2)):
    real = attention_mask.bool()
    units = rows(real)[:, :, None] & real[:, None, :]
    return float(((keep & units).sum(axes) / units.sum(axes)).mean())


def observe_inputs(student, model, batch):
    modules = find_attention.reference(model) or [model]
    got = in_block(student, (modules,), lambda inputs: [inputs, model(**batch), model(**batch)][0], modules)
    require(isinstance(got, list), f"the block must get a list, not {got!r}: `yield` it")
    detached = not any(getattr(x, "requires_grad", False) for x in got)
    require(detached, "the inputs hold on to the graph of the pass: store x.detach()")
    return list(got)


@ladder.step(
    what="the list of inputs",
    cases=[
        lambda: (classifier(), random_batch(6, 3)),
        lambda: (noting([]), {"hidden_states": torch.randn(1, 1, 4)}),
    ],
    observe=observe_inputs,
    mistakes={
        "after an error your hooks are still there": dict(careful=False),
        "a hook that is not yours is gone, too: remove your own handles only": dict(greedy=True),
        "the inputs hold on to the graph of the pass: store x.detach()": dict(store=lambda x: x),
    },
)
@contextmanager
def recorded_inputs(modules, *, careful=True, greedy=False, store=torch.detach):
    inputs = []

    def record(module, args, kwargs):
        inputs.append(store(args[0] if args else kwargs["hidden_states"]))

    with hooked(modules, [record] * len(modules), careful):
        yield inputs
    if greedy:
        modules[0]._forward_pre_hooks.clear()


def attention_case(dtype, dim, lengths, masked, hide):
    L = max(lengths)
    qkv = [torch.randn(2, 2, L, dim, dtype=dtype, requires_grad=True) for _ in range(3)]
    keep = torch.rand(2, L, L) < 0.6
    keep[1, 0] = False  # a hidden row
    real = random_batch(*lengths)["attention_mask"].bool()
    allowed = real[:, None, None].expand(-1, 1, L, -1) if masked else None
    return *qkv, allowed, {"scaling": 0.7, "dropout": 0.0} | ({"keep": keep} if hide else {})


@ladder.step(
    what=("the output", "the matrix of weights"),
    cases=[
        partial(attention_case, torch.float64, 3, (5, 3), True, True),  # a hidden row beside padding
        partial(attention_case, torch.float32, 4, (2, 5), True, False),
        partial(attention_case, torch.float32, 4, (3, 3), False, True),
    ],
    observe=lambda student, q, k, v, allowed, options: call(student, None, q, k, v, allowed, **options),
    mistakes={
        "`scaling` is given: use it, not 1 / sqrt(D)": dict(own=True),
        "a hidden row attends to padding: padded scores must be far lower, and filled last": dict(far=1e4),
        "a hidden row sees padding alone: use -10000, not -inf": dict(hidden=torch.inf),
    },
)
def attention(module, q, k, v, allowed, *, scaling, keep=None, own=False, hidden=1e4, far=None, **kwargs):
    scores = (q.shape[-1] ** -0.5 if own else scaling) * q @ k.mT
    if keep is not None:
        scores = scores.masked_fill(~keep[:, None], -hidden)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -(far or torch.finfo(scores.dtype).max))
    weights = scores.softmax(-1)
    return (weights @ v).transpose(1, 2), weights


def observe_use(student, plain, lengths):
    model, batch = classifier(attention=plain), random_batch(*lengths)
    modules, function = list(model.modules()), Mock(side_effect=sdpa_attention_forward)
    got = in_block(student, (model, next(NAMES), function), lambda _: model(**batch).logits, modules)
    masks = [call.args[4] for call in function.call_args_list]
    require(masks, "the function was never called: register it under `name`, and choose that")
    boolean = all(mask is None or mask.dtype == torch.bool for mask in masks)
    require(boolean, "attention_mask is not boolean: register sdpa_mask as the mask function")
    return got


@ladder.step(
    what="the prediction",
    cases=[("sdpa", (6, 3)), ("eager", (5, 2))],
    observe=observe_use,
    mistakes={
        "padding is attended to: the mask function is not registered": dict(mask=None),
        "after an error the attention is not 'sdpa' again": dict(careful=False),
        "after the block the attention is not 'eager' again": dict(back="sdpa"),
    },
)
@contextmanager
def use_attention(model, name, function, *, mask=sdpa_mask, careful=True, back=None):
    AttentionInterface.register(name, function)
    if mask:
        AttentionMaskInterface.register(name, mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        if careful or sys.exc_info()[0] is None:
            model.set_attn_implementation(back or before)


def observe_extras(student, extras):
    calls, copies = [], [dict(extra) for extra in extras]
    layers = [noting(calls) for _ in extras]
    in_block(student, (layers, extras), lambda _: [layer(0, shared="yours") for layer in layers], layers)
    require(all(args == (0,) for args, _ in calls), "the positional arguments are lost: return args, too")
    require(extras == copies, "the dictionaries in `extras` were changed: make a new one in the hook")
    return [kwargs for _, kwargs in calls]


@ladder.step(
    what="what the layers were given",
    cases=[([{"keep": "a"}, {"keep": "b", "note": "n"}, {}, {"shared": "mine"}],), ([{"keep": "a"}],)],
    observe=observe_extras,
    mistakes={
        "every layer gets the last extras: fix `extra` when the hook is made": dict(late=True),
        "the layer's own keywords are lost: return {**kwargs, **extra}": dict(merge=lambda own, extra: extra),
        "the layer's keyword wins over yours: put **extra last": dict(merge=lambda own, extra: extra | own),
    },
)
@contextmanager
def hand_down(modules, extras, *, late=False, merge=dict.__or__):
    def adding(extra):
        return lambda module, args, kwargs: (args, merge(kwargs, extras[-1] if late else extra))

    with hooked(modules, [adding(extra) for extra in extras]):
        yield


def observe_attack(student, plain, lengths, training):
    model, batch = classifier(layers=3, attention=plain).train(training), random_batch(*lengths)
    a, b = (torch.rand(2, max(lengths), max(lengths)) < 0.5 for _ in range(2))
    a[1, 0] = False
    masks = [None, a, b] if training else [a, None, b]
    clean, modules = model(**batch).logits, list(model.modules())
    with left_alone(modules, "after the pass"):
        got = call(student, model, batch, masks)
    flows = getattr(got, "requires_grad", False)
    require(flows, "the result has no gradient, which training needs: no torch.no_grad()")
    require(torch.equal(model(**batch).logits, clean), "the clean prediction is another one afterwards")
    with left_alone(modules, "after an error"):
        try:  # 20 tokens are too many for this model
            student(model, {"input_ids": torch.ones(2, 20, dtype=torch.long)}, masks)
        except Exception as error:  # kept: the student's variables are still alive, as they are in a notebook
            _ = error
    return got


@ladder.step(
    what="the attacked prediction",
    cases=[("sdpa", (6, 3), False), ("eager", (5, 5), True)],
    observe=observe_attack,
    tolerance=1e-4,
    mistakes={
        "the masks do not reach the attention: this is the clean prediction": dict(seen=lambda keep: None),
        "the masks are turned round: True means kept": dict(seen=lambda m: m if m is None else ~m),
        "padding is attended to: hand on the whole batch": dict(names=["input_ids"]),
    },
)
def attacked_logits(model, batch, masks, *, seen=lambda keep: keep, names=None):
    extras = [{"keep": seen(keep)} for keep in masks]
    use, hand = use_attention.reference, hand_down.reference
    with use(model, next(NAMES), attention.reference), hand(find_attention.reference(model), extras):
        return model(**{name: batch[name] for name in names or batch}).logits
