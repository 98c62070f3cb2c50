"""AsaTrainer: two players, each with a rate and a clip of its own; equal batches; exact resuming."""

from itertools import chain

import pytest
import tiny_text
import torch
from transformers import DataCollatorWithPadding, TrainerCallback, TrainingArguments, set_seed

from asa_mini import AsaConfig, wrap
from asa_mini.errors import InputError
from asa_mini.train.data import tokenize
from asa_mini.train.models import load_model
from asa_mini.train.run import TrainConfig, train
from asa_mini.train.run_folder import load_adversaries
from asa_mini.train.trainer import AsaTrainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_text.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def make(folder, tmp_path):
    """make(seed, ...): an AsaTrainer on the tiny set, 3 steps an epoch."""

    def make(method="asa", model_seed=0, adversary_learning_rate=None, callbacks=(), remove=(), **options):
        set_seed(model_seed)
        model, tokenizer = load_model(folder)
        if method == "asa":
            model = wrap(model, AsaConfig(temperature=0.1))
        tokens = tokenize(tiny_text.dataset(), tokenizer, 30, range(2)).remove_columns(list(remove))
        options = {"learning_rate": 1e-3, "num_train_epochs": 2, "save_strategy": "epoch", **options}
        return AsaTrainer(
            model=model,
            args=TrainingArguments(
                str(tmp_path / "trainer"),
                per_device_train_batch_size=8,
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
            adversary_learning_rate=adversary_learning_rate,
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
    assert resumed.terms == straight.terms[3:]
    assert largest_difference(weights(resumed.model), weights(straight.model)) == 0
    for part in ("adversaries.0.query.weight", "model.classifier.weight"):
        assert not torch.equal(weights(resumed.model)[part], start[part])


def test_resuming_in_the_middle_of_an_epoch_is_exact_too(make, tmp_path):
    straight = make(save_strategy="steps", save_steps=4)
    straight.train()
    resumed = make(model_seed=7, save_strategy="no")
    resumed.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-4"))
    assert largest_difference(weights(resumed.model), weights(straight.model)) == 0


def test_best_restores_the_epoch_with_the_lowest_dev_loss(folder, tmp_path):
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
        lambda: load_model(folder),
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
