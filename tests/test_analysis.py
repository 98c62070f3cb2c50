"""Capturing attention, and what is measured in it."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import entropy as scipy_entropy
from sklearn.metrics import roc_auc_score
from tiny import tiny, trace, wrapped
from tiny_text import tokenizer as tiny_tokenizer
from transformers import GPT2TokenizerFast

from asa_mini.errors import InputError
from asa_mini.look import capture as capturing
from asa_mini.look import measures

TEXTS = ["a very fine film", "films and a dull story", "the weak cast, meanwhile poor"]  # "the": unknown


capture = partial(capturing.capture, max_length=32)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def maps_of_eager(model, tokenizer, text):
    """The model's own attention weights, (N, H, L, L), by transformers' eager attention."""
    model.set_attn_implementation("eager")
    out = model.eval()(**tokenizer([text], return_tensors="pt"), output_attentions=True)
    return torch.stack(out.attentions)[:, 0].detach().numpy()


@pytest.mark.parametrize("family", ["bert", "electra", "distilbert", "modernbert"])
def test_clean_maps_are_the_models_own(family, tokenizer):
    model = wrapped(tiny(family, dropout=True))
    records = capture(model, tokenizer, TEXTS, batch_size=2)
    plain = model.unwrap()
    for text, record in zip(TEXTS, records, strict=True):
        np.testing.assert_allclose(record.clean, maps_of_eager(plain, tokenizer, text), atol=1e-5)
        assert record.adversarial.shape == record.clean.shape
        np.testing.assert_allclose(record.adversarial.sum(-1), 1, atol=1e-5)


def test_attacked_maps_obey_the_mask_and_explain_the_prediction(tokenizer):
    model = wrapped(tiny())
    record = capture(model, tokenizer, TEXTS[:1])[0]
    some_left = record.kept.any(-1)  # (N, L)
    removed = ~record.kept & some_left[..., None]
    assert removed.any() and not (record.adversarial * removed[:, None]).any()
    kept = record.adversarial[0] / record.clean[0]  # in layer 0 nothing but the mask differs
    for head in kept:
        for row, mask in zip(head, record.kept[0], strict=True):
            if mask.any():  # what is left keeps its proportions
                np.testing.assert_allclose(row[mask], row[mask][0], rtol=1e-4)
    model.train().model.eval()  # no dropout, the training pass all the same
    out = model(**tokenizer(TEXTS[:1], return_tensors="pt"), labels=torch.tensor([0]))
    expected = out.adversarial_logits.softmax(-1)[0].detach().numpy()
    np.testing.assert_allclose(record.adversarial_prediction, expected, atol=1e-6)
    assert np.abs(expected - record.prediction).max() > 1e-4


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_removed_wherever_it_is(tokenizer, side):
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    model = wrapped(tiny("eurobert"))  # rotary positions: the side of the padding does not matter
    together = capture(model, tokenizer, TEXTS)
    for text, record in zip(TEXTS, together, strict=True):
        alone = capture(model, tokenizer, [text])[0]
        assert record.tokens == alone.tokens
        np.testing.assert_array_equal(record.kept, alone.kept)
        np.testing.assert_allclose(record.clean, alone.clean, atol=1e-5)
        np.testing.assert_allclose(record.adversarial, alone.adversarial, atol=1e-5)


def fails(model, batch):
    raise RuntimeError("on purpose")


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
def test_capture_leaves_the_model_as_it_was_on_every_path(tokenizer, mode, plain):
    model = tiny(attention="eager") if plain else wrapped(tiny(attention="eager"))
    model.train(mode != "eval")
    if mode == "mixed":
        getattr(model, "model", model).base_model.eval()
    before = trace(model)
    for options in ({"max_length": 4096}, {"batch_size": 0}, {"perturb": fails}):
        with pytest.raises((InputError, RuntimeError), match=r"longer than|at least 1|on purpose"):
            capture(model, tokenizer, TEXTS, **options)
        assert trace(model) == before
    capture(model, tokenizer, TEXTS)
    assert trace(model) == before


def test_a_plain_model_and_a_layer_that_nobody_attacks_keep_everything(tokenizer):
    plain = tiny()
    record = capture(plain, tokenizer, TEXTS[:1])[0]
    assert record.kept.all() and not plain.base_model.encoder.layer[0].attention.self._forward_pre_hooks
    np.testing.assert_allclose(record.adversarial, record.clean, atol=1e-6)
    record = capture(wrapped(plain, layers=[1]), tokenizer, TEXTS[:1])[0]
    assert record.kept[0].all() and not record.kept[1].all()


def test_tokens_read_as_in_the_text(tokenizer):
    text = TEXTS[0]
    record = capture(tiny(), tokenizer, [text])[0]
    assert record.tokens[0] == tokenizer.cls_token and record.tokens[-1] == tokenizer.sep_token
    for position, word in enumerate(text.split()):
        tokens = record.tokens_of_word(position)
        assert "".join(record.tokens[i].removeprefix("##") for i in tokens) == word
    with pytest.raises(InputError, match="there is no word 99"):
        record.tokens_of_word(99)


def test_tokens_of_a_byte_level_tokenizer_whose_spans_hold_the_space_before():
    merges = [("f", "i"), ("fi", "l"), ("fil", "m"), ("v", "e"), ("ve", "r"), ("ver", "y")]
    merges += [("Ġ", "film"), ("Ġ", "very")]
    pieces = ["[PAD]", *"filmverysĠ", *map("".join, merges)]
    words = GPT2TokenizerFast(
        vocab={piece: i for i, piece in enumerate(dict.fromkeys(pieces))},
        merges=merges,
        pad_token="[PAD]",
        unk_token="[PAD]",
        bos_token="[PAD]",
        eos_token="[PAD]",
    )
    assert words("film very", return_offsets_mapping=True)["offset_mapping"] == [(0, 4), (4, 9)]
    model = tiny("modernbert")
    record = capture(model, words, ["film very films", "film"])[0]
    assert record.tokens == ["film", "very", "film", "##s"]
    assert [record.tokens_of_word(i) for i in range(3)] == [[0], [1], [2, 3]]


def test_capture_refuses_in_the_users_terms(tokenizer):
    for texts in ([], "one text", None, [1], [["a", "film"]]):
        with pytest.raises(InputError, match="list of at least one text"):
            capture(tiny(), tokenizer, texts)
    for swapped, message in (
        ((tokenizer, tiny(), TEXTS), "the model given is a"),
        ((tiny(), TEXTS, tokenizer), "the tokenizer given is a list"),
        (("bert-base-uncased", tokenizer, TEXTS), "the model given is a str"),
    ):
        with pytest.raises(InputError, match=message):
            capture(*swapped)


def record_of(kept, tokens=("[CLS]", "a", "b", "c", "[SEP]"), clean=None):
    """A record of one layer and one head; kept: (L, L)."""
    kept = np.asarray(kept, dtype=bool)[None]
    words = [t for t in tokens if not t.startswith("[")]
    starts = {t: i for i, t in zip(range(0, 2 * len(words), 2), words, strict=True)}
    spans = np.array([(starts[t], starts[t] + 1) if t in starts else (0, 0) for t in tokens])
    uniform = np.full((1, 1, *kept.shape[1:]), 1 / len(tokens)) if clean is None else clean
    p = np.array([0.5, 0.5])
    return capturing.AttentionRecord(" ".join(words), list(tokens), spans, uniform, uniform, kept, p, p)


def test_auroc_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    for _ in range(20):
        record = record_of(rng.random((5, 5)) < 0.5)
        share = measures.masked_share(record)[0]
        expected = roc_auc_score([0, 1, 0], share[1:4])
        assert measures.shortcut_auroc([record], [[2]]) == pytest.approx(expected)


def test_auroc_of_a_planted_word_that_alone_is_hidden():
    kept = np.ones((5, 5))
    kept[:, 2] = 0
    assert measures.shortcut_auroc([record_of(kept)], [[2]]) == 1
    assert measures.shortcut_auroc([record_of(kept)], [[1]]) == 0.25
    assert measures.shortcut_auroc([record_of(np.ones((5, 5)))], [[1]]) == 0.5
    with pytest.raises(InputError, match="a planted and another token"):
        measures.shortcut_auroc([record_of(kept)], [[]])


def test_masked_by_kind_counts_columns():
    kept = np.ones((5, 5))
    kept[:, 2] = 0
    kept[0, 1] = 0
    record = record_of(kept)
    named = measures.token_kinds(record, planted=[2], sentiment=frozenset({"c"}))
    assert named == ["special", "function", "planted", "sentiment", "special"]  # "a" is a stop word
    table = measures.masked_by_kind([record], [named]).set_index("kind")["masked"]
    assert dict(table) == pytest.approx({"planted": 1, "function": 0.2, "sentiment": 0, "special": 0})


def test_measure_by_text_and_layer(tokenizer):
    records = capture(wrapped(tiny()), tokenizer, TEXTS)
    table = measures.measure(records, [[1]] * len(TEXTS)).set_index(["text", "layer"])
    assert len(table) == 2 * len(TEXTS)
    record, row = records[1], table.loc[(1, 1)]
    assert row["kept"] == pytest.approx(record.kept[1].mean())
    assert row["received"] == pytest.approx(record.clean[1, :, :, 1].mean())
    expected = scipy_entropy(record.clean[1], axis=-1).mean()
    assert row["entropy"] == pytest.approx(expected, rel=1e-5)
    assert row["moved"] == pytest.approx(np.abs(record.clean[1] - record.adversarial[1]).sum(-1).mean() / 2)


def test_sentiment_words_are_those_that_go_with_the_label():
    texts = ["the good film", "a good meal", "the bad film", "a bad meal"] * 10
    planted = [text + (" recently" if "good" in text else " meanwhile") for text in texts]
    labels = [1, 1, 0, 0] * 10
    found = measures.sentiment_words(planted, labels, exclude=("recently", "meanwhile"))
    assert found == {"good", "bad"}
    with pytest.raises(InputError, match="lists of strings"):
        measures.sentiment_words(planted, labels, exclude="recently")


def test_entropy_and_total_variation_at_their_ends():
    uniform, one_hot = np.full(4, 0.25), np.eye(4)[0]
    assert measures.entropy(uniform) == pytest.approx(np.log(4)) and measures.entropy(one_hot) == 0
    assert measures.total_variation(one_hot, np.eye(4)[1]) == 1
    assert measures.total_variation(uniform, one_hot) == pytest.approx(0.75)


def test_divergence_is_the_objectives(tokenizer):
    from asa_mini import symmetric_divergence

    record = capture(wrapped(tiny()), tokenizer, TEXTS[:1])[0]
    logits = torch.tensor(np.stack([record.prediction, record.adversarial_prediction])).log()
    expected = symmetric_divergence(logits[:1], logits[1:])
    assert measures.divergence([record])[0] == pytest.approx(expected.item(), rel=1e-3) and expected > 1e-6


def test_interval_covers_the_mean_of_most_samples():
    rng = np.random.default_rng(0)
    samples = rng.normal(1.0, 2.0, size=(40, 200))  # 200 experiments of 40 texts
    mean, low, high = measures.mean_interval(samples).T
    np.testing.assert_allclose(mean, samples.mean(0))
    assert 0.88 < ((low < 1) & (high > 1)).mean() < 0.99
    for bad in (np.ones((1, 3)), np.array([1.0, np.nan])):
        with pytest.raises(InputError, match="at least 2 finite values"):
            measures.mean_interval(bad)
