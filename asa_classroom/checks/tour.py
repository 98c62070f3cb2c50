"""Checks of `ex00_tour`: Adversarial Self-Attention put around an encoder by hand, from hooks."""

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from asa_classroom.checks import masked_attention
from asa_classroom.checks.encoders import (
    attacked,
    built_in_attention,
    classifier,
    in_block,
    noting_layer,
    of_case,
    random_batch,
    require_state,
    state,
    tidy,
)
from asa_classroom.checks.old_harness import CheckFailed, Ladder, call, require, same
from asa_mini import AsaConfig, wrap
from asa_mini.hf import find_self_attention

ladder = Ladder("ex00_tour")


@ladder.step
def two_predictions(student):
    for layers, lengths in ((None, (6, 3)), ([1], (4,))):
        wrapped, batch = wrap(classifier(), AsaConfig(layers=layers)), random_batch(*lengths)
        labels = torch.arange(len(lengths))
        out = wrapped.train()(**batch, labels=labels)
        wrapped.eval()
        case = f"{len(lengths)} sentences, 3 classes, layers={layers}"
        try:
            with of_case(case):
                got = call(student, wrapped, batch, labels)
        except CheckFailed as error:
            evaluation = "adversarial_logits" in str(error) and not wrapped.training
            require(not evaluation, "evaluation mode makes no adversarial pass: call wrapped.train() first")
            raise
        three = isinstance(got, (tuple, list)) and len(got) == 3
        require(three, "return three tensors: clean probabilities, adversarial ones, kept share")
        clean, attacked = (x.softmax(-1) for x in (out.logits, out.adversarial_logits))
        rows = (
            ("logits", "the predictions are in the wrong order: the clean one comes first", attacked),
            ("adversarial_logits", "both predictions are the clean one: see adversarial_logits", clean),
        )
        for number, prediction, (name, swapped, other) in zip(("first", "second"), got, rows, strict=False):
            logits = getattr(out, name)
            known = {
                swapped: other,
                f"the {number} tensor is logits: take the softmax": logits,
                "the softmax must run over the classes, the last axis": logits.softmax(0),
            }
            what = f"the {number} tensor (softmax of {name})"
            same(prediction, logits.softmax(-1), what, case, known)
        known = {
            "kept_units is a count, the adversary's pay: see kept_share": out.kept_units,
            "the kept share is asked layer by layer: no mean": out.kept_share.mean(),
        }
        same(got[2], out.kept_share, "the third tensor (kept_share as it is)", case, known)
    return "two sentences in a padded batch, one sentence with one layer attacked"


@ladder.step
def find_attention(student):
    shared = classifier()
    shared.bert.encoder.layer[1].attention.self = shared.bert.encoder.layer[0].attention.self
    decoy = classifier()
    decoy.pooler = type("SelfAttentionPooler", (nn.Identity,), {})()
    cases = {
        "BERT with a SelfAttentionPooler": decoy,
        "ELECTRA, 3 layers": classifier("electra", 3),
        "DistilBERT": classifier("distilbert"),
    }
    for case, model in {**cases, "BERT whose two layers share a module": shared}.items():
        with of_case(case):
            got = call(student, model)
            require(isinstance(got, list), f"return a list, not a {type(got).__name__}")
            fits = all(isinstance(module, nn.Module) for module in got)
            require(fits, "return a list of the modules themselves, not of names or classes")
        names = {module: name for name, module in model.named_modules()}
        right = [names[module] for module in find_self_attention(model)]
        around = [name for module, name in names.items() if type(module).__name__.endswith("Attention")]
        within = [name for module, name in names.items() if "SelfAttention" in type(module).__name__]
        inside = [name for name in names.values() if any(name.startswith(r) for r in right)]
        known = {
            "the blocks around self-attention are in it, too: look for SelfAttention": around,
            "SelfAttentionPooler is in it, too: the class name must *end* with SelfAttention": within,
            "the linear maps inside are in it, too: look at the class, not the path": inside,
            "the order is reversed": right[::-1],
            "only the first is found: return all of them": right[:1],
            "a shared module is listed twice: model.modules() shows it once": right * 2,
        }
        same([names.get(module, "?") for module in got], right, "the list of modules", case, known)
    return "three families, a class of a similar name, and two layers that share one module"


@ladder.step
def kept_share(student):
    for case, keep, lengths in (
        ("random mask, real tokens 5, 3, 2", torch.rand(3, 5, 5) < 0.4, (5, 3, 2)),
        ("random mask, no padding", torch.rand(2, 4, 4) < 0.4, (4, 4)),
        ("nothing kept", torch.zeros(2, 4, 4, dtype=torch.bool), (4, 1)),
        ("one token", torch.ones(1, 1, 1, dtype=torch.bool), (1,)),
    ):
        mask = random_batch(*lengths)["attention_mask"]
        rows, columns = mask.bool()[:, :, None].expand_as(keep), mask.bool()[:, None].expand_as(keep)
        units, kept = rows & columns, keep & rows & columns
        queries, keys = keep[rows].sum() / mask.sum(), keep[columns].sum() / mask.sum()
        known = {
            "padding is counted: a unit is real only if its query and its key are": keep.float().mean(),
            "padded queries are counted: both ends must be real": keep[columns].float().mean(),
            "padded keys are counted: both ends must be real": keep[rows].float().mean(),
            "you divide by all units, padded ones included": kept.sum() / keep.numel(),
            "kept units of padding are counted: `keep` may be True there": keep.sum() / units.sum(),
            "this is the share that is switched off": 1 - kept.sum() / units.sum(),
            "add up the whole batch first, then divide once": (kept.sum((1, 2)) / units.sum((1, 2))).mean(),
            "the same view twice: one is `[:, :, None]`, the other `[:, None, :]`": queries,
            "the same view twice: one is `[:, None, :]`, the other `[:, :, None]`": keys,
            "this is a count: divide by the number of real units": kept.sum(),
            "0 and 1 as an index pick sentences 0 and 1: make the map boolean first": (
                keep.repeat(2, 1, 1)[units.long()].float().mean()  # repeated: there may be one sentence
            ),
        }
        with of_case(case):
            got = call(student, keep, mask)
            shape = tuple(got.shape) if isinstance(got, Tensor) else ()
            require(not shape, f"return one number for the whole batch, not a tensor of shape {shape}")
        same(got, (kept.sum() / units.sum()).item(), "the kept share", case, known)
    return "two padded batches, one without padding, a single token"


@ladder.step
def recorded_inputs(student):
    model, batch = classifier(), random_batch(6, 3)
    modules = find_self_attention(model)
    right = [*model(**batch, output_hidden_states=True).hidden_states[:2]] * 2
    got = in_block(student, (modules,), lambda inputs: [inputs, model(**batch), model(**batch)][0], modules)
    require(isinstance(got, list), f"the block must get a list, not {got!r}: `yield` it")
    known = {
        "only the last input is there: append to the list": right[-1:],
        "the list is empty: are the hooks there before `yield`, is it left filled after the block?": [],
        "only the first module has a hook": right[::2],
        "only the last module has a hook": right[1::2],
    }
    same(got, right, "the list of inputs", "a model of two layers, called twice", known)
    require(not got[0].requires_grad, "the inputs hold on to the graph of the pass: store x.detach()")
    layer, x = noting_layer([]), torch.randn(1, 1, 4)
    got = in_block(student, ([layer],), lambda inputs: [layer(hidden_states=x), inputs][1], [layer])
    same(got, [x], "the list of inputs", "one layer, hidden_states given by name")
    return "two layers in two passes, one layer, an error, an input given by name"


attention = ladder.step(masked_attention.attention)


@ladder.step
@tidy
def use_attention(student):
    for number, (plain, lengths) in enumerate((("sdpa", (6, 3)), ("eager", (5, 2)), ("sdpa", (4,)))):
        model, batch, masks = classifier(attention=plain), random_batch(*lengths), []

        def function(module, query, key, value, attention_mask, masks=masks, **kwargs):
            masks.append(attention_mask)
            return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

        def run(_, model=model, batch=batch, plain=plain, name=f"asa_check_{number}"):
            chosen = model.config._attn_implementation
            advice = "choose `name`" if chosen == plain else "use the argument `name`, without quotes"
            require(chosen == name, f"inside the block the attention is {chosen!r}: {advice}")
            return model(**batch).logits

        right, unpadded = model(**batch).logits, model(input_ids=batch["input_ids"]).logits
        case = f"{plain} before, {lengths} real tokens"
        with of_case(case):
            got = in_block(student, (model, f"asa_check_{number}", function), run, list(model.modules()))
        require(masks, "the function was never called: register it under `name`")
        known = {"padding is attended to: the mask function is not registered": unpadded}
        same(got, right, "the prediction", case, known)
        boolean = all(mask is None or mask.dtype == torch.bool for mask in masks)
        require(boolean, "attention_mask is not boolean: register sdpa_mask as the mask function")
    return "padded and not, two kinds of attention to go back to, an error"


@ladder.step
def hand_down(student):
    for extras in ([{"keep": "a"}, {"keep": "b", "note": "n"}, {}, {"shared": "mine"}], [{"keep": "a"}]):
        calls, copies, given = [], [dict(extra) for extra in extras], {"shared": "yours"}
        layers = [noting_layer(calls) for _ in extras]

        def told(dictionaries):
            return [" ".join(f"{k}={v}" for k, v in sorted(x.items())) for x in dictionaries]

        def run(_, layers=layers):
            return [layer(0, shared="yours") for layer in layers]

        try:
            in_block(student, (layers, extras), run, layers)
        except CheckFailed as error:
            require("must be a mapping, not tuple" not in str(error), "return (args, kwargs), in this order")
            raise
        require(all(args == (0,) for args, _ in calls), "the positional arguments are lost: return args, too")
        last = [given | extras[-1]] * len(layers)
        known = {
            "nothing arrives: return (args, new keywords) from the hook": told([given] * len(layers)),
            "every layer gets the last extras: fix `extra` when the hook is made": told(last),
            "the extras arrive in reverse order": told([given | x for x in extras[::-1]]),
            "the layer's own keywords are lost: return {**kwargs, **extra}": told(extras),
            "the layer's keyword wins over yours: put **extra last": told([x | given for x in extras]),
        }
        got, right = told(kwargs for _, kwargs in calls), told([given | x for x in extras])
        same(got, right, "what the layers were given", f"{len(layers)} layers", known)
        require(extras == copies, "the dictionaries in `extras` were changed: make a new one in the hook")
    return "four layers, one of them with nothing, one layer, an error"


@ladder.step
@tidy
def attacked_logits(student):
    for plain, lengths, training in (("sdpa", (6, 3), False), ("eager", (5, 5), True)):
        model, batch = classifier(layers=3, attention=plain).train(training), random_batch(*lengths)
        a, b = (torch.rand(2, max(lengths), max(lengths)) < 0.5 for _ in range(2))
        a[1, 0] = False
        given = [None, a, b] if training else [a, None, b]
        modules, clean = list(model.modules()), model(**batch).logits
        before, functions = state(modules), built_in_attention()
        mode = "training" if training else "evaluation"
        case = f"layer {given.index(None)} left alone, {mode} mode, {lengths} real tokens"
        with of_case(case):
            got = call(student, model, batch, given)
        for name, function in built_in_attention().items():
            kept = function is functions[name]
            require(kept, f"the built-in attention {name!r} was overwritten: choose another name")
        mistakes = {
            "the masks do not reach the attention: this is the clean prediction": [None] * 3,
            "the masks are turned round: True means kept": [x if x is None else ~x for x in given],
            "every layer gets the first mask": given[:1] * 3,
            "a None must keep its place: masks[i] belongs to layer i": [a, b, None],
            "the masks come in reverse order": given[::-1],
            "only the first layer is attacked": [given[0], None, None],
        }
        known = {hint: attacked(model, batch, masks) for hint, masks in mistakes.items()}
        bare = {"input_ids": batch["input_ids"]}
        known["padding is attended to: hand on the whole batch"] = attacked(model, bare, given)
        same(got, attacked(model, batch, given), "the attacked prediction", case, known, 1e-4)
        require(got.requires_grad, "the result has no gradient, which training needs: no torch.no_grad()")
        require_state(modules, before, f"after the pass in {mode} mode")
        require(torch.equal(model(**batch).logits, clean), "the clean prediction is another one afterwards")
        try:  # 20 tokens are too many for this model
            student(model, {"input_ids": torch.ones(2, 20, dtype=torch.long)}, given)
        except Exception:  # here, while the student's variables are still alive, as they are in a notebook
            require_state(modules, before, "after an error")
    return "padded and not, both modes, a layer that is left alone, an error inside the pass"
