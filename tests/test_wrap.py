"""`wrap`: its options, and what it refuses."""

import pytest
import torch
from tiny import batch, every_mode, step, tiny, trace, wrapped

import asa_mini
from asa_mini import AsaConfig
from asa_mini.errors import InputError
from asa_mini.look.recording import read_masks


def test_layers_out_of_range():
    model = tiny(attention="eager")
    model.bert.pooler.eval()
    before = trace(model)
    with pytest.raises(InputError, match=r"layers \[2\] are out of range: the model has layers 0 to 1"):
        asa_mini.wrap(model, AsaConfig(layers=[2]))
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
    masks = read_masks(model, input_ids=batch()["input_ids"])
    assert [mask.all().item() for mask in masks] == [False, True, False]  # nobody attacks layer 1


@every_mode
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
