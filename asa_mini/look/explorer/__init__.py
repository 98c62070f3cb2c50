"""The attention explorer: one HTML page, without any network, in which a reader walks through attention maps.

Fifth in the reading order of asa_mini.look. page.html: what the reader does; page.js: numbers and picture.

records = capture(model, tokenizer, texts)      see asa_mini.look.capture
show_explorer(records)                          in a notebook
save_explorer(records, "attention.html")        a file to open, to mail, to hand in
"""

import base64
import html
import json
import re
import zlib
from collections.abc import Sequence
from numbers import Integral
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
    takes less than a byte: some 130 KB for 4 sentences of 16 tokens, 6 layers and 12 heads, several MB for
    512 tokens, and 28 KB for the page itself. Of the lines of all tokens together, a side shows the 5,000
    strongest.

    Args:
        records: what to show; N, H, L and C may differ between them.
        marked: for each record the indices of the tokens to mark, e.g. `record.tokens_of_word(position)` of a
            planted word; None marks nothing.
        title: heading of the page.

    Raises:
        InputError: there are no records, their arrays do not fit together or hold anything but numbers from
            0 to 1, or `marked` has not one list of existing tokens for each record.
    """
    listed = isinstance(records, Sequence) and len(records)
    if not listed or not all(isinstance(record, AttentionRecord) for record in records):
        raise InputError("give a list of at least one record, as `capture` returns it")
    marked = [()] * len(records) if marked is None else marked
    if len(marked) != len(records):
        raise InputError(f"`marked` has {len(marked)} entries for {len(records)} records; give each a list")
    packed = [_pack(i, *pair) for i, pair in enumerate(zip(records, marked, strict=True))]
    data = json.dumps({"title": _printable(title), "steps": STEPS, "records": packed}, ensure_ascii=False)
    page = PAGE.read_text(encoding="utf-8").replace("{{SCRIPT}}", SCRIPT.read_text(encoding="utf-8"))
    return page.replace("{{DATA}}", data.translate(ESCAPES))  # last: no reader's text is searched for a place


def save_explorer(
    records: Sequence[AttentionRecord],
    path: str | Path,
    marked: Sequence[Sequence[int]] | None = None,
    title: str = TITLE,
) -> None:
    """Write the page of `explorer_html` to `path`, and make its folder if there is none.

    A page that is already there is replaced in one go. Raises what `explorer_html` raises.
    """
    page, path = explorer_html(records, marked, title), Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
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


def _pack(number: int, record: AttentionRecord, marked: Sequence[int]) -> dict:
    """What the page reads of a record: JSON values, and arrays as compressed base64, in row-major order."""
    length, shape = len(record.tokens), np.shape(record.clean)
    shapes = shape, np.shape(record.adversarial), np.shape(record.kept)
    if len(shape) != 4 or 0 in shape or shapes != (shape, shape, (shape[0], length, length)):
        raise InputError(
            f"record {number}: for its {length} tokens, `clean` and `adversarial` must be (N, H, L, L) and "
            f"`kept` (N, L, L), but their shapes are {shapes}"
        )
    sides = {"clean": record.clean, "adversarial": record.adversarial}
    predictions = [np.asarray(p, float) for p in (record.probabilities, record.adversarial_probabilities)]
    for values in (*sides.values(), *predictions):
        if not ((values >= -1e-3) & (values <= 1 + 1e-3)).all():  # NaN fails the comparisons too
            raise InputError(f"record {number} holds NaN or a number outside 0 to 1")
    if isinstance(marked, Integral) or not all(isinstance(i, Integral) and 0 <= i < length for i in marked):
        raise InputError(
            f"`marked` of record {number} is {marked!r}; give a list of token indices, 0 to {length - 1}"
        )
    return {
        "text": _printable(record.text),
        "tokens": [_printable(token) for token in record.tokens],
        "marked": [int(i) for i in marked],
        "layers": shape[0],
        "heads": shape[1],
        **{side: _base64(np.rint(np.clip(maps, 0, 1) * STEPS)) for side, maps in sides.items()},
        "removed": _base64(np.logical_not(record.kept)),
        "probabilities": predictions[0].round(4).tolist(),
        "adversarialProbabilities": predictions[1].round(4).tolist(),
    }


def _base64(array: np.ndarray) -> str:
    # Level 6 takes a fifteenth of the time of level 9 on maps of 512 tokens, for 2 % more bytes.
    return base64.b64encode(zlib.compress(array.astype(np.uint8).tobytes(), 6)).decode("ascii")


def _printable(text: str) -> str:
    """`text` without what an SVG file must not hold; line breaks become spaces, as in any web page."""
    return re.sub("[\0-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", re.sub(r"[\t\r\n]", " ", text))
