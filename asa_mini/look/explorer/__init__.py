"""The attention explorer: one HTML page, without any network, in which a reader walks through attention maps.

records = capture(model, tokenizer, texts)      see asa_mini.look.capture
show_explorer(records)                          in a notebook
save_explorer(records, "attention.html")        a file to open, to mail, to hand in
"""

import base64
import html
import json
import operator
import unicodedata
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from asa_mini.errors import InputError
from asa_mini.look.capture import AttentionRecord
from asa_mini.train.files import write_text

PAGE = Path(__file__).with_name("page.html")  # what the reader does; the script below draws
SCRIPT = Path(__file__).with_name("page.js")
TITLE = "Attention, clean and adversarial"
STEPS = 255  # a weight is stored as a whole number of 1/255
# Inside a script element, "<" could end it and U+2028 could end a line; JSON reads all of these back.
ESCAPES = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}


def explorer_html(
    records: Sequence[AttentionRecord], marked: Sequence[Sequence[int]] | None = None, title: str = TITLE
) -> str:
    """One self-contained page: data, style and script inside, nothing fetched from anywhere.

    The reader picks sentence, layer and head (or the mean of the heads) and follows each token's attention,
    clean and adversarial next to each other, with the units that the adversary removed.

    Attention weights are kept in steps of 1/255, so none is off by more than 1/510 (0.2 percentage points),
    and the page shows whole per cent; masks are exact, probabilities have four decimals. Compressed, a weight
    takes less than a byte: some 130 KB for 4 sentences of 16 tokens, 6 layers and 12 heads, and 26 KB for the
    page itself.

    Args:
        records: what to show; N, H, L and C may differ between them.
        marked: for each record the indices of the tokens to mark, e.g. `record.tokens_of_word(position)` of a
            planted word; None marks nothing.
        title: heading of the page.

    Raises:
        InputError: there are no records, their arrays do not fit together or hold anything but numbers from
            0 to 1, or `marked` has not one list of existing tokens for each record.
    """
    if isinstance(records, AttentionRecord) or not len(records):
        raise InputError("give a list of at least one record, as `analysis.capture` returns it")
    marked = [()] * len(records) if marked is None else marked
    if len(marked) != len(records):
        raise InputError(
            f"`marked` has {len(marked)} entries for {len(records)} records; give one list for each"
        )
    packed = []
    for number, (record, tokens) in enumerate(zip(records, marked, strict=True)):
        _check(record, number)
        packed.append(_pack(record) | {"marked": _indices(tokens, record, number)})
    data = json.dumps({"title": _printable(title), "steps": STEPS, "records": packed}, ensure_ascii=False)
    page = PAGE.read_text(encoding="utf-8").replace("{{SCRIPT}}", SCRIPT.read_text(encoding="utf-8"))
    return page.replace(
        "{{DATA}}", data.translate(ESCAPES)
    )  # last: no text of a reader is searched for a place


def save_explorer(
    records: Sequence[AttentionRecord],
    path: str | Path,
    marked: Sequence[Sequence[int]] | None = None,
    title: str = TITLE,
) -> None:
    """Write the page of `explorer_html` to `path`; a page that is already there is replaced in one go.

    Raises:
        InputError: as `explorer_html`, or the folder of `path` does not exist.
    """
    page, path = explorer_html(records, marked, title), Path(path)
    if not path.parent.is_dir():
        raise InputError(f"there is no folder for {path.name!r}; create the folder first")
    write_text(path, page)


def show_explorer(
    records: Sequence[AttentionRecord],
    marked: Sequence[Sequence[int]] | None = None,
    height: int = 1080,
    title: str = TITLE,
) -> None:
    """Display the page in a notebook, as the output of a cell; it stays in the HTML copy of the notebook.

    The page lives in a frame of its own: it may run its script and save files, but cannot reach the notebook.

    Args:
        height: of the frame, in pixels; a longer page scrolls inside it.

    Raises:
        InputError: as `explorer_html`, or `height` is not positive.
    """
    from IPython import display  # only notebooks need it

    if not height > 0:
        raise InputError(f"height is {height!r}; give a positive number of pixels")
    page = html.escape(explorer_html(records, marked, title))
    frame = (
        f'<iframe srcdoc="{page}" sandbox="allow-scripts allow-downloads" title="{html.escape(title)}" '
        f'style="width: 100%; height: {height:d}px; border: 0"></iframe>'
    )
    display.display(display.HTML(f"<div>{frame}</div>"))  # IPython warns about a bare iframe


def _pack(record: AttentionRecord) -> dict:
    """What the page reads of a record: JSON values, and arrays as compressed base64, in row-major order."""
    layers, heads = record.clean.shape[:2]
    return {
        "text": _printable(record.text),
        "tokens": [_printable(token) for token in record.tokens],
        "layers": layers,
        "heads": heads,
        "clean": _base64(np.rint(np.clip(record.clean, 0, 1) * STEPS).astype(np.uint8)),
        "adversarial": _base64(np.rint(np.clip(record.adversarial, 0, 1) * STEPS).astype(np.uint8)),
        "kept": _base64(np.packbits(record.kept)),
        "probabilities": np.round(np.asarray(record.probabilities, float), 4).tolist(),
        "adversarialProbabilities": np.round(np.asarray(record.adversarial_probabilities, float), 4).tolist(),
    }


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(array.tobytes(), 9)).decode("ascii")


def _printable(text: str) -> str:
    """`text` without what an SVG file must not hold; line breaks become spaces, as in any web page."""
    text = "".join(" " if letter in "\t\r\n" else letter for letter in text)
    bad = {letter for letter in text if unicodedata.category(letter) in ("Cc", "Cs")} | {"\ufffe", "\uffff"}
    return "".join("\ufffd" if letter in bad else letter for letter in text)


def _check(record: AttentionRecord, number: int) -> None:
    length, shape = len(record.tokens), np.shape(record.clean)
    if len(shape) != 4 or 0 in shape or shape[2:] != (length, length):
        raise InputError(
            f"record {number}: `clean` must be (N, H, L, L) with L = {length} tokens, but is {shape}"
        )
    wanted = {"adversarial": shape, "kept": (shape[0], length, length)}
    wanted["adversarial_probabilities"] = np.shape(record.probabilities)
    for name, expected in wanted.items():
        if (got := np.shape(getattr(record, name))) != expected:
            raise InputError(f"record {number}: `{name}` must be {expected} like the rest, but is {got}")
    if np.asarray(record.kept).dtype != bool:
        raise InputError(f"record {number}: `kept` must be boolean, but is {np.asarray(record.kept).dtype}")
    for name in ("clean", "adversarial", "probabilities", "adversarial_probabilities"):
        values = np.asarray(getattr(record, name))
        if not ((values >= -1e-3) & (values <= 1 + 1e-3)).all():  # NaN fails the comparisons too
            raise InputError(f"record {number}: `{name}` holds NaN or a number outside 0 to 1")


def _indices(tokens: Sequence[int], record: AttentionRecord, number: int) -> list[int]:
    length = len(record.tokens)
    try:
        indices = [operator.index(token) for token in tokens]
    except TypeError:
        raise InputError(f"`marked` of record {number} is {tokens!r}; give a list of token indices") from None
    if any(not 0 <= index < length for index in indices):
        raise InputError(
            f"`marked` of record {number} is {indices}; its tokens have indices 0 to {length - 1}"
        )
    return indices
