"""What libraries read of a model, they find on a wrapped one; above all `transformers.Trainer`, as it is."""

import inspect
import pickle

import datasets
import pytest
import torch
import transformers
from tiny import batch, step, tiny, wrapped

from asa_mini.model import AsaModel

ATTRIBUTES = [
    *("config", "dtype", "device", "name_or_path", "main_input_name", "base_model_prefix", "bert"),
    *("_tied_weights_keys", "all_tied_weights_keys", "_keys_to_ignore_on_save", "_no_split_modules"),
    *("supports_gradient_checkpointing", "is_gradient_checkpointing"),
]


def rows(size: int = 8, **columns) -> datasets.Dataset:
    inputs = {name: x.tolist() for name, x in batch(size).items()} | columns
    return datasets.Dataset.from_dict(inputs | {"text": ["a sentence"] * size})  # of no use to a model


def trainer(model, folder, **options) -> transformers.Trainer:
    options = (
        dict(per_device_train_batch_size=4, max_steps=2, learning_rate=1e-2, save_strategy="no") | options
    )
    arguments = transformers.TrainingArguments(
        str(folder), report_to="none", disable_tqdm=True, use_cpu=True, **options
    )
    return transformers.Trainer(model=model, args=arguments, train_dataset=rows(), eval_dataset=rows())


@pytest.mark.parametrize("family", ["bert", "modernbert", "llama"])
def test_signature_and_class_are_the_inner_model_s(family):
    model = tiny(family)
    asa = wrapped(model)
    assert inspect.signature(asa.forward) == inspect.signature(model.forward)
    assert isinstance(asa, AsaModel) and isinstance(asa, type(model)) and asa.__class__ is type(model)
    assert repr(asa).startswith("AsaModel(") and {"unwrap", "adversaries", "get_input_embeddings"} <= set(
        dir(asa)
    )


def test_attributes_are_the_inner_model_s():
    model = tiny("bert", "MaskedLM")
    asa = wrapped(model)
    for name in ATTRIBUTES:
        assert getattr(asa, name) is getattr(model, name) or getattr(asa, name) == getattr(model, name), name
    assert asa.get_input_embeddings() is model.bert.embeddings.word_embeddings
    assert not hasattr(asa, "hf_device_map")  # as the model itself has none
    asa.add_model_tags(["asa"])
    assert model.model_tags == ["asa"]
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = asa.no_such_thing


def test_positional_arguments_go_by_the_inner_model_s_order():
    inputs = batch()
    model = wrapped(tiny("distilbert"))
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    expected = model(**inputs).loss
    assert torch.equal(model(None, inputs["attention_mask"], embeddings, inputs["labels"]).loss, expected)


def test_pickle():
    model = wrapped(tiny())
    twin = pickle.loads(pickle.dumps(model))
    assert isinstance(twin, AsaModel) and isinstance(twin, transformers.BertForSequenceClassification)
    assert torch.equal(twin(**batch()).loss, model(**batch()).loss)


def test_columns_are_kept_and_predictions_equal(tmp_path):
    """Trainer drops the columns that `forward` does not name, and says so in a line of the log."""
    positions = [list(range(8))[::-1]] * 8
    found = []
    for model in (tiny().eval(), wrapped(tiny()).eval()):
        found.append(trainer(model, tmp_path).predict(rows(position_ids=positions)).predictions)
    assert (found[0] == found[1]).all()
    without = trainer(tiny().eval(), tmp_path).predict(rows()).predictions
    assert abs(found[0] - without).max() > 1e-3  # so the positions arrived


@pytest.mark.parametrize("options", [{}, {"bf16": True}], ids=["float32", "bf16"])
def test_tied_language_model_is_saved_and_loaded(tmp_path, options):
    model = wrapped(tiny("bert", "MaskedLM"))
    data = rows().map(lambda row: {"labels": row["input_ids"]})
    run = trainer(model, tmp_path, save_strategy="steps", save_steps=1, **options)
    run.train_dataset = run.eval_dataset = data
    run.train()
    run.save_model(str(tmp_path / "last"))
    inputs = {name: x for name, x in batch().items() if name != "labels"}
    expected = model.unwrap().eval()(**inputs).logits  # accelerate leaves autocast around the wrapper
    for folder in ("checkpoint-2", "last"):
        loaded = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / folder).eval()
        assert loaded.config.architectures == ["BertForMaskedLM"]
        torch.testing.assert_close(loaded(**inputs).logits, expected)


def test_best_model_and_resuming(tmp_path, caplog):
    """What a plain Trainer saves is the plain model; loading it says that no adversaries are in it."""
    saving = dict(save_strategy="steps", eval_strategy="steps", save_steps=1, eval_steps=1)
    model = wrapped(tiny())
    run = trainer(model, tmp_path, load_best_model_at_end=True, **saving)
    run.train()
    assert "without adversaries" in caplog.text
    best = transformers.AutoModelForSequenceClassification.from_pretrained(run.state.best_model_checkpoint)
    for name, x in best.state_dict().items():
        assert torch.equal(x, model.model.state_dict()[name]), name

    again = wrapped(tiny(), seed=3)
    trainer(again, tmp_path, **saving).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    last = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-2")
    for name, x in last.state_dict().items():
        assert torch.equal(x, again.model.state_dict()[name]), name


def test_a_state_dict_of_its_own_is_loaded_whole():
    model, other = wrapped(tiny()), wrapped(tiny(), seed=5)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(**batch()).loss, model(**batch()).loss)


def test_neftune(tmp_path):
    losses = []
    for alpha in (None, 20.0):
        run = trainer(wrapped(tiny()), tmp_path, neftune_noise_alpha=alpha, logging_steps=1)
        run.train()
        losses.append(run.state.log_history[0]["loss"])
    assert losses[0] != losses[1]


def test_save_pretrained(tmp_path):
    model = wrapped(tiny())
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(**batch()).logits, model.eval()(**batch()).logits)
    assert not any("advers" in name for name in loaded.state_dict())


class LowRank(torch.nn.Module):
    """What LoRA puts in the place of a linear layer: x W + x A B, W frozen."""

    def __init__(self, base: torch.nn.Linear):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = torch.nn.Parameter(torch.randn(base.in_features, 2) / 4)
        self.b = torch.nn.Parameter(torch.randn(2, base.out_features) / 4)

    def forward(self, x):
        return self.base(x) + x @ self.a @ self.b


def add_low_rank(model: torch.nn.Module) -> None:
    """As peft does: everything frozen, then every linear map called "query" replaced, wherever it is."""
    model.requires_grad_(False)
    for module in list(model.modules()):
        if isinstance(getattr(module, "query", None), torch.nn.Linear):
            module.query = LowRank(module.query)


def test_low_rank_adapters_before_wrapping():
    model = tiny()
    add_low_rank(model)
    _, grads = step(wrapped(model), **batch())
    assert {name.split(".")[-1] for name in grads if name.startswith("model.")} == {"a", "b"}
    assert sum(name.startswith("adversaries.") for name in grads) == 8 and all(
        x.any() for x in grads.values()
    )


def test_low_rank_adapters_after_wrapping():
    model = wrapped(tiny())
    add_low_rank(model)
    with pytest.raises(ValueError, match=r"adversaries are frozen.*layers 0, 1: add LoRA.*before wrapping"):
        model(**batch())
    assert model.eval()(**batch()).loss.isfinite()  # who only predicts needs no adversary
