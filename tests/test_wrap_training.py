"""A wrapped model in training: checkpointing, accumulation, Trainer, mixed precision, compile, DDP."""

import datasets
import pytest
import torch
import transformers
from tiny import (
    FAMILIES,
    assert_same,
    assert_same_terms,
    batch,
    checkpoint,
    every_mode,
    gradients,
    step,
    tiny,
    wrapped,
)

from asa_mini.train.trainer import AsaTrainer


@pytest.mark.parametrize("family", FAMILIES)
def test_joint_and_sequential_agree(family):
    a, ours = step(wrapped(tiny(family), joint_pass=True), **batch())
    b, theirs = step(wrapped(tiny(family), joint_pass=False), **batch())
    assert_same_terms(a, b)
    assert_same(ours, theirs, tolerance=1e-4)


@every_mode
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
@pytest.mark.parametrize("family", ["bert", "distilbert", "electra", "modernbert", "llama"])
def test_gradient_checkpointing(family, reentrant, joint):
    """Trap 2: with the pass chosen by a flag on modules, the adversaries' gradients are silently None."""
    options = dict(joint_pass=joint, temperature=2.0)
    a, ours = step(wrapped(tiny(family), **options), **batch())
    model = checkpoint(wrapped(tiny(family), **options), reentrant)
    recomputed = count_layer_calls(model)
    b, theirs = step(model, **batch())
    assert_same_terms(a, b)
    assert_same(ours, theirs)
    assert recomputed[0] == (2 if joint else 4)  # it was really on


def count_layer_calls(model) -> list[int]:
    """A list of one number, which counts how often the first layer's attention runs from now on."""
    calls = [0]

    def count(*_):
        calls[0] += 1

    module = next(m for m in model.modules() if m._forward_pre_hooks)
    module.register_forward_pre_hook(count)
    return calls


@every_mode
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
def test_gradient_of_the_kept_units_under_checkpointing(reentrant, joint):
    """They leave the layer by the side door, past what checkpointing knows as its output."""
    plain = wrapped(tiny(), joint_pass=joint)
    plain(**batch()).kept_units.backward()
    model = checkpoint(wrapped(tiny(), joint_pass=joint), reentrant)
    model(**batch()).kept_units.backward()
    expected = gradients(plain)
    assert expected and all(name.startswith("adversaries") for name in expected)
    assert_same(gradients(model), expected)


@every_mode
@pytest.mark.parametrize("reentrant", [None, True, False], ids=["plain", "reentrant", "non-reentrant"])
@pytest.mark.parametrize("family", ["bert", "modernbert", "llama"])
def test_bf16_autocast(family, reentrant, joint):
    expected, _ = step(wrapped(tiny(family), joint_pass=joint), **batch())
    model = wrapped(tiny(family), joint_pass=joint)
    if reentrant is not None:
        checkpoint(model, reentrant)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(**batch())
    out.loss.backward()
    assert out.kept_units.dtype == torch.float32
    torch.testing.assert_close(out.logits.float(), expected.logits, rtol=0.1, atol=0.1)
    torch.testing.assert_close(out.loss, expected.loss, rtol=0.05, atol=0.05)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if name.startswith("adversaries"):
            assert parameter.grad.any(), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_models_in_low_precision(family, dtype):
    """Trap 7: masks of the lowest float32 number turn to -inf in float16, rows of -inf to NaN."""
    expected = wrapped(tiny(family))(**batch())
    out, grads = step(wrapped(tiny(family).to(dtype)), **batch())
    torch.testing.assert_close(out.loss.float(), expected.loss, rtol=0.05, atol=0.05)
    for name, x in grads.items():
        assert x.isfinite().all() and x.dtype == (torch.float32 if "adversaries" in name else dtype), name


@pytest.mark.parametrize("convert", ["before wrapping", "half", "bfloat16", "to", "float64"])
def test_adversaries_learn_in_any_precision(convert):
    """Steps of 2e-5 are lost on most numbers of a bfloat16 model, but not on the adversary's."""
    model = tiny()
    if convert == "before wrapping":
        model = wrapped(model.to(torch.bfloat16))
    else:
        to = {"half": torch.float16, "float64": torch.float64}.get(convert, torch.bfloat16)
        model = wrapped(model)
        exact = {name: x.clone() for name, x in model.adversaries.state_dict().items()}
        model = getattr(model, convert)() if convert in ("half", "bfloat16") else model.to(to)
        assert model.dtype == to
        assert all(torch.equal(x.float(), exact[name]) for name, x in model.adversaries.state_dict().items())
    before = [x.detach().clone() for x in model.adversaries.parameters()]
    optimizer = torch.optim.AdamW(model.adversaries.parameters(), lr=2e-5)
    for seed in range(3):
        model(**batch(seed=seed)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for x, start in zip(model.adversaries.parameters(), before, strict=True):
        assert x.dtype.itemsize >= 4 and (x != start).float().mean() > 0.99


@every_mode
def test_gradient_accumulation(joint):
    model = wrapped(tiny(), joint_pass=joint)
    whole = batch(16)
    out, expected = step(model, **whole)
    model.zero_grad()
    losses = []
    for part in range(4):
        loss = model(**{name: x[4 * part : 4 * part + 4] for name, x in whole.items()}).loss / 4
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(sum(losses), out.loss.detach())
    assert_same(gradients(model), expected)


def train_one_step(trainer_class, model, folder, accumulation: int, **options) -> tuple[dict, dict]:
    """The log of one step over 16 examples, and the weights after it."""
    if options.pop("checkpointing", False):
        fields = transformers.TrainingArguments.__dataclass_fields__
        kind = "activation" if "activation_checkpointing" in fields else "gradient"
        options |= {
            f"{kind}_checkpointing": True,
            f"{kind}_checkpointing_kwargs": {"use_reentrant": False},
        }
    arguments = transformers.TrainingArguments(
        str(folder),
        per_device_train_batch_size=16 // accumulation,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        optim="sgd",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    # The text column is of no use to a model; Trainer drops it by the signature of `forward`.
    rows = {name: x.tolist() for name, x in batch(16).items()} | {"text": ["a sentence"] * 16}
    trainer = trainer_class(model=model, args=arguments, train_dataset=datasets.Dataset.from_dict(rows))
    trainer.train()
    return trainer.state.log_history[0], {n: x.detach().clone() for n, x in model.named_parameters()}


@pytest.mark.parametrize(
    "trainer_class, asa",
    [(transformers.Trainer, True), (AsaTrainer, True), (AsaTrainer, False)],
    ids=["Trainer-asa", "AsaTrainer-asa", "AsaTrainer-plain"],
)
def test_gradient_accumulation_in_trainer(trainer_class, asa, tmp_path):
    """Trap 3: Trainer takes **kwargs in `forward` for a promise to divide by the accumulation steps."""

    def make():
        return wrapped(tiny()) if asa else tiny()

    start = {name: x.detach().clone() for name, x in make().named_parameters()}
    log, weights = train_one_step(trainer_class, make(), tmp_path, 1)
    accumulated_log, accumulated = train_one_step(trainer_class, make(), tmp_path, 4)
    out, grads = step(make(), **batch(16))
    loss = out.task_loss + out.divergence if asa and trainer_class is AsaTrainer else out.loss  # alpha is 1
    assert log["loss"] == pytest.approx(loss.item(), rel=1e-3)  # logs are rounded
    encoder = [x for name, x in grads.items() if trainer_class is not AsaTrainer or "adversaries" not in name]
    norm = torch.stack([x.norm() for x in encoder]).norm().item()
    assert log["grad_norm"] == pytest.approx(norm, rel=1e-3)
    for name in ("loss", "grad_norm"):
        assert accumulated_log[name] == pytest.approx(log[name], rel=1e-3)
    moved = {name: x - start[name] for name, x in weights.items()}
    assert max(x.abs().max() for x in moved.values()) > 1e-4
    assert_same({n: x - start[n] for n, x in accumulated.items()}, moved, tolerance=1e-3)


def test_gradient_checkpointing_in_trainer(tmp_path):
    log, weights = train_one_step(transformers.Trainer, wrapped(tiny()), tmp_path, 1)
    model = wrapped(tiny())
    calls = count_layer_calls(model)
    checkpointed_log, checkpointed = train_one_step(
        transformers.Trainer, model, tmp_path, 1, checkpointing=True
    )
    assert calls == [2]
    assert checkpointed_log["loss"] == pytest.approx(log["loss"], rel=1e-3)
    assert_same(weights, checkpointed)


@pytest.mark.parametrize("joint, backend, length", [(True, "aot_eager", 64), (False, "eager", 8)])
def test_compile(joint, backend, length):
    """`fullgraph` turns every graph break into an error; at 64 tokens the clean half leaves cuDNN out."""
    torch._dynamo.reset()
    inputs = batch(length=length)
    model = wrapped(tiny(num_hidden_layers=1, max_position_embeddings=64), joint_pass=joint)
    expected, grads = step(model, **inputs)
    model.zero_grad()
    out = torch.compile(model, backend=backend, fullgraph=True)(**inputs)
    out.loss.backward()
    assert_same_terms(out, expected)
    assert_same(gradients(model), grads)


@every_mode
@pytest.mark.parametrize("layers", [None, [1], ()], ids=["all layers", "one layer", "no layer"])
def test_distributed_data_parallel(tmp_path, joint, layers):
    """Trap 5: two forward passes, or adversaries unused in one step, make DDP fail at the next one."""
    expected_model = wrapped(tiny(), joint_pass=joint, layers=layers)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = wrapped(tiny(), joint_pass=joint, layers=layers)
        parallel = torch.nn.parallel.DistributedDataParallel(model)
        for seed in range(3):
            expected, grads = step(expected_model, **batch(seed=seed))
            out, _ = step(parallel, **batch(seed=seed))
            assert out.loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
            assert_same(gradients(model), grads)
    finally:
        torch.distributed.destroy_process_group()
