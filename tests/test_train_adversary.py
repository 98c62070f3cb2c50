"""`train_adversary`: adversaries alone against a trained model."""

import pytest
import tiny_text
import torch
from tiny import trace

from asa_mini.errors import InputError
from asa_mini.look.capture import capture
from asa_mini.look.measures import kept_share
from asa_mini.train.models import load_model
from asa_mini.train.run import train_adversary


def test_an_adversary_that_plays_alone_moves_nothing_but_itself(tmp_path):
    model, words = load_model(tiny_text.save_model(tmp_path / "model", initializer_range=0.1))
    before = {name: p.clone() for name, p in model.eval().named_parameters()}
    texts = tiny_text.dataset()["train"]["text"][:]
    kept, first = [], None
    for steps in (1, 20):
        wrapped = train_adversary(model, words, texts, 2.0, steps, batch_size=8, max_length=30)
        assert not wrapped.training and wrapped.asa_config.temperature == 2.0
        kept.append(kept_share(capture(wrapped, words, texts, max_length=30)).mean())
        first = first or {name: p.clone() for name, p in wrapped.adversaries.named_parameters()}
        moved = [not torch.equal(p, first[name]) for name, p in wrapped.adversaries.named_parameters()]
        assert any(moved) == (steps == 20)
        wrapped.unwrap()
    assert kept[0] < 0.9 and kept[1] > 0.99  # well paid, it learns to keep
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) and p.grad is None
    with pytest.raises(InputError, match="at least one text"):
        train_adversary(model, words, [], 0.1)


def test_after_a_failure_the_model_is_plain_and_in_its_mode(tmp_path):
    model, words = load_model(tiny_text.save_model(tmp_path / "model"))
    model.train().bert.pooler.eval()
    before = trace(model)
    with pytest.raises(ValueError, match="text input must be"):
        train_adversary(model, words, [3], 0.1, max_length=30)
    assert trace(model) == before
    train_adversary(model, words, ["a fine film"], 0.1, steps=1, max_length=30).unwrap()
