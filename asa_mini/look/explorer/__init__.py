"""The attention explorer: one HTML page, without any network, in which a reader walks through attention maps.

page.html: what the reader does; page.js: numbers and picture. ::

    records = capture(model, tokenizer, texts)      # see asa_mini.look.capture
    show_explorer(records)                          # in a notebook
    save_explorer(records, "attention.html")        # a file to open, to mail, to hand in
"""

import base64
import html
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from asa_mini.errors import InputError
from asa_mini.heads import BY_TOKEN
from asa_mini.look.capture import AttentionRecord
from asa_mini.train.files import write_text

PAGE, SCRIPT = (Path(__file__).with_name(name) for name in ("page.html", "page.js"))
CLASSES = 4  # of a prediction that are shown
STEPS = 255  # a weight is stored as a whole number of 1/255
# Inside a script element, "<" could end it and U+2028 could end a line; JSON reads all of these back.
ESCAPES = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}


def explorer_html(
    records: Sequence[AttentionRecord],
    marked: Sequence[Sequence[int]] | None = None,
    title: str = "Attention, clean and adversarial",
) -> str:
    """One self-contained page: data, style and script inside, nothing fetched from anywhere.

    The reader picks sentence, layer and head (or the mean of the heads) and follows each token's attention,
    clean and adversarial next to each other, with the units that the adversary removed. Of the lines of all
    tokens together, a side shows the 5,000 strongest. Beside them stand both predictions, as bars by class,
    label or choice, as scores, or token by token; of more than four classes those that are likeliest.

    No weight is off by more than 1/510 (0.2 percentage points), masks are exact, predictions have four
    decimals. A weight takes less than a byte: some 130 KB for 4 sentences of 16 tokens, 6 layers and 12
    heads, several MB for 512 tokens, and 25 KB for the page itself.

    Args:
        records: what to show; N, H, L and C may differ between them.
        marked: for each record the indices of the tokens to mark, e.g. `record.tokens_of_word(position)` of a
            planted word; None marks nothing.

    Raises:
        InputError: there are no records, their arrays do not fit together or hold anything but numbers from
            0 to 1 (scores: finite ones), or `marked` has not one list of existing tokens for each record.
    """
    listed = records if isinstance(records, Sequence) else []
    if not listed or not all(isinstance(record, AttentionRecord) for record in listed):
        raise InputError("give a list of at least one record, as `capture` returns it")
    marked = [()] * len(records) if marked is None else marked
    if len(marked) != len(records):
        raise InputError(f"`marked` has {len(marked)} entries for {len(records)} records; give each a list")
    packed = [_pack(i, *pair) for i, pair in enumerate(zip(records, marked, strict=True))]
    data = json.dumps({"title": _printable(title), "steps": STEPS, "records": packed}, ensure_ascii=False)
    page = PAGE.read_text(encoding="utf-8").replace("{{SCRIPT}}", SCRIPT.read_text(encoding="utf-8"))
    return page.replace("{{DATA}}", data.translate(ESCAPES))  # last: no reader's text is searched for a place


def save_explorer(records: Sequence[AttentionRecord], path: str | Path, **options) -> None:
    """Write the page to `path` in one go, and make its folder; `options` and errors are `explorer_html`'s."""
    page, path = explorer_html(records, **options), Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)


def show_explorer(records: Sequence[AttentionRecord], height: int = 1080, **options) -> None:
    """Display the page in a notebook, as the output of a cell; it stays in the HTML copy of the notebook.

    The page lives in a frame of its own, `height` pixels high, in which a longer page scrolls: it may run its
    script and save files, but cannot reach the notebook. `options` and errors are `explorer_html`'s.
    """
    from IPython import display  # only notebooks need it

    frame = (  # in a <div>: IPython warns about a bare iframe
        f'<div><iframe srcdoc="{html.escape(explorer_html(records, **options))}" title="Attention explorer" '
        f'sandbox="allow-scripts allow-downloads" style="width: 100%; height: {height}px; border: 0">'
        "</iframe></div>"
    )
    display.display(display.HTML(frame))


def _pack(number: int, record: AttentionRecord, marked: Sequence[int]) -> dict:
    """What the page reads of a record: JSON values, and arrays as compressed base64, in row-major order."""
    length, (layers, heads) = len(record.tokens), record.clean.shape[:2]
    full, shared = (layers, heads, length, length), (layers, length, length)
    shapes = record.clean.shape, record.adversarial.shape, record.kept.shape
    if shapes != (full, full, shared):
        raise InputError(
            f"record {number}: for its {length} tokens, `clean` and `adversarial` must be (N, H, L, L) and "
            f"`kept` (N, L, L), but their shapes are {shapes}"
        )
    both = np.stack([record.prediction, record.adversarial_prediction], -1)  # (C, 2), or (L, C, 2)
    shares = [record.clean, record.adversarial, *([] if record.predicted == "scores" else [both])]
    in_range = all(((values >= -1e-3) & (values <= 1 + 1e-3)).all() for values in shares)  # NaN fails, too
    if not in_range or not np.isfinite(both).all():
        raise InputError(f"record {number} holds NaN or a number outside 0 to 1")
    names = record.names or [f"class {k}" for k in range(both.shape[-2])]
    rows = both.reshape(-1, *both.shape[-2:])  # (1 or L, C, 2)
    if len(names) != rows.shape[1] or len(rows) != (length if record.predicted in BY_TOKEN else 1):
        raise InputError(
            f"record {number}: predictions of {record.predicted} with {len(names)} names cannot have the "
            f"shape {record.prediction.shape}"
        )
    marked = np.ravel(marked).tolist()
    if not set(marked) <= set(range(length)):
        raise InputError(f"`marked` of record {number} is {marked!r}; give token indices, 0 to {length - 1}")
    return {
        "text": _printable(_with_boundary(record)),
        "tokens": [_printable(token) for token in record.tokens],
        "marked": marked,
        "boundary": record.boundary,
        "layers": layers,
        "heads": heads,
        "clean": _base64(np.rint(record.clean.clip(0, 1) * STEPS)),
        "adversarial": _base64(np.rint(record.adversarial.clip(0, 1) * STEPS)),
        "removed": _base64(~record.kept),
        "predicted": record.predicted,
        "classes": len(names),
        "predictions": [_likeliest(row, names) for row in rows],
    }


def _likeliest(row: np.ndarray, names: Sequence[str]) -> list[tuple[str, float, float]]:
    """Name, clean, adversarial of up to CLASSES entries of a prediction (C, 2), in the order of classes."""
    chosen = sorted(np.argsort(-row.max(-1), kind="stable")[:CLASSES])
    return [(_printable(names[k]), *row[k].astype(float).round(4).tolist()) for k in chosen]


def _with_boundary(record: AttentionRecord) -> str:
    if record.boundary is None:
        return record.text
    start = record.spans[record.boundary][0]
    return f"{record.text[:start].rstrip()} \u2016 {record.text[start:]}"


def _base64(array: np.ndarray) -> str:
    # Level 6 takes a fifteenth of the time of level 9 on maps of 512 tokens, for 2 % more bytes.
    return base64.b64encode(zlib.compress(array.astype(np.uint8).tobytes(), 6)).decode("ascii")


def _printable(text: str) -> str:
    """`text` without what an SVG file must not hold; line breaks become spaces, as in any web page."""
    return re.sub("[\0-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", re.sub(r"[\t\r\n]", " ", text))
