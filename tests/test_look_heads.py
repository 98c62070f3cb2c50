"""Capture, measures, attribution and the explorer know every head: what it predicts, by which likelihood."""

import re
from functools import partial

import numpy as np
import pytest
import torch
from explorer_records import data_of
from tiny import tiny, wrapped
from tiny_text import tokenizer
from torch import Tensor

from asa_mini import symmetric_divergence
from asa_mini.errors import InputError
from asa_mini.heads import LIKELIHOODS
from asa_mini.look import attribution, explorer, measures
from asa_mini.look.capture import capture

NAMES = ("world", "sports", "business")
NAMED = dict(
    num_labels=3, id2label=dict(enumerate(NAMES)), label2id={name: i for i, name in enumerate(NAMES)}
)
TEXTS = ["a very fine film", "films and a dull story"]
PAIRS = [("a very fine film", "a fine story"), ("poor cast", "films and a dull story")]
CHOICES = [[("a fine film", "a lovely story"), ("a fine film", "poor cast")]]
WORDS = tokenizer()
# What is predicted: the head, options of its config, texts.
HEADS = {
    "class": ("SequenceClassification", NAMED, PAIRS),
    "labels": ("SequenceClassification", NAMED | dict(problem_type="multi_label_classification"), TEXTS),
    "scores": ("SequenceClassification", dict(num_labels=1), TEXTS),
    "tokens": ("TokenClassification", NAMED, TEXTS),
    "words": ("MaskedLM", dict(vocab_size=len(WORDS)), TEXTS),
    "choice": ("MultipleChoice", {}, CHOICES),
}
every_head = pytest.mark.parametrize("predicted", HEADS)
read = {"softmax": lambda x: x.softmax(-1), "bernoulli": torch.sigmoid, "gaussian": lambda x: x}


def model_of(predicted: str):
    task, options, _ = HEADS[predicted]
    return wrapped(tiny(task=task, **options))


def inputs_of(example) -> dict[str, Tensor]:
    """One example alone, so without padding; (1, L), or (1, choices, L)."""
    sequences = example if isinstance(example, list) else [example]
    encoded = WORDS(*map(list, zip(*((x,) if isinstance(x, str) else x for x in sequences), strict=True)),
                    return_tensors="pt", padding=True)  # fmt: skip
    return {name: x[None] if isinstance(example, list) else x for name, x in encoded.items()}


def both_logits(model, inputs) -> tuple[Tensor, Tensor]:
    model.train().model.eval()  # no dropout, the training pass all the same
    labels = torch.zeros(1, dtype=torch.long)
    model.model.loss_function = lambda logits, labels, **_: logits.sum()
    with torch.no_grad():
        out = model(**inputs, labels=labels)
    return out.logits, out.adversarial_logits


@every_head
def test_records_hold_what_the_head_predicts(predicted):
    model, (_, _, texts) = model_of(predicted), HEADS[predicted]
    records = iter(capture(model, WORDS, texts, max_length=32))
    for example in texts:
        logits = both_logits(model, inputs_of(example))
        divergence = symmetric_divergence(*logits, LIKELIHOODS[predicted]).item()
        for text in example if isinstance(example, list) else [example]:
            record = next(records)
            assert record.predicted == predicted
            assert record.text == (text if isinstance(text, str) else "\n".join(text))
            found = record.prediction, record.adversarial_prediction
            for ours, theirs in zip(found, logits, strict=True):
                np.testing.assert_allclose(ours, read[LIKELIHOODS[predicted]](theirs)[0], atol=1e-5)
            assert measures.divergence([record])[0] == pytest.approx(divergence, rel=1e-3)
            by_token = predicted in ("tokens", "words")
            assert found[0].shape == ((len(record.tokens),) if by_token else ()) + (len(record.names),)
    names = {"scores": ["score"], "choice": ["a lovely story", "poor cast"]}
    names["words"] = WORDS.convert_ids_to_tokens(range(len(WORDS)))
    assert list(record.names) == names.get(predicted, list(NAMES)) and next(records, None) is None


def test_a_pair_is_the_tokens_of_both():
    first, second = capture(model_of("class"), WORDS, PAIRS, max_length=32)
    assert first.tokens == ["[CLS]", "a", "very", "fine", "film", "[SEP]", "a", "fine", "story", "[SEP]"]
    assert (first.boundary, second.boundary) == (6, 4) and second.tokens[4:6] == ["films"[:4], "##s"]
    for word, tokens in enumerate([[1], [2], [3], [4], [6], [7], [8]]):
        assert first.tokens_of_word(word) == tokens
    assert capture(model_of("class"), WORDS, TEXTS, max_length=32)[0].boundary is None


@every_head
def test_attribution_explains_what_the_head_predicts(predicted):
    """Against the numbers as they are defined, and their derivative when a word's embeddings grow."""
    model, texts = model_of(predicted).unwrap().double().eval(), HEADS[predicted][2][-1:]
    explain = partial(explained, model, predicted)
    (left_out, *_), (slopes, *_) = (
        attribute(model, WORDS, texts, max_length=32)
        for attribute in (attribution.leave_one_out, attribution.gradient_times_input)
    )
    whole, chosen = explain(inputs_of(texts[0]))
    assert left_out.shape == slopes.shape
    choice, pair = predicted == "choice", predicted in ("class", "choice")
    sequence = texts[0][0] if choice else texts[0]
    sequence = sequence if pair else (sequence,)
    words = sequence[0].split()
    shorter = (" ".join(words[1:]), *sequence[1:])
    shorter = shorter if pair else shorter[0]
    rest, _ = explain(inputs_of([shorter, *texts[0][1:]] if choice else shorter), chosen, left_out=0)
    np.testing.assert_allclose(left_out[0], np.squeeze(whole - rest), atol=1e-5)
    if predicted in ("tokens", "words"):
        assert np.isnan(np.diag(left_out)).all() and np.isfinite(slopes).all()

    inputs, values = inputs_of(texts[0]), []
    own = [1] if words[0] != "films" else [1, 2]
    x = model.get_input_embeddings()(inputs.pop("input_ids")).detach()
    for h in (-1e-5, 1e-5):
        moved = x.clone()
        moved[(0, 0, own) if choice else (0, own)] *= 1 + h
        values.append(explain({**inputs, "inputs_embeds": moved}, chosen)[0])
    np.testing.assert_allclose(slopes[0], np.squeeze(values[1] - values[0]) / 2e-5, rtol=1e-4, atol=1e-7)


def explained(model, predicted, inputs, chosen=None, left_out=None):
    """T numbers by their definition, and the predicted classes; of the word that is left out NaN."""
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    if predicted in ("labels", "scores"):
        return logits.numpy(), None
    if predicted in ("tokens", "words"):  # of "films and a dull story" the tokens are [CLS] film ##s and ...
        logits = logits[[1, 3, 4, 5, 6] if left_out is None else [0, 1, 2, 3, 4]]
    logits = logits.reshape(-1, logits.shape[-1])
    chosen = logits.argmax(-1) if chosen is None else chosen
    p = logits.softmax(-1)[range(len(chosen)), chosen]
    odds = (p / (1 - p)).log().numpy()
    if left_out is not None and predicted in ("tokens", "words"):
        odds[left_out] = np.nan
    return odds, chosen


def test_what_is_no_text_of_a_head_is_refused():
    for predicted, texts, message in (
        ("choice", TEXTS, "each a list of its choices"),
        ("choice", [["a", "b"], ["a"]], "the same number of choices"),
        ("class", ["a film", ("a film", "a story")], "either texts or pairs"),
        ("class", CHOICES, r"each a string, or a pair \(text, text_pair\)"),
        ("class", [("a", "b", "c")], "or a pair"),
    ):
        with pytest.raises(InputError, match=message):
            capture(model_of(predicted), WORDS, texts, max_length=32)
    with pytest.raises(InputError, match="texts of 1 words or more"):
        attribution.gradient_times_input(model_of("tokens"), WORDS, [""], max_length=32)
    with pytest.raises(InputError, match="has no head whose loss"):
        attribution.leave_one_out(tiny(task="QuestionAnswering"), WORDS, TEXTS, max_length=32)


def page_of(predicted: str) -> str:
    return explorer.explorer_html(capture(model_of(predicted), WORDS, HEADS[predicted][2], max_length=32))


@every_head
def test_the_page_names_what_is_predicted(predicted):
    records = capture(model_of(predicted), WORDS, HEADS[predicted][2], max_length=32)
    for stored, record in zip(data_of(explorer.explorer_html(records))["records"], records, strict=True):
        assert (stored["predicted"], stored["classes"]) == (predicted, len(record.names))
        assert stored["boundary"] == record.boundary and ("\u2016" in stored["text"]) == ("\n" in record.text)
        both = np.stack([record.prediction, record.adversarial_prediction], -1)
        both = both.reshape(-1, len(record.names), 2)
        for bars, values in zip(stored["predictions"], both, strict=True):
            assert len(bars) == min(4, len(values))
            assert bars[np.argmax([max(bar[1:]) for bar in bars])][0] == record.names[values.max(1).argmax()]
            for name, *shown in bars:
                np.testing.assert_allclose(shown, values[list(record.names).index(name)], atol=5e-5)


def test_the_page_in_a_browser(browser, tmp_path):
    """Token by token for a tagger, of a pair the boundary, and no error on any page."""
    errors, seen = [], {}
    for predicted in HEADS:
        path = tmp_path / f"{predicted}.html"
        path.write_text(page_of(predicted), encoding="utf-8")
        tab = browser.new_page()
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(path.as_uri())
        tab.locator("#stage svg").wait_for()
        seen[predicted] = tab.locator("#stage svg").text_content()
        if predicted == "tokens":
            tab.locator("#tokens button").nth(2).hover()
            said = re.sub("[\u2068\u2069]", "", tab.locator("#said").text_content())
            record = capture(model_of("tokens"), WORDS, TEXTS, max_length=32)[0]
            best = record.prediction[2]
            assert f"Predicted: clean “{NAMES[best.argmax()]}” {100 * best.max():.1f}%" in said
        tab.close()
    assert errors == []
    assert all(name in seen[predicted] for predicted in ("class", "labels", "tokens") for name in NAMES)
    assert "between the two texts" in seen["class"] and "between" not in seen["labels"]
    score = capture(model_of("scores"), WORDS, TEXTS, max_length=32)[0].prediction[0]
    assert f"{score:.3f}" in seen["scores"] and "poor cast" in seen["choice"]
