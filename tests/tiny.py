"""Tiny random models of every family that the tests run on, and batches for them."""

import pytest
import torch
import transformers

import asa_mini

VOCABULARY = 60
PAD = 1
SMALL = dict(
    vocab_size=VOCABULARY,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=40,
    pad_token_id=PAD,
    bos_token_id=2,
    eos_token_id=3,
)
# What differs from SMALL; `layers` is the number of modules that call the attention function.
FAMILIES = {
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "camembert": {},
    "electra": dict(embedding_size=12),
    "distilbert": dict(
        vocab_size=VOCABULARY,
        dim=16,
        n_layers=2,
        n_heads=2,
        hidden_dim=24,
        max_position_embeddings=40,
        pad_token_id=PAD,
    ),
    "albert": dict(embedding_size=12),
    "ernie": dict(use_task_id=True),
    "mobilebert": dict(  # its attention reads another width than hidden_size
        embedding_size=12, true_hidden_size=8, intra_bottleneck_size=8, num_feedforward_networks=1
    ),
    "modernbert": dict(cls_token_id=2, sep_token_id=3, local_attention=4, global_attn_every_n_layers=2),
    "eurobert": {},
    "llama": dict(num_attention_heads=4, num_key_value_heads=2),
}
NO_DROPOUT = dict(
    bert=("hidden_dropout_prob", "attention_probs_dropout_prob"),
    albert=("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout_prob"),
    distilbert=("dropout", "attention_dropout", "seq_classif_dropout"),
    modernbert=("embedding_dropout", "attention_dropout", "mlp_dropout", "classifier_dropout"),
    eurobert=("attention_dropout",),
    llama=("attention_dropout", "classifier_dropout"),
)


every_mode = pytest.mark.parametrize("joint", [True, False], ids=["joint", "sequential"])


def tiny(
    family: str = "bert",
    task: str = "SequenceClassification",
    dropout: bool = False,
    attention: str = "sdpa",
    **options,
) -> transformers.PreTrainedModel:
    """A random model in training mode; the weights are large enough for the layers to matter."""
    config = FAMILIES[family] if family == "distilbert" else SMALL | FAMILIES[family]
    if not dropout:
        config = config | dict.fromkeys(NO_DROPOUT.get(family, NO_DROPOUT["bert"]), 0.0)
    config = transformers.AutoConfig.for_model(family, **config | {"initializer_range": 0.2} | options)
    config._attn_implementation = attention
    torch.manual_seed(0)
    model_class = getattr(transformers, f"AutoModel{'For' + task if task else ''}")
    return model_class.from_config(config).train()


def wrapped(model: transformers.PreTrainedModel, seed: int = 0, **options) -> asa_mini.AsaModel:
    """`model` under ASA, its adversaries large enough to switch off about half of the units."""
    torch.manual_seed(seed)
    wrapped = asa_mini.wrap(model, asa_mini.AsaConfig(**options))
    for adversary in wrapped.adversaries.values():
        for linear in (adversary.query, adversary.key):
            torch.nn.init.normal_(linear.weight, std=0.2)
    return wrapped


def batch(size: int = 4, length: int = 8, padded: bool = True, seed: int = 1, classes: int = 2) -> dict:
    """`size` random sequences with labels; with `padded`, all but the first are shorter than `length`."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(4, VOCABULARY, (size, length), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    if padded:
        for row in range(1, size):
            attention_mask[row, length - 1 - (row - 1) % (length - 2) :] = 0
    input_ids[attention_mask == 0] = PAD
    labels = torch.randint(classes, (size,), generator=generator)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def trace(model: torch.nn.Module) -> list:
    """What `wrap`, or whoever borrows a model, could leave behind."""
    modules = [(module.training, list(module._forward_pre_hooks)) for module in model.modules()]
    return [model.config._attn_implementation, modules, list(model.state_dict())]


def checkpoint(model: torch.nn.Module, reentrant: bool) -> torch.nn.Module:
    """Turn on gradient checkpointing, by the name that this version of transformers has for it."""
    new = hasattr(transformers.PreTrainedModel, "activation_checkpointing_enable")
    kind = "activation" if new else "gradient"
    getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": reentrant})
    return model


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def step(model: torch.nn.Module, **inputs):
    """One forward and one backward pass: the output and the gradients."""
    model.zero_grad()
    out = model(**inputs)
    out.loss.backward()
    return out, gradients(model)


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    """The same names, and tensors that differ by less than `tolerance`, relative to the larger norm."""
    assert a.keys() == b.keys()
    floor = 1e-3 * max(x.norm() for x in a.values())  # a true zero holds rounding only
    for name in a:
        error = (a[name] - b[name]).norm() / (a[name].norm() + floor)
        assert error < tolerance, f"{name} differs by {error:.1e}"


def assert_same_terms(a, b) -> None:
    """The same losses, logits and counts in two outputs of a wrapped model, up to rounding."""
    terms = ("loss", "task_loss", "divergence", "kept_units", "logits", "adversarial_logits", "kept_share")
    for name in terms:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5, msg=name)
