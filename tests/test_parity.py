"""Parity with the numbers of the authors' code: see tests/fixtures/README.md."""

import json
import os
from pathlib import Path

import pytest
import torch
import transformers
from attention_cases import DEVICE, triton_only
from safetensors.torch import load_file
from tiny import every_mode

import asa_mini
from asa_mini.hf import AsaPass
from asa_mini.look.recording import Recording

FIXTURES = Path(os.environ.get("ASA_FIXTURES", Path(__file__).parent / "fixtures"))
CASES = sorted(path.parent for path in FIXTURES.glob("*/case.json"))
# What a head does with the output is nothing to a kernel; interpreted, each of our own cases takes 7 s.
ALL = DEVICE == "cuda" or "ASA_FIXTURES" in os.environ
SOME = ("bert_fully_masked_rows", "roberta_token_classification")
ON_KERNELS = [path for path in CASES if ALL or path.name in SOME]


class Case:
    """A wrapped model with the case's weights, its batch, and what the authors' code answered."""

    def __init__(self, folder: Path, joint: bool, backend: str = "reference"):
        self.case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        self.batch = load_file(folder / "inputs.safetensors")
        self.expected = load_file(folder / "expected.safetensors")
        family, config = self.case["model"], self.case["config"]
        config = transformers.AutoConfig.for_model(family, **config)
        model = getattr(transformers, f"AutoModelFor{self.case['task']}").from_config(config)
        self.prefix = f"{family}.encoder.adversary."
        weights = load_file(folder / "weights.safetensors")
        plain = {
            k: v for k, v in weights.items() if not k.startswith(self.prefix) and "position_ids" not in k
        }
        model.load_state_dict(plain)
        self.wrapped = asa_mini.wrap(
            model, asa_mini.AsaConfig(temperature=self.case["tau"], joint_pass=joint, backend=backend)
        )
        self.wrapped.adversaries.load_state_dict(
            {k.removeprefix(self.prefix): v for k, v in weights.items() if k.startswith(self.prefix)}
        )
        self.wrapped.train()

    def gradient(self, name: str) -> torch.Tensor:
        root, name = (
            (self.wrapped.adversaries, name.removeprefix(self.prefix))
            if name.startswith(self.prefix)
            else (self.wrapped.model, name)
        )
        parameter = dict(root.named_parameters())[name]
        return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def test_there_are_fixtures():
    assert CASES, f"no case.json below {FIXTURES}"


@every_mode
@pytest.mark.parametrize("folder", CASES, ids=lambda p: p.name)
def test_values_and_gradients(folder, joint):
    check_values_and_gradients(Case(folder, joint))


@triton_only
@pytest.mark.parametrize("folder", ON_KERNELS, ids=lambda p: p.name)
def test_values_and_gradients_of_the_kernels(folder):
    check_values_and_gradients(Case(folder, joint=True, backend="triton"))


def check_values_and_gradients(case: Case) -> None:
    out = case.wrapped(**case.batch)
    for ours, theirs in [
        (out.logits, "logits"),
        (out.adversarial_logits, "adv_logits"),
        (out.loss, "loss"),
        (out.kept_units, "kept_units"),
    ]:
        torch.testing.assert_close(ours, case.expected[theirs], rtol=1e-5, atol=2e-6)

    out.loss.backward()
    gradients = {k.removeprefix("grad."): v for k, v in case.expected.items() if k.startswith("grad.")}
    floor = 1e-4 * max(v.norm() for v in gradients.values())  # a true zero holds rounding only
    for name, theirs in gradients.items():
        error = (case.gradient(name) - theirs).norm() / (theirs.norm() + floor)
        assert error < 1e-4, f"gradient of {name} differs by {error:.1e}"


@pytest.mark.parametrize("folder", CASES, ids=lambda p: p.name)
def test_masks(folder):
    case = Case(folder, joint=False)
    inputs = {name: x for name, x in case.batch.items() if name != "labels"}
    recording = Recording()
    case.wrapped.model(**inputs, asa=AsaPass(joint=False, record=recording))
    for layer, mask in enumerate(recording.masks):
        assert torch.equal(mask, case.expected[f"mask.{layer}"].bool())


@pytest.mark.parametrize("folder", CASES, ids=lambda p: p.name)
def test_evaluation(folder):
    case = Case(folder, joint=True)
    logits = case.wrapped.eval()(**case.batch).logits
    torch.testing.assert_close(logits, case.expected["eval_logits"], rtol=1e-5, atol=2e-6)


WITH_TRAJECTORY = [p for p in CASES if "trajectory" in load_file(p / "expected.safetensors")]


@every_mode
@pytest.mark.parametrize("folder", WITH_TRAJECTORY, ids=lambda p: p.name)
def test_trajectory_of_ten_steps(folder, joint):
    case = Case(folder, joint)
    optimizer = torch.optim.AdamW(case.wrapped.parameters(), lr=2e-4, weight_decay=0.01)
    losses = []
    for _ in range(10):
        loss = case.wrapped(**case.batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    torch.testing.assert_close(torch.stack(losses), case.expected["trajectory"], rtol=1e-4, atol=0)
