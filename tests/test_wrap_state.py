"""A wrapped model and the one inside: modes, copies, files and memory come out as they should."""

import copy
import gc
import json
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import assert_same, batch, checkpoint, step, tiny, trace, wrapped

import asa_mini
from asa_mini.errors import InputError
from asa_mini.hf import AsaPass
from asa_mini.look.recording import attackable, read_masks


@pytest.mark.parametrize("where", ["asa_mini.hf.plain_attention", "asa_mini.model.Adversary"])
def test_wrap_that_fails_half_way_leaves_no_trace(monkeypatch, where):
    def fail(*_, **__):
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


def test_masks_leave_every_mode_as_it_was():
    model = wrapped(tiny())
    model.model.eval()  # dropout off, while the wrapped model trains on
    before = trace(model)
    read_masks(model, input_ids=batch()["input_ids"])
    assert trace(model) == before


def test_what_fails_under_attack_leaves_every_mode_as_it_was():
    model = wrapped(tiny())
    model.model.eval()
    before = trace(model.model)
    with pytest.raises(IndexError):
        read_masks(model, input_ids=torch.full((1, 4), 10**6))
    with pytest.raises(RuntimeError, match="mine"), attackable(model):
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
        read_masks(model, input_ids=batch()["input_ids"])


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

    monkeypatch.setattr("asa_mini.model.AsaPass", Watched)
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
