"""AsaTrainer: two players, each with a rate and a clip of its own; equal batches; exact resuming."""

from itertools import chain

import pytest
import tiny_text
import torch
from tiny import batch, tiny
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments, set_seed

from asa_mini import AsaConfig, wrap
from asa_mini.errors import InputError
from asa_mini.train.models import load_model
from asa_mini.train.run import TrainConfig, train
from asa_mini.train.run_folder import load_adversaries
from asa_mini.train.tokenizing import tokenize
from asa_mini.train.trainer import NEEDED, AsaTrainer


@pytest.fixture
def make(model_folder, tmp_path):
    """make(seed, ...): an AsaTrainer on the tiny set, 3 steps an epoch."""

    def make(
        method="asa", model_seed=0, callbacks=(), remove=(), prepare=None, trainer_class=AsaTrainer, **options
    ):
        set_seed(model_seed)
        model, tokenizer = load_model(model_folder)
        if prepare is not None:
            prepare(model)
        if method == "asa":
            model = wrap(model, AsaConfig(temperature=0.1))
        tokens = tokenize(tiny_text.dataset(), tokenizer, 30).remove_columns(["length", *remove])
        trainer_class = options.pop("trainer_class", AsaTrainer)
        names = ("adversary_learning_rate", "compute_loss_func")
        given = {name: options.pop(name) for name in names if name in options}
        options = {"learning_rate": 1e-3, "num_train_epochs": 2, "save_strategy": "epoch", **options}
        options = {"per_device_train_batch_size": 8, **options}
        return trainer_class(
            model=model,
            args=TrainingArguments(
                str(tmp_path / "trainer"),
                train_sampling_strategy="group_by_length",
                dataloader_pin_memory=False,
                report_to="none",
                disable_tqdm=True,
                **options,
            ),
            train_dataset=tokens["train"],
            eval_dataset=tokens["dev"],
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            **given,
            callbacks=list(callbacks),
        )

    return make


def weights(model) -> dict:
    return {name: value.clone() for name, value in model.state_dict().items()}


def largest_difference(a: dict, b: dict) -> float:
    assert set(a) == set(b)
    return max((a[name] - b[name]).abs().max().item() for name in a)


def test_adversaries_have_their_own_rate_and_the_schedule_scales_it(make):
    seen = []

    class Rates(TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
            seen.append({group["lr"] for group in optimizer.param_groups})

    trainer = make(adversary_learning_rate=5e-2, callbacks=[Rates()], save_strategy="no")
    trainer.train()
    adversary = {id(p) for p in trainer.model.adversaries.parameters()}
    initial = {1e-3: set(), 5e-2: set()}
    for group in trainer.optimizer.param_groups:
        initial[group["initial_lr"]] |= {id(p) for p in group["params"]}
    assert initial[5e-2] == adversary
    assert initial[1e-3] == {id(p) for p in trainer.model.parameters()} - adversary
    for step, rates in enumerate(seen):  # linear decay over 6 steps
        assert sorted(rates) == pytest.approx([1e-3 * (1 - step / 6), 5e-2 * (1 - step / 6)])


def test_the_adversaries_have_their_group_whatever_the_optimizer(make):
    trainer = make(adversary_learning_rate=5e-2, optim="adafactor", weight_decay=0.1)
    names = {p: name for name, p in trainer.model.named_parameters()}
    for group in trainer.create_optimizer().param_groups:
        for p in group["params"]:
            assert group["lr"] == (5e-2 if "adversaries" in names[p] else 1e-3)
            assert group["weight_decay"] == (0.1 if "Norm" not in names[p] and p.ndim > 1 else 0.0)
            del names[p]
    assert not names and all(p.requires_grad for p in trainer.model.parameters())


def test_no_rate_of_their_own_means_the_encoders(make):
    assert {group["lr"] for group in make().create_optimizer().param_groups} == {1e-3}


def test_huge_adversary_gradients_do_not_shrink_the_encoders(make):
    trainer = make()
    model = trainer.model
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    encoder, adversary = model.model.classifier.weight, model.adversaries["0"].query.weight
    encoder.grad[0, 0], adversary.grad[0, 0] = 0.5, 1e6
    assert trainer._clip_grad_norm(model).item() == pytest.approx(0.5)
    assert encoder.grad[0, 0] == 0.5
    assert adversary.grad[0, 0].item() == pytest.approx(1.0)
    encoder.grad[0, 0] = 20
    assert trainer._clip_grad_norm(model).item() == pytest.approx(20)
    assert encoder.grad[0, 0].item() == pytest.approx(1.0)


def test_resuming_is_exact_adversaries_included(make, tmp_path):
    straight = make(adversary_learning_rate=3e-3)
    straight.train()
    resumed = make(model_seed=7, adversary_learning_rate=3e-3)
    start = weights(resumed.model)
    resumed.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-3"))
    assert resumed.terms == straight.terms
    assert largest_difference(weights(resumed.model), weights(straight.model)) == 0
    for part in ("adversaries.0.query.weight", "model.classifier.weight"):
        assert not torch.equal(weights(resumed.model)[part], start[part])


def test_resuming_in_the_middle_of_an_epoch_is_exact_too(make, tmp_path):
    straight = make(save_strategy="steps", save_steps=4)
    straight.train()
    resumed = make(model_seed=7, save_strategy="no")
    resumed.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-4"))
    assert largest_difference(weights(resumed.model), weights(straight.model)) == 0


def test_best_restores_the_epoch_with_the_lowest_dev_loss(model_folder, tmp_path):
    class Keep(TrainerCallback):
        """Copies the weights of each epoch, and spoils the head after the first one's evaluation."""

        def __init__(self):
            self.losses, self.weights = [], []

        def on_evaluate(self, args, state, control, metrics=None, model=None, **kwargs):
            if len(self.losses) < 3:
                self.losses.append(metrics["eval_loss"])
                self.weights.append(weights(model))

        def on_epoch_begin(self, args, state, control, model=None, **kwargs):
            if self.losses:
                model.model.classifier.weight.data.add_(torch.tensor([[9.0], [-9.0]]) * len(self.losses))

    keep = Keep()
    sizes = {"num_train_epochs": 3, "per_device_train_batch_size": 8, "max_seq_length": 30}
    config = TrainConfig(**sizes, learning_rate=1e-2, load_best_model_at_end=True)
    result = train(
        tiny_text.dataset(),
        config,
        lambda: load_model(model_folder),
        tmp_path / "run",
        callbacks=[keep],
        progress=False,
    )
    assert [row["dev_loss"] for row in result.metrics["by_epoch"]] == keep.losses
    best = keep.losses.index(min(keep.losses))
    assert best < 2, "the spoilt epochs should not be the best"
    assert result.metrics["results"]["dev"]["loss"] == pytest.approx(keep.losses[best], rel=1e-6)
    again = load_adversaries(load_model(str(tmp_path / "run"))[0], tmp_path / "run")
    assert largest_difference(weights(again), keep.weights[best]) == 0
    # One run gives both rows of a table: the kept weights' results, and those of the last.
    assert result.metrics["best_epoch"] == best + 1
    assert result.metrics["results_last"]["dev"]["loss"] == pytest.approx(keep.losses[2], rel=1e-6)
    last = keep.weights[2]
    assert any(not torch.equal(last[name], keep.weights[best][name]) for name in last if "adversar" in name)


def test_every_method_sees_the_same_batches_and_every_epoch_other_ones(make):
    def batches(trainer):
        seen = []
        collate = trainer.data_collator
        trainer.data_collator = lambda rows: (
            seen.append([tuple(r["input_ids"]) for r in rows]) or collate(rows)
        )
        trainer.train()
        return seen

    asa, naive, other = (
        batches(make(save_strategy="no", **options))
        for options in ({}, {"method": "naive"}, {"method": "naive", "seed": 1})
    )
    assert len(asa) == 6 and asa == naive
    assert asa[:3] != asa[3:] and sorted(chain(*asa[:3])) == sorted(chain(*asa[3:]))
    assert other != naive


def test_missing_labels_raise(make):
    for method in ("asa", "naive"):
        with pytest.raises(InputError, match="no column 'labels'"):
            make(method=method, remove=["labels"], remove_unused_columns=False).train()


@pytest.mark.parametrize("method", ["asa", "naive"])
def test_accumulation_does_not_multiply_the_loss(make, method):
    trainer = make(method=method, save_strategy="no", gradient_accumulation_steps=3)
    reported = trainer.train().training_loss
    assert [record["step"] for record in trainer.terms] == [1, 1, 1, 2, 2, 2]
    assert reported == pytest.approx(sum(record["loss"] for record in trainer.terms) / 6, rel=1e-5)


def class_weights(outputs, labels, num_items_in_batch=None):
    weight = torch.tensor([0.2, 3.0])
    total = torch.nn.functional.cross_entropy(outputs.logits, labels, weight, reduction="sum")
    return total / num_items_in_batch


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(
    "option", [{"label_smoothing_factor": 0.3}, {"compute_loss_func": class_weights}], ids=lambda o: min(o)
)
def test_options_of_the_task_loss_act_as_in_a_plain_trainer(make, option, steps):
    """The first step's task loss, and the loss on dev, of Trainer with the plain model; without dropout."""

    def prepare(model):
        for p in model.parameters():
            p.data.mul_(8 if p.ndim > 1 else 1)  # else all sentences look alike
        for module in model.modules():
            module.p = 0.0  # of a Dropout; no other module reads it

    def first_step(method, trainer_class=AsaTrainer, **option):
        size = {"per_device_train_batch_size": 24 // steps, "gradient_accumulation_steps": steps}  # all rows
        options = {"max_steps": 1, "logging_steps": 1, "save_strategy": "no", **size, **option}
        trainer = make(method, prepare=prepare, trainer_class=trainer_class, **options)
        on_dev = trainer.evaluate()["eval_loss"]
        trainer.train()
        return trainer, on_dev, next(row["loss"] for row in trainer.state.log_history if "loss" in row)

    _, plain_dev, expected = first_step("naive", Trainer, **option)
    ours, our_dev, logged = first_step("asa", **option)
    _, unused_dev, unused = first_step("naive")
    parts = 1 if "compute_loss_func" in option else steps  # its value is divided already
    task, divergence = (sum(r[name] for r in ours.terms) / parts for name in ("task_loss", "divergence"))
    assert task == pytest.approx(expected, rel=1e-5) and our_dev == pytest.approx(plain_dev, rel=1e-5)
    assert abs(unused - expected) > 1e-3 and abs(unused_dev - plain_dev) > 1e-4
    assert logged == pytest.approx(task + divergence, rel=1e-4) and divergence > 0


def test_smoothed_labels_of_a_causal_decoder_are_shifted(tmp_path):
    model, rows = tiny("llama", "CausalLM"), batch(4)
    rows["labels"] = rows["input_ids"].clone()
    arguments = TrainingArguments(str(tmp_path), label_smoothing_factor=0.2, report_to="none", use_cpu=True)
    expected = Trainer(model=model.eval(), args=arguments).compute_loss(model, dict(rows))
    asa = wrap(model).eval()
    torch.testing.assert_close(AsaTrainer(model=asa, args=arguments).compute_loss(asa, dict(rows)), expected)


@pytest.mark.parametrize("key_bias, layers, step", [(5.0, "0, 1", 5), (5.0, "1", 6), (-5.0, "0, 1", 5)])
def test_adversaries_that_play_no_game_are_named_once(make, caplog, key_bias, layers, step):
    """At once if they all are idle, at the end if some are."""
    trainer = make(logging_steps=5, save_strategy="no", learning_rate=1e-5)
    for layer in layers.split(", "):
        adversary = trainer.model.adversaries[layer]
        adversary.query.bias.data.fill_(5.0)
        adversary.key.bias.data.fill_(key_bias)
    trainer.train()
    (message,) = [r.getMessage() for r in caplog.records if r.name == "asa_mini.train.trainer"]
    assert f"after {step} steps the adversaries of layers {layers} keep" in message
    assert ("100.0%" if key_bias > 0 else " 0.0%") in message


def test_what_cannot_work_is_refused_at_construction(make, monkeypatch):
    with pytest.raises(InputError, match="optimizers= and adversary_learning_rate exclude each other"):
        model = wrap(tiny())
        optimizers = torch.optim.SGD(model.parameters(), lr=0.1), None
        AsaTrainer(model=model, optimizers=optimizers, adversary_learning_rate=1e-3)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingArguments, "n_gpu", 2)
        with pytest.raises(InputError, match=r"2 GPUs .* `torchrun --nproc_per_node 2 -m asa_mini train"):
            make(method="naive")
    trainer = make()
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")  # only now: accelerate 1.10 would wait for the other process
        with pytest.raises(InputError, match="2 processes were started"):
            trainer._check()
    monkeypatch.delattr(Trainer, "_clip_grad_norm")
    with pytest.raises(InputError, match=r"needs Trainer\._clip_grad_norm"):
        make()


def test_every_overridden_method_is_checked():
    overridden = {name for name in vars(AsaTrainer) if hasattr(Trainer, name) and not name.startswith("__")}
    assert overridden <= set(NEEDED)
