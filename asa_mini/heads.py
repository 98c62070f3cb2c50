"""What a head predicts: its loss, and the likelihood by which predictions are compared and shown."""

import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.loss.loss_utils import LOSS_MAPPING

from asa_mini.errors import InputError

# What is predicted -> the likelihood p(y | x) that the logits stand for. A Gaussian has variance 1, so that
# the KL divergence of two scores is half their squared difference.
LIKELIHOODS = {
    "class": "softmax",  # logits (B, C): one class of C
    "labels": "bernoulli",  # (B, C): any of C labels, each on its own (multi-label)
    "scores": "gaussian",  # (B, C): C numbers, mostly one (regression)
    "choice": "softmax",  # (B, C): one of C texts
    "tokens": "softmax",  # (B, L, C): a class for each token
    "words": "softmax",  # (B, L, V): a word of the vocabulary for each token
}
BY_TOKEN = ("tokens", "words")
PROBLEMS = {  # transformers' names of what a ForSequenceClassification predicts
    "single_label_classification": "class",
    "multi_label_classification": "labels",
    "regression": "scores",
}
# How transformers' classes with a head are called, what they predict, and which of its losses they compute.
KNOWN = {
    "ForSequenceClassification": "class",  # or by PROBLEMS
    "ForTokenClassification": "tokens",
    "ForMaskedLM": "words",
    "ForCausalLM": "words",
}
HEADS = {name: (predicted, LOSS_MAPPING[name]) for name, predicted in KNOWN.items()}
# Not in its table of losses:
HEADS["ForMultipleChoice"] = "choice", lambda logits, labels, **_: F.cross_entropy(logits, labels)
HEADS["LMHeadModel"] = HEADS["ForCausalLM"]  # what BERT and GPT-2 call theirs


def head_name(model: PreTrainedModel) -> str | None:
    """The name in HEADS by which the model's class, or the nearest one that it inherits from, ends."""
    names = (cls.__name__ for cls in model.__class__.__mro__)  # __class__: of the model inside an AsaModel
    return next((head for name in names for head in HEADS if name.endswith(head)), None)


def check_head(model: PreTrainedModel) -> None:
    """Raise InputError unless `task_loss` knows the model's loss."""
    if hasattr(model, "_loss_function"):
        return
    name, head = model.__class__.__name__, head_name(model)
    if head is None:
        raise InputError(
            f"{name} has no head whose loss asa_mini knows; load the encoder with one of "
            f"AutoModel{', AutoModel'.join((*KNOWN, 'ForMultipleChoice'))}, or set model.loss_function"
        )
    parents = model.__class__.__mro__
    first = next(cls for cls in parents if "forward" in vars(cls) or cls.__name__.endswith(head))
    if not first.__name__.endswith(head):
        raise InputError(
            f"{name} has a forward of its own, so its loss may be another than that of {head}; "
            "set model.loss_function to it: (logits, labels, **options) -> scalar"
        )


def task_loss(model: PreTrainedModel, logits: Tensor, labels: Tensor) -> Tensor:
    """The loss that the Hugging Face model itself computes from these logits, as a scalar.

    Asking the model would mean a third pass in joint mode, where its logits hold both halves.
    """
    loss = getattr(model, "_loss_function", None) or HEADS[head_name(model)][1]  # the first: set by a user
    options = dict(config=model.config, vocab_size=model.config.vocab_size)
    return loss(logits=logits, pooled_logits=logits, labels=labels, **options)


def predicted_by(model: PreTrainedModel, labels: Tensor | None = None) -> str:
    """What the model predicts, a key of LIKELIHOODS; of a head that nobody knows, "class".

    A sequence classifier says it in `config.problem_type`. Where that is None, transformers' rule holds: a
    single output is a score, and several are labels if those in training, (B, C), are floats.
    """
    predicted = HEADS[head_name(model)][0] if head_name(model) else "class"
    if predicted != "class":
        return predicted
    if model.config.problem_type is not None:
        return PROBLEMS[model.config.problem_type]
    if model.config.num_labels == 1:
        return "scores"
    return "labels" if labels is not None and labels.is_floating_point() else "class"


def read_logits(logits: Tensor, predicted: str) -> Tensor:
    """The prediction itself, in float32: probabilities, by LIKELIHOODS, or scores; in the logits' shape."""
    likelihood, logits = LIKELIHOODS[predicted], logits.float()
    if likelihood == "gaussian":
        return logits
    return logits.sigmoid() if likelihood == "bernoulli" else logits.softmax(-1)
