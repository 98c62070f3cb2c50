"""What a model attends to in a text, clean and under attack: one AttentionRecord per text, in NumPy."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from asa_mini.config import AsaConfig
from asa_mini.errors import InputError
from asa_mini.heads import predicted_by, read_logits
from asa_mini.hf import AsaPass
from asa_mini.look.recording import Recording, attackable
from asa_mini.look.texts import Batch, Text, check_arguments, in_batches, tokens_at
from asa_mini.model import AsaModel, wrap


@dataclass(frozen=True)
class AttentionRecord:
    """One text or pair, read by one model, without padding. N layers, H heads, L tokens, C classes.

    Attributes:
        text: as given; the two of a pair are joined by a line break.
        tokens: L strings, as they stand in the text; a piece that continues a word starts with ##, and
            special tokens look like [CLS] or <s>.
        spans: (L, 2), where each token stands in the text; (0, 0) for special tokens.
        clean, adversarial: (N, H, L, L), attention weights; every row (query) sums to 1.
        kept: (N, L, L) boolean, False where the layer's adversary switched the unit off.
        prediction, adversarial_prediction: by `predicted` "class" (C,), probabilities; "labels" (C,), the
            probability of each; "scores" (C,), numbers; "choice" (C,), the probabilities of all choices of
            which this text is one; "tokens" (L, C), for each token the probabilities of its classes;
            "words" (L, V), likewise of the vocabulary.
        predicted: what the model's head predicts, a key of `heads.LIKELIHOODS`.
        names: C strings, those of the classes, labels or scores (`config.id2label`), of the choices (their
            own texts), of the words; empty where nobody knows them.
        boundary: of a pair, the index of the first token of the second text.
    """

    text: str
    tokens: list[str]
    spans: np.ndarray
    clean: np.ndarray
    adversarial: np.ndarray
    kept: np.ndarray
    prediction: np.ndarray
    adversarial_prediction: np.ndarray
    predicted: str = "class"
    names: Sequence[str] = ()
    boundary: int | None = None

    def tokens_of_word(self, position: int) -> list[int]:
        """Indices of the tokens of `text.split()[position]`, e.g. of a planted word."""
        words = list(re.finditer(r"\S+", self.text))
        if not 0 <= position < len(words):
            raise InputError(f"there is no word {position} in {self.text!r}; it has {len(words)}")
        return tokens_at(self.spans, *words[position].span())


@torch.no_grad()
def capture(
    model: AsaModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text | list[Text]],
    max_length: int = 128,
    batch_size: int = 32,
    perturb: Callable[[PreTrainedModel, Mapping[str, Tensor]], Tensor] | None = None,
) -> list[AttentionRecord]:
    """Run a model over texts, clean and attacked, and keep its attention; dropout is off.

    A plain model, and a layer that nobody attacks, have masks that keep everything. The model comes back as
    it was, after an error too: no hook, the same attention implementation, the same training modes.

    Args:
        model: a wrapped model, or a plain one, with any head that `wrap` takes.
        tokenizer: a fast one, which knows where in the text each token stands.
        texts: n strings, or n pairs (text, text_pair); for multiple choice n lists of choices, each a string
            or a pair.
        max_length: longest sequence in tokens; longer texts are cut.
        batch_size: examples at one time; their maps take B N H L L 4 bytes, twice.
        perturb: (model, batch) -> word embeddings (B, L, E) of the attacked half, see
            `baselines.perturbed_embeddings`; by default they are those of the clean half.

    Returns:
        One record for each text or pair, in their order; for multiple choice one for each choice. The
        predictions of masked words take L V 4 bytes, twice.

    Raises:
        InputError: see `texts.check_arguments`; or the model is of no supported family.
    """
    examples = check_arguments(model, tokenizer, texts, max_length, batch_size)
    with ExitStack() as undo:
        if not isinstance(model, AsaModel):
            model = wrap(model, AsaConfig(layers=()))
            undo.callback(model.unwrap)
        plain = undo.enter_context(attackable(model))
        read = partial(_records, plain, tokenizer, perturb)
        return in_batches(read, plain, tokenizer, examples, max_length, batch_size)


def _records(model, tokenizer, perturb, batch: Batch) -> list[AttentionRecord]:
    recording, predicted = Recording(maps=[]), predicted_by(model)
    both = {name: torch.cat([x, x]) for name, x in batch.inputs.items()}
    if perturb is not None:
        clean = model.get_input_embeddings()(both.pop("input_ids").chunk(2)[0])
        both["inputs_embeds"] = torch.cat([clean, perturb(model, batch.inputs)])
    logits = model(**both, asa=AsaPass(joint=True, backend="reference", record=recording)).logits
    predictions = read_logits(logits, predicted).cpu().numpy()  # (2B, C), or (2B, L, C)
    size, choices = len(batch.sequences), 2 * len(batch.sequences) // len(predictions)
    predictions = predictions.repeat(choices, 0).reshape(2, size, *predictions.shape[1:])
    maps = torch.stack(recording.maps, 1).float().cpu().numpy()  # (2S, N, H, L, L)
    kept = torch.stack(recording.masks, 1).cpu().numpy()  # (S, N, L, L)
    names, records = _names(model, tokenizer, predicted), []
    for i, text in enumerate(batch.texts):
        tokens, real = _surface(tokenizer, batch, i), np.flatnonzero(batch.encoded["attention_mask"][i].cpu())
        if predicted == "choice":
            first = i - i % choices
            names = [sequence[-1] for sequence in batch.sequences[first : first + choices]]
        units, second = (..., *np.ix_(real, real)), np.flatnonzero(batch.seconds[i, real])
        both_sides = predictions[:, i][:, real] if logits.ndim == 3 else predictions[:, i]
        records.append(
            AttentionRecord(
                text,
                [tokens[token] for token in real],
                batch.spans[i, real],
                maps[i][units],
                maps[size + i][units],
                kept[i][units],
                *both_sides,
                predicted=predicted,
                names=names,
                boundary=int(second[0]) if len(second) else None,
            )
        )
    return records


def _surface(tokenizer, batch: Batch, i: int) -> list[str]:
    """The tokens of a sequence, as they stand in its text."""
    tokens = tokenizer.convert_ids_to_tokens(batch.encoded["input_ids"][i])
    words = list(zip(batch.seconds[i], batch.encoded.word_ids(i), strict=True))
    for token, (start, end) in enumerate(batch.spans[i]):
        surface = batch.texts[i][start:end].strip()  # some tokenizers count the space before a word to it
        if surface:
            continues = token > 0 and words[token] == words[token - 1]
            tokens[token] = ("##" if continues else "") + surface
    return tokens


def _names(model, tokenizer, predicted: str) -> list[str]:
    config = model.config
    if predicted == "words":
        words = enumerate(tokenizer.convert_ids_to_tokens(range(config.vocab_size)))
        return [word or f"token {i}" for i, word in words]  # the table may be longer than the vocabulary
    names = [config.id2label[i] for i in range(config.num_labels)]
    return ["score"] if predicted == "scores" and names == ["LABEL_0"] else names
