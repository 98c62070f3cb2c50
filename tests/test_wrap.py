"""`wrap`: its options, what may be passed to the wrapped model, and what is refused."""

import copy
import gc
import json
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import assert_same, batch, checkpoint, step, tiny, wrapped

import asa_mini
from asa_mini import AsaConfig
from asa_mini.errors import InputError
from asa_mini.hf import AsaPass


@pytest.mark.parametrize("name", ["temperature", "alpha", "gradient_reversal_scale"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "0.5", None, True])
def test_numbers_out_of_range(name, value):
    with pytest.raises(InputError, match=f"{name} must be a finite number >= 0, but is {value!r}"):
        AsaConfig(**{name: value})


@pytest.mark.parametrize("value", ["no", 1, None])
def test_joint_pass_is_a_truth_value(value):
    with pytest.raises(InputError, match=f"joint_pass must be True or False, but is {value!r}"):
        AsaConfig(joint_pass=value)


def test_unknown_backend():
    with pytest.raises(InputError, match="unknown attention backend 'flash'"):
        AsaConfig(backend="flash")


@pytest.mark.parametrize(
    "layers, message",
    [
        ([0, -1], r"indices counted from 0, but are \[0, -1\]"),
        ([0.0], r"indices counted from 0, but are \[0.0\]"),
        ([True], r"indices counted from 0, but are \[True\]"),
        (["0"], r"indices counted from 0, but are \['0'\]"),
        ([1, 1], r"a layer is attacked once, but layers are \[1, 1\]"),
        (1, "layers must be a list of layer indices, but is 1"),
        ("01", "layers must be a list of layer indices, but is '01'"),
    ],
)
def test_layers_that_are_none(layers, message):
    with pytest.raises(InputError, match=message):
        AsaConfig(layers=layers)


def trace(model) -> list:
    """What `wrap` could leave behind."""
    modules = [(module.training, list(module._forward_pre_hooks)) for module in model.modules()]
    return [model.config._attn_implementation, modules, list(model.state_dict())]


def test_layers_out_of_range():
    model = tiny(attention="eager")
    model.bert.pooler.eval()
    before = trace(model)
    with pytest.raises(InputError, match=r"layers \[2\] are out of range: the model has layers 0 to 1"):
        asa_mini.wrap(model, AsaConfig(layers=[2]))
    assert trace(model) == before


@pytest.mark.parametrize("where", ["asa_mini.hf._Probe.answer", "asa_mini.model.Adversary"])
def test_wrap_that_fails_half_way_leaves_no_trace(monkeypatch, where):
    def fail(*_):
        raise RuntimeError("out of memory")

    model = tiny(attention="eager")
    before = trace(model)
    monkeypatch.setattr(where, fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        asa_mini.wrap(model)
    assert trace(model) == before


def test_wrap_and_unwrap_leave_every_mode_as_it_was():
    model = tiny(attention="eager")
    model.bert.embeddings.eval()  # say, dropout off there
    before = trace(model)
    assert asa_mini.wrap(model).unwrap() is model
    assert trace(model) == before


@pytest.mark.parametrize(
    "model, message",
    [
        (
            "bert-base-cased",
            r"not a str; load one with AutoModelForSeq.*from_pretrained\('bert-base-cased'\)",
        ),
        (torch.nn.Sequential(tiny()), "not a Sequential; .*or pass the one that is inside"),
        (type(tiny()), "not a type"),
    ],
    ids=["name", "module around", "class"],
)
def test_wrapping_what_is_no_model(model, message):
    with pytest.raises(InputError, match="wrap takes a transformers model with a head, " + message):
        asa_mini.wrap(model)


@pytest.mark.parametrize("config, kind", [(0.3, "float"), (0, "int"), ({"layers": [0]}, "dict")])
def test_config_of_another_type(config, kind):
    message = rf"wrap takes an AsaConfig, not a {kind}: wrap\(model, AsaConfig\(temperature=0\.3\)\)"
    with pytest.raises(InputError, match=message):
        asa_mini.wrap(tiny(), config)


def test_layers():
    model = wrapped(tiny(num_hidden_layers=3), layers=[2, 0])
    assert list(model.adversaries) == ["0", "2"]
    out, gradients = step(model, **batch())
    assert out.kept_share.shape == (2,)
    assert {name.split(".")[1] for name in gradients if name.startswith("adversaries")} == {"0", "2"}
    masks = model.masks(input_ids=batch()["input_ids"])
    assert [mask.all().item() for mask in masks] == [False, True, False]  # nobody attacks layer 1


@pytest.mark.parametrize("joint", [True, False], ids=["joint", "sequential"])
def test_no_layers_is_r_drop(joint):
    model = wrapped(tiny(dropout=True), layers=(), joint_pass=joint)
    out, gradients = step(model, **batch())
    assert out.divergence > 0 and out.kept_units == 0 and out.kept_share is None
    assert not list(model.adversaries.parameters()) and gradients
    without_dropout = wrapped(tiny(), layers=(), joint_pass=joint)(**batch())
    assert without_dropout.divergence.abs() < 1e-10


def test_options_reach_the_loss():
    inputs = batch()
    base = wrapped(tiny())(**inputs)
    out = wrapped(tiny(), temperature=2.0, alpha=3.0)(**inputs)
    assert out.kept_units == base.kept_units
    torch.testing.assert_close(out.loss, base.task_loss + 3 * base.divergence + 4 * base.kept_units)


def test_gradient_reversal_scale():
    _, once = step(wrapped(tiny()), **batch())
    _, twice = step(wrapped(tiny(), gradient_reversal_scale=2.0), **batch())
    for name in once:
        factor = 2 if name.startswith("adversaries") else 1
        torch.testing.assert_close(twice[name], factor * once[name], rtol=1e-4, atol=1e-5)


def test_labels_missing():
    inputs = batch()
    inputs.pop("labels")
    with pytest.raises(InputError, match="needs labels in training"):
        wrapped(tiny())(**inputs)


@pytest.mark.parametrize("choices", [False, True], ids=["sequences", "choices"])
def test_example_that_is_all_padding(choices):
    inputs = batch(size=6)
    inputs["attention_mask"][5] = 0
    example = 5
    if choices:
        inputs = {n: x.reshape(3, 2, 8) for n, x in inputs.items() if n != "labels"}
        inputs["labels"], example = torch.tensor([0, 1, 1]), 2
    model = wrapped(tiny("bert", "MultipleChoice" if choices else "SequenceClassification"))
    with pytest.raises(InputError, match=f"example {example} of the batch is all padding"):
        model(**inputs)


@pytest.mark.parametrize("family, limit", [("bert", 40), ("roberta", 38), ("distilbert", 40), ("albert", 40)])
def test_longer_than_the_position_table(family, limit):
    model = wrapped(tiny(family))
    assert model(**batch(length=limit)).loss.isfinite()
    for mode in (True, False):
        with pytest.raises(InputError, match=f"{limit + 1} tokens are longer than the model's {limit} posit"):
            model.train(mode)(**batch(length=limit + 1))
    embeddings = torch.zeros(2, limit + 1, 16)
    with pytest.raises(InputError, match=f"{limit + 1} tokens are longer"):
        model(inputs_embeds=embeddings)


@pytest.mark.parametrize("family", ["modernbert", "eurobert", "llama"])
def test_rotary_positions_have_no_end(family):
    assert wrapped(tiny(family))(**batch(length=45)).loss.isfinite()


def test_no_input():
    with pytest.raises(InputError, match="needs input_ids or inputs_embeds"):
        wrapped(tiny())(labels=torch.zeros(2, dtype=torch.long))


def test_asa_keyword_is_ours():
    model = wrapped(tiny())
    for mode in (True, False):
        with pytest.raises(InputError, match="the wrapped model itself sets the keyword `asa`"):
            model.train(mode)(**batch(), asa=AsaPass(joint=False))


def test_adversarial_pass_through_ordinary_attention():
    """Where the implementation was changed behind our back, nothing would be masked, without a word."""
    model = wrapped(tiny())
    with pytest.raises(InputError, match="attn_implementation is 'sdpa'"):
        model.eval().model(**batch(), asa=AsaPass(joint=False))
    model.train().model.set_attn_implementation("eager")
    with pytest.raises(InputError, match="attn_implementation is 'eager'"):
        model(**batch())


def test_masks_leave_every_mode_as_it_was():
    model = wrapped(tiny())
    model.model.eval()  # dropout off, while the wrapped model trains on
    before = [module.training for module in model.modules()]
    model.masks(input_ids=batch()["input_ids"])
    assert [module.training for module in model.modules()] == before
    assert model.config._attn_implementation == "asa"


def test_what_fails_under_attack_leaves_every_mode_as_it_was():
    model = wrapped(tiny())
    model.model.eval()
    before = trace(model.model)
    with pytest.raises(IndexError):
        model.masks(input_ids=torch.full((1, 4), 10**6))
    with pytest.raises(RuntimeError, match="mine"), model.attackable():
        raise RuntimeError("mine")
    assert trace(model.model) == before and model.training


def test_attention_chosen_while_evaluating_stays():
    model = wrapped(tiny()).eval()
    model.set_attn_implementation("eager")
    assert model.train()(**batch()).kept_units > 0
    assert model.eval().config._attn_implementation == "eager"
    assert model.unwrap().config._attn_implementation == "eager"


def test_masks_after_unwrap():
    model = wrapped(tiny())
    model.unwrap()
    with pytest.raises(InputError, match="was unwrapped"):
        model.masks(input_ids=batch()["input_ids"])


@pytest.mark.parametrize("joint", [True, False], ids=["joint", "sequential"])
def test_keywords_of_the_model(joint):
    inputs = batch(padded=False)
    model = wrapped(tiny(), joint_pass=joint)
    expected = model(**inputs)
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    embeddings = model.model.get_input_embeddings()(inputs["input_ids"])
    without_ids = {name: x for name, x in inputs.items() if name != "input_ids"}
    for same in (
        inputs | {"token_type_ids": torch.zeros_like(inputs["input_ids"])},
        inputs | {"position_ids": torch.arange(8)[None]},  # one row for all examples
        inputs | {"position_ids": torch.arange(8).expand(4, 8)},
        inputs | {"attention_mask": mask},
        inputs | {"attention_mask": mask.expand(4, 1, 8, 8)},
        inputs | {"return_dict": False, "output_hidden_states": True},
        without_ids | {"inputs_embeds": embeddings},
    ):
        out = model(**same)
        torch.testing.assert_close(out.adversarial_logits, expected.adversarial_logits)
        torch.testing.assert_close(out.loss, expected.loss)


@pytest.mark.parametrize("family", ["bert", "llama", "ernie"])
def test_only_what_counts_the_examples_is_doubled(family):
    """With as many tokens as examples, nothing can be told from the size of a dimension."""
    inputs = batch(size=8, length=8) | {
        "cache_position": torch.arange(8),
        "position_ids": torch.arange(8)[None],
    }
    if family == "ernie":
        inputs["task_type_ids"] = torch.arange(64).reshape(8, 8) % 3
    seen = []
    model = wrapped(tiny(family))
    model.model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    joint = model(**inputs)
    rows = {name: x.shape[0] for name, x in seen[0].items() if isinstance(x, torch.Tensor)}
    assert rows.pop("cache_position") == 8 and rows.pop("position_ids") == 1 and set(rows.values()) == {16}
    sequential = wrapped(tiny(family), joint_pass=False)(**inputs)
    torch.testing.assert_close(joint.adversarial_logits, sequential.adversarial_logits, rtol=1e-4, atol=1e-5)


def test_a_keyword_whose_rows_nobody_knows():
    inputs = batch() | {"bbox": torch.zeros(4, 8, 4)}
    with pytest.raises(InputError, match=r"has a row for each example; AsaConfig\(joint_pass=False\)"):
        wrapped(tiny())(**inputs)
    assert wrapped(tiny(), joint_pass=False)(**inputs).loss.isfinite()


def test_token_types_count():
    """In the joint batch both halves need them."""
    inputs = batch()
    types = (torch.arange(8) > 3).long().expand(4, 8)
    model = wrapped(tiny())
    joint = model(**inputs, token_type_ids=types)
    assert (joint.logits - model(**inputs).logits).abs().max() > 1e-3
    sequential = wrapped(tiny(), joint_pass=False)(**inputs, token_type_ids=types)
    torch.testing.assert_close(joint.adversarial_logits, sequential.adversarial_logits, rtol=1e-4, atol=1e-5)


def test_a_wrapped_model_can_be_saved(tmp_path):
    """Trap 6: a module reachable by two names is refused by safetensors."""
    model = wrapped(tiny())
    save_file(model.state_dict(), tmp_path / "wrapped.safetensors")
    saved = load_file(tmp_path / "wrapped.safetensors")
    assert any(name.startswith("adversaries.1.") for name in saved)
    other = wrapped(tiny(), seed=5)
    other.load_state_dict(saved)
    inputs = batch()
    assert torch.equal(other(**inputs).adversarial_logits, model(**inputs).adversarial_logits)

    model.unwrap().save_pretrained(tmp_path)
    assert "asa" not in (tmp_path / "config.json").read_text(encoding="utf-8")
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert not any("attn_implementation" in name for name in config)
    plain = load_file(tmp_path / "model.safetensors")
    assert plain.keys() == {n.removeprefix("model.") for n in saved if n.startswith("model.")}


def test_a_copy_is_a_model_of_its_own():
    model = wrapped(tiny())
    inputs = batch()
    twin = copy.deepcopy(model)
    ours, theirs = step(model, **inputs)[1], step(twin, **inputs)[1]
    assert_same(ours, theirs)
    with torch.no_grad():
        for parameter in twin.adversaries.parameters():
            parameter.neg_()  # turns other units off, in the copy alone
    assert_same(ours, step(model, **inputs)[1])
    twin.unwrap()
    assert model(**inputs).kept_units > 0


@pytest.mark.parametrize("reentrant", [None, True, False])
@pytest.mark.parametrize("backward", [True, False], ids=["backward", "no backward"])
def test_no_memory_is_left_behind(monkeypatch, reentrant, backward):
    """Under checkpointing the graph holds `asa`; if `asa` held the graph, neither would ever be freed."""
    model = wrapped(tiny())
    if reentrant is not None:
        checkpoint(model, reentrant)
    made = []

    class Watched(AsaPass):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(weakref.ref(self))

    monkeypatch.setitem(type(model)._both_passes.__globals__, "AsaPass", Watched)
    out = model(**batch())
    if backward:
        out.loss.backward()
    del out
    gc.collect()
    assert len(made) == 1 and made[0]() is None


def test_frozen_embeddings():
    model = tiny()
    model.bert.embeddings.requires_grad_(False)
    _, ours = step(wrapped(model), **batch())
    _, all_trained = step(wrapped(tiny()), **batch())
    assert not any("embeddings" in name for name in ours)
    assert_same(ours, {name: x for name, x in all_trained.items() if "embeddings" not in name})


def test_training_and_evaluating_by_turns():
    inputs = batch()
    model = wrapped(tiny())
    first, gradients = step(model, **inputs)
    with torch.no_grad():
        between = model.eval()(**inputs)
    torch.testing.assert_close(between.loss, first.task_loss)
    again, same = step(model.train(), **inputs)
    assert torch.equal(again.loss, first.loss)
    assert_same(gradients, same)


def test_wrapping_a_model_in_evaluation_mode():
    model = wrapped(tiny().eval())
    assert not model.training and model.config._attn_implementation == "sdpa"
    assert model.train()(**batch()).kept_units > 0
