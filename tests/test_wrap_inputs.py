"""What may be passed to a wrapped model, and what is refused there."""

import pytest
import torch
from tiny import batch, every_mode, tiny, wrapped
from torch.backends import cuda

from asa_mini import hf
from asa_mini.errors import InputError
from asa_mini.hf import AsaPass


def test_labels_missing():
    inputs = batch()
    inputs.pop("labels")
    with pytest.raises(InputError, match="needs labels in training"):
        wrapped(tiny())(**inputs)


@pytest.mark.parametrize("choices", [False, True], ids=["sequences", "choices"])
def test_example_that_is_all_padding(choices):
    inputs = batch(size=6)
    inputs["attention_mask"][5] = 0
    example = 5
    if choices:
        inputs = {n: x.reshape(3, 2, 8) for n, x in inputs.items() if n != "labels"}
        inputs["labels"], example = torch.tensor([0, 1, 1]), 2
    model = wrapped(tiny("bert", "MultipleChoice" if choices else "SequenceClassification"))
    with pytest.raises(InputError, match=f"example {example} of the batch is all padding"):
        model(**inputs)


@pytest.mark.parametrize("length, padded, spared", [(64, True, True), (64, False, False), (32, True, False)])
def test_the_clean_half_never_meets_cudnn_where_it_gives_nan(monkeypatch, length, padded, spared):
    """github.com/pytorch/pytorch/issues/196678; elsewhere the choice stays PyTorch's."""
    allowed, plain = [], hf.sdpa_attention_forward

    def watch(*args, **kwargs):
        allowed.append((cuda.cudnn_sdp_enabled(), cuda.mem_efficient_sdp_enabled()))
        return plain(*args, **kwargs)

    monkeypatch.setattr(hf, "sdpa_attention_forward", watch)
    model = wrapped(tiny(max_position_embeddings=64))
    allowed.clear()
    model(**batch(length=length, padded=padded))
    assert allowed == [(not spared, True)] * 2  # layers
    assert cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("family, limit", [("bert", 40), ("roberta", 38), ("distilbert", 40), ("albert", 40)])
def test_longer_than_the_position_table(family, limit):
    model = wrapped(tiny(family))
    assert model(**batch(length=limit)).loss.isfinite()
    for mode in (True, False):
        with pytest.raises(InputError, match=f"{limit + 1} tokens are longer than the model's {limit} posit"):
            model.train(mode)(**batch(length=limit + 1))
    embeddings = torch.zeros(2, limit + 1, 16)
    with pytest.raises(InputError, match=f"{limit + 1} tokens are longer"):
        model(inputs_embeds=embeddings)


@pytest.mark.parametrize("family", ["modernbert", "eurobert", "llama"])
def test_rotary_positions_have_no_end(family):
    assert wrapped(tiny(family))(**batch(length=45)).loss.isfinite()


def test_no_input():
    with pytest.raises(InputError, match="needs input_ids or inputs_embeds"):
        wrapped(tiny())(labels=torch.zeros(2, dtype=torch.long))


def test_asa_keyword_is_ours():
    model = wrapped(tiny())
    for mode in (True, False):
        with pytest.raises(InputError, match="the wrapped model itself sets the keyword `asa`"):
            model.train(mode)(**batch(), asa=AsaPass(joint=False))


@every_mode
def test_keywords_of_the_model(joint):
    inputs = batch(padded=False)
    model = wrapped(tiny(), joint_pass=joint)
    expected = model(**inputs)
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    embeddings = model.model.get_input_embeddings()(inputs["input_ids"])
    without_ids = {name: x for name, x in inputs.items() if name != "input_ids"}
    for same in (
        inputs | {"token_type_ids": torch.zeros_like(inputs["input_ids"])},
        inputs | {"position_ids": torch.arange(8)[None]},  # one row for all examples
        inputs | {"position_ids": torch.arange(8).expand(4, 8)},
        inputs | {"attention_mask": mask},
        inputs | {"attention_mask": mask.expand(4, 1, 8, 8)},
        inputs | {"return_dict": False, "output_hidden_states": True},
        without_ids | {"inputs_embeds": embeddings},
    ):
        out = model(**same)
        torch.testing.assert_close(out.adversarial_logits, expected.adversarial_logits)
        torch.testing.assert_close(out.loss, expected.loss)


@pytest.mark.parametrize("family", ["bert", "llama", "ernie"])
def test_only_what_counts_the_examples_is_doubled(family):
    """With as many tokens as examples, nothing can be told from the size of a dimension."""
    inputs = batch(size=8, length=8) | {
        "cache_position": torch.arange(8),
        "position_ids": torch.arange(8)[None],
    }
    if family == "ernie":
        inputs["task_type_ids"] = torch.arange(64).reshape(8, 8) % 3
    seen = []
    model = wrapped(tiny(family))
    model.model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    joint = model(**inputs)
    rows = {name: x.shape[0] for name, x in seen[0].items() if isinstance(x, torch.Tensor)}
    assert rows.pop("cache_position") == 8 and rows.pop("position_ids") == 1 and set(rows.values()) == {16}
    sequential = wrapped(tiny(family), joint_pass=False)(**inputs)
    torch.testing.assert_close(joint.adversarial_logits, sequential.adversarial_logits, rtol=1e-4, atol=1e-5)


def test_a_keyword_whose_rows_nobody_knows():
    inputs = batch() | {"bbox": torch.zeros(4, 8, 4)}
    with pytest.raises(InputError, match=r"has a row for each example; AsaConfig\(joint_pass=False\)"):
        wrapped(tiny())(**inputs)
    assert wrapped(tiny(), joint_pass=False)(**inputs).loss.isfinite()


def test_token_types_count():
    """In the joint batch both halves need them."""
    inputs = batch()
    types = (torch.arange(8) > 3).long().expand(4, 8)
    model = wrapped(tiny())
    joint = model(**inputs, token_type_ids=types)
    assert (joint.logits - model(**inputs).logits).abs().max() > 1e-3
    sequential = wrapped(tiny(), joint_pass=False)(**inputs, token_type_ids=types)
    torch.testing.assert_close(joint.adversarial_logits, sequential.adversarial_logits, rtol=1e-4, atol=1e-5)


def test_adversarial_pass_through_ordinary_attention():
    """Where the implementation was changed behind our back, nothing would be masked, without a word."""
    model = wrapped(tiny())
    with pytest.raises(InputError, match="attn_implementation is 'sdpa'"):
        model.eval().model(**batch(), asa=AsaPass(joint=False))
    model.train().model.set_attn_implementation("eager")
    with pytest.raises(InputError, match="attn_implementation is 'eager'"):
        model(**batch())
