"""Planted mistakes in the solutions of ex00_tour: step -> (old text, new text, first line of the check's
message, a regular expression)."""

LOOP = """handles = [
        module.register_forward_pre_hook(adding(extra), with_kwargs=True)
        for module, extra in zip(modules, extras, strict=True)
    ]"""
LATE = """handles = []
    for module, extra in zip(modules, extras, strict=True):
        hook = lambda module, args, kwargs: (args, {**kwargs, **extra})
        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))"""
FINALLY = """    try:
        yield
    finally:
        for handle in handles:
            handle.remove()"""
REGISTER_MASK = "    AttentionMaskInterface.register(name, sdpa_mask)\n"
ATTACK = "    with use_attention(model, "
BUGS = {
    "two_predictions": [
        ("wrapped.train()(", "wrapped(", "evaluation mode makes no adversarial pass"),
        ("wrapped.train()(", "wrapped.eval()(", "evaluation mode makes no adversarial pass"),
        (
            "out.logits.softmax(-1), out.adversarial_logits.softmax(-1)",
            "out.adversarial_logits.softmax(-1), out.logits.softmax(-1)",
            "the clean one comes first",
        ),
        (".softmax(-1)", "", "the first tensor is logits: take the softmax"),
        ("out.adversarial_logits.softmax(-1)", "out.adversarial_logits", "the second tensor is logits"),
        ("adversarial_logits.softmax(-1)", "adversarial_logits.sigmoid()", "the second tensor .* not right"),
        ("out.kept_share", "1 - out.kept_share", "the third tensor .kept_share as it is. is not right"),
        ("out.kept_share", "out.kept_share[:1]", "the third tensor .* has the wrong shape"),
        (", out.kept_share", "", "return three tensors"),
        ("softmax(-1)", "softmax(0)", "over the classes"),
        ("out.adversarial_logits", "out.logits", "both predictions are the clean one"),
        ("out.kept_share", "out.kept_units", "kept_units is a count"),
        ("out.kept_share", "out.kept_share.mean()", "layer by layer: no mean"),
        ("    return out", "    out", "`return` missing"),
    ],
    "find_attention": [
        ('endswith("SelfAttention")', 'endswith("Attention")', "blocks around self-attention are in it"),
        (
            'for module in model.modules() if type(module).__name__.endswith("SelfAttention")',
            'for name, module in model.named_modules() if ".attention.self" in name',
            "linear maps inside are in it",
        ),
        (
            'for module in model.modules() if type(module).__name__.endswith("SelfAttention")',
            'for name, module in model.named_modules() if name.endswith("attention.self")',
            "the list of modules is not right",
        ),
        ("[module for", "[type(module) for", "not of names or classes"),
        (
            '[module for module in model.modules() if type(module).__name__.endswith("SelfAttention")]',
            '(m for m in model.modules() if type(m).__name__.endswith("SelfAttention"))',
            "return a list, not a generator",
        ),
        ('.endswith("SelfAttention")', '.find("SelfAttention") >= 0', "SelfAttentionPooler is in it"),
        ('SelfAttention")]', 'SelfAttention")][:1]', "only the first is found"),
        ('SelfAttention")]', 'SelfAttention")][::-1]', "order is reversed"),
        (
            "for module in model.modules() if",
            "for _, module in model.named_modules(remove_duplicate=False) if",
            "shared module is listed twice",
        ),
        (
            '[module for module in model.modules() if type(module).__name__.endswith("SelfAttention")]',
            "[layer.attention.self for layer in model.bert.encoder.layer]",
            "AttributeError.*'bert'",
        ),
    ],
    "kept_share": [
        ("(keep & units).sum() / units.sum()", "keep.float().mean()", "padding is counted: a unit is real"),
        ("real[:, :, None] & real[:, None, :]", "real[:, None, :].expand_as(keep)", "padded queries"),
        ("real[:, :, None] & real[:, None, :]", "real[:, :, None].expand_as(keep)", "padded keys"),
        ("/ units.sum()", "/ keep.numel()", "divide by all units"),
        ("(keep & units).sum()", "keep.sum()", "kept units of padding are counted"),
        ("(keep & units)", "(~keep & units)", "share that is switched off"),
        (" / units.sum()", "", "this is a count"),
        ("real[:, None, :]", "real[:, :, None]", r"view twice: one is .\[:, :, None\]"),
        ("real[:, :, None]", "real[:, None, :]", r"view twice: one is .\[:, None, :\]"),
        (
            "(keep & units).sum() / units.sum()",
            "(keep & units).sum(2) / units.sum(2)",
            r"not a tensor of shape \(3, 5\)",
        ),
        (
            "(keep & units).sum() / units.sum()",
            "((keep & units).sum((1, 2)) / units.sum((1, 2))).mean()",
            "add up the whole batch first",
        ),
        (
            "(keep & units).sum() / units.sum()",
            "keep[units.long()].float().mean()",
            "pick sentences 0 and 1: make the map boolean",
        ),
        ("(keep & units).sum()", "keep.mul_(units).sum()", "changed its argument in place"),
    ],
    "recorded_inputs": [
        (
            "    finally:",
            "    except ImportError:\n        pass\n    else:",
            "after an error your hooks .* in `finally`",
        ),
        ("            handle.remove()", "            pass", "after the block your hooks are still there"),
        (
            "            handle.remove()",
            "            handle.remove()\n        inputs.clear()",
            "is it left filled after the block",
        ),
        ("in handles:", "in handles[1:]:", "after the block your hooks are still there"),
        (
            "            handle.remove()",
            "            handle.remove()\n        return",
            "error .*was swallowed",
        ),
        (
            "        for handle in handles:\n            handle.remove()",
            "        for module in modules:\n            module._forward_pre_hooks.clear()",
            "a hook that is not yours is gone",
        ),
        ("hidden_states.detach()", "hidden_states", r"store x\.detach\(\)"),
        ("args[0] if args else kwargs", "kwargs", "KeyError.*hidden_states"),
        ('args[0] if args else kwargs["hidden_states"]', "args[0]", "IndexError"),
        ("for module in modules]", "for module in modules[:1]]", "only the first module has a hook"),
        (
            "inputs.append(hidden_states.detach())",
            "inputs[:] = [hidden_states.detach()]",
            "only the last inp",
        ),
        ("yield inputs", "yield", "`yield` it"),
        ("@contextmanager\n", "", "`with` cannot use the result"),
        ("        yield inputs", "        return inputs", "`with` cannot use the result"),
    ],
    "attention": [
        ("scaling * query", "query", "the scores are not scaled"),
        ("scaling * query", "query.shape[-1] ** -0.5 * query", "`scaling` is given: use it"),
        ("softmax(-1)", "softmax(-2)", "softmax runs over the queries"),
        ("scores.masked_fill(~keep[:, None], -10000.0)", "scores", "`keep` is not used"),
        ("~keep", "keep", "`keep` is turned round"),
        (
            "scores = scores.masked_fill",
            "scores.masked_fill",
            "neither mask is used: masked_fill returns",
        ),
        (
            "scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)",
            "scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)\n"
            "        scores = scores.masked_fill(~keep[:, None], -torch.inf)",
            "NaN or sees padding alone",
        ),
        ("fill(~", "fill(", "both masks are turned round"),
        (
            ".transpose(1, 2), weights",
            ".reshape(len(query), query.shape[2], *query.shape[1::2]), weights",
            "reshape mixes heads and tokens",
        ),
        ("~keep[:, None]", "~keep", "`keep` belongs to sentences"),
        ("scores.masked_fill(~attention_mask", "scores.masked_fill(attention_mask", "mask is turned round"),
        (
            "scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)",
            "scores",
            "attention_mask is not used",
        ),
        ("torch.finfo(scores.dtype).min", "-10000.0", "a hidden row attends to padding"),
        ("-10000.0", "torch.finfo(scores.dtype).min", "a hidden row attends to padding"),
        ("-10000.0", "-torch.inf", "a hidden row sees padding alone"),
        (
            "scores.masked_fill(~keep[:, None], -10000.0)",
            "scores - 10000 * (~keep[:, None])",
            "-10000 is added",
        ),
        ("(weights @ value).transpose(1, 2), weights", "weights @ value, weights", "swap H and L"),
        (".transpose(1, 2), weights", ".transpose(1, 2)", "return two tensors"),
        ("weights = scores.softmax(-1)", "weights = scores.softmax(-1).detach()", "gradient of query, key"),
        ("if attention_mask is not None:", "if True:", "TypeError.*NoneType"),
        ("keep=None, **kwargs", "keep=None", "TypeError.*unexpected keyword"),
    ],
    "use_attention": [
        (REGISTER_MASK, "", "padding is attended to: the mask function is not registered"),
        ("(name, sdpa_mask)", '("sdpa", sdpa_mask)', "padding is attended to: the mask function"),
        (
            "(name, sdpa_mask)",
            "(name, transformers.masking_utils.eager_mask)",
            "attention_mask is not boolean",
        ),
        (
            "    AttentionInterface.register(name, function)\n",
            "    AttentionInterface.register('sdpa', function)\n",
            "ValueError.*is not supported",
        ),
        (
            "    model.set_attn_implementation(name)\n",
            '    AttentionInterface.register("mine", function)\n    model.set_attn_implementation("mine")\n',
            "'mine': use the argument `name`, without quotes",
        ),
        ("    model.set_attn_implementation(name)\n", "", "inside the block the attention is 'sdpa'"),
        ("        model.set_attn_implementation(before)", "        pass", "after the block the attention is"),
        (
            "set_attn_implementation(before)",
            'set_attn_implementation("sdpa")',
            "after the block .*go back to 'eager'",
        ),
        (
            "    finally:",
            "    except ImportError:\n        pass\n    else:",
            "after an error the attention .* in `finally`",
        ),
        ("    finally:", "    except Exception:\n        pass\n    finally:", "error .*was swallowed"),
        (
            "    before = model.config._attn_implementation\n    model.set_attn_implementation(name)",
            "    model.set_attn_implementation(name)\n    before = model.config._attn_implementation",
            "after the block the attention is still the one of the block: go back to 'sdpa'",
        ),
    ],
    "hand_down": [
        (LOOP, LATE, "every layer gets the last extras"),
        (
            "return lambda module, args, kwargs: (args,",
            "return lambda module, args, kwargs: ((),",
            "args, too",
        ),
        ("{**kwargs, **extra}", "extra", "the layer's own keywords are lost"),
        ("{**kwargs, **extra}", "{**extra, **kwargs}", "the layer's keyword wins"),
        (
            "kwargs: (args, {**kwargs, **extra})",
            "kwargs: extra.update({**kwargs, **extra}) or (args, extra)",
            "dictionaries in `extras` were changed",
        ),
        ("kwargs: (args, {**kwargs, **extra})", "kwargs: None", "nothing arrives"),
        ("zip(modules, extras, strict=True)", "zip(modules, extras[::-1])", "in reverse order"),
        ("            handle.remove()", "            pass", "after the block your hooks are still there"),
        (FINALLY, FINALLY.replace("finally", "except ImportError"), "after the block your hooks are still"),
        (
            FINALLY,
            "    yield\n    for handle in handles:\n        handle.remove()",
            "after an error your hooks .* in `finally`",
        ),
        ("(args, {**kwargs, **extra})", "({**kwargs, **extra}, args)", r"\(args, kwargs\), in this order"),
        ("(args, {**kwargs, **extra})", "{**kwargs, **extra}", "RuntimeError.*forward pre-hook must return"),
    ],
    "attacked_logits": [
        ('"attacked", attention', '"sdpa", attention', "the built-in attention 'sdpa' was overwritten"),
        ('"attacked", attention', '"eager", attention', "the built-in attention 'eager' was overwritten"),
        ('"attacked", attention', '"asa", attention', "the built-in attention 'asa' was overwritten"),
        (
            '{"keep": keep} for keep in masks',
            '{"mask": keep} for keep in masks',
            "do not reach the attention",
        ),
        ("), hand_down(find_attention(model), extras)", ")", "do not reach the attention"),
        (
            '"keep": keep}',
            '"keep": None if keep is None else ~keep}',
            "masks are turned round",
        ),
        ('"keep": keep} for keep in masks', '"keep": masks[0]} for _ in masks', "gets the first mask"),
        ("in masks]", "in masks[::-1]]", "in reverse order"),
        ("in masks]", "in masks if keep is not None] + [{}]", "a None must keep its place"),
        (
            "    with use_attention",
            "    model.eval()\n    with use_attention",
            "after the pass in training mode a module's mode",
        ),
        ('"keep": keep} for keep in masks]', '"keep": masks[0]}, {}, {}]', "only the first layer"),
        ("model(**batch)", 'model(input_ids=batch["input_ids"])', "padding is attended to"),
        (ATTACK, ATTACK.replace("with", "with torch.no_grad(),"), "no gradient, which training needs"),
        ("        return model(**batch).logits", "        model(**batch).logits", "`return` missing"),
        (
            "    with use_attention",
            "    model.train()\n    with use_attention",
            "after the pass in evaluation mode a module's mode",
        ),
        (
            '    with use_attention(model, "attacked", attention), hand',
            '    AttentionInterface.register("attacked", attention)\n'
            '    AttentionMaskInterface.register("attacked", sdpa_mask)\n'
            '    model.set_attn_implementation("attacked")\n    with hand',
            "after the pass .* the attention is still the one of the block",
        ),
        (
            "hand_down(find_attention(model), extras):\n        return model(**batch).logits",
            "torch.enable_grad():\n        manager = hand_down(find_attention(model), extras)\n"
            "        manager.__enter__()\n        logits = model(**batch).logits\n"
            "        manager.__exit__(None, None, None)\n        return logits",
            "after an error your hooks are still there",
        ),
    ],
}
