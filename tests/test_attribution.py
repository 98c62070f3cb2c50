"""Attributions, against what they are defined to be."""

import numpy as np
import pytest
import torch
from tiny import tiny, trace
from tiny_text import tokenizer

from asa_mini.errors import InputError
from asa_mini.look.attribution import gradient_times_input, leave_one_out, margin

TEXTS = ["a very fine film", "films and a dull story", "poor cast"]
OPTIONS = {"max_length": 32, "batch_size": 3}


def log_odds(model, text, chosen=None):
    logits = model(**tokenizer()([text], return_tensors="pt")).logits[0]
    chosen = int(logits.argmax()) if chosen is None else chosen
    p = logits.softmax(-1)[chosen]
    return (p.log() - (1 - p).log()).item(), chosen


@pytest.mark.parametrize("classes", [2, 3])
def test_margin_is_the_log_odds(classes):
    logits = torch.randn(5, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = logits.softmax(-1)[:, 1]
    torch.testing.assert_close(margin(logits, torch.ones(5, dtype=torch.long)), (p / (1 - p)).log())


@pytest.mark.parametrize("shape", [(), (1,), (4,), (6, 1)])
def test_margin_wants_a_class_for_each_row(shape):
    """Most of these would broadcast, or leave rows out, in silence."""
    with pytest.raises(InputError, match=r"one class for each row: 6 rows, .*expand a single one"):
        margin(torch.randn(6, 3), torch.zeros(shape, dtype=torch.long))


def test_leave_one_out_is_what_it_says():
    model = tiny(num_labels=3).eval()
    for text, scores in zip(TEXTS, leave_one_out(model, tokenizer(), TEXTS, **OPTIONS), strict=True):
        words = text.split()
        whole, chosen = log_odds(model, text)
        for i, score in enumerate(scores):
            rest, _ = log_odds(model, " ".join(words[:i] + words[i + 1 :]), chosen)
            assert score == pytest.approx(whole - rest, abs=1e-4)
    with pytest.raises(InputError, match="leaves nothing"):
        leave_one_out(model, tokenizer(), ["film"], **OPTIONS)


@pytest.mark.parametrize("attribute", [leave_one_out, gradient_times_input])
def test_dropout_is_off_and_the_model_comes_back(attribute):
    model = tiny(dropout=True, hidden_dropout_prob=0.5)
    model.bert.pooler.eval()
    before = trace(model)
    one, two = (np.concatenate(attribute(model, tokenizer(), TEXTS, **OPTIONS)) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    for texts, options in (("a film", OPTIONS), (TEXTS, {"max_length": 32, "batch_size": -1})):
        with pytest.raises(InputError, match=r"list of at least one text|batch_size must be"):
            attribute(model, tokenizer(), texts, **options)
    assert trace(model) == before


def test_gradient_times_input_is_the_directional_derivative():
    """Scaling a word's embeddings by 1 + h changes the log-odds by h times the word's number."""
    model = tiny().double().eval()
    found = gradient_times_input(model, tokenizer(), TEXTS, **OPTIONS)
    assert [len(scores) for scores in found] == [len(text.split()) for text in TEXTS]
    words = tokenizer()
    encoded = words([TEXTS[1]], return_tensors="pt")  # "films" has two tokens, 1 and 2
    assert words.convert_ids_to_tokens(encoded["input_ids"][0])[1:3] == ["film", "##s"]
    x = model.get_input_embeddings()(encoded["input_ids"]).detach()
    slopes = []
    for tokens in ([1, 2], [3], [4], [5], [6]):
        values = []
        for h in (-1e-5, 1e-5):
            moved = x.clone()
            moved[:, tokens] *= 1 + h
            logits = model(inputs_embeds=moved, attention_mask=encoded["attention_mask"]).logits
            values.append(margin(logits, model(inputs_embeds=x).logits.argmax(-1)).item())
        slopes.append((values[1] - values[0]) / 2e-5)
    np.testing.assert_allclose(found[1], slopes, rtol=1e-4, atol=1e-7)
