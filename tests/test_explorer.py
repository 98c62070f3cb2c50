"""The attention explorer: what is in its page, what it refuses, and how it gets into files and notebooks."""

import base64
import html
import re
import zlib
from dataclasses import replace

import nbformat
import numpy as np
import pytest
from explorer_records import MARKED, RECORDS, data_of, record, shown
from nbconvert import HTMLExporter

from asa_mini.errors import InputError
from asa_mini.look import explorer


def array_of(text: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)


def test_page_names_no_other_file_and_no_address():
    page = explorer.explorer_html(RECORDS[:1], title="T")
    assert set(re.findall(r"\w+://[^\s\"'<]*", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<link|@import|url\(|<script[^>]+src|import\s*\(|innerHTML|\{\{", page)


def test_texts_come_back_and_cannot_leave_the_data():
    page = explorer.explorer_html(RECORDS, MARKED, title="<b>&\ud800\x00")
    inside = page.partition('id="data">')[2].partition("</script>")[0]
    assert not set(inside) & set("<>&\u2028\u2029")
    data = data_of(page)
    assert data["title"] == "<b>&\ufffd\ufffd"
    assert [x["text"] for x in data["records"]] == [x.text for x in RECORDS]
    assert [x["tokens"] for x in data["records"]] == [x.tokens for x in RECORDS]
    assert [x["marked"] for x in data["records"]] == MARKED


def test_weights_keep_the_stated_precision_and_masks_are_exact():
    for given, stored in zip(RECORDS, data_of(explorer.explorer_html(RECORDS))["records"], strict=True):
        for side in ("clean", "adversarial"):
            weights = array_of(stored[side]).reshape(given.clean.shape) / 255
            assert np.abs(weights - getattr(given, side)).max() <= 1 / 510 + 1e-9
        np.testing.assert_array_equal(array_of(stored["removed"]).reshape(given.kept.shape), ~given.kept)
        both = np.stack([given.prediction, given.adversarial_prediction], -1)
        (bars,) = stored["predictions"]
        np.testing.assert_allclose([bar[1:] for bar in bars], both, atol=5e-5)


def test_page_is_small():
    hard = [record(" ".join("abcdefghijklmnop"), layers=6, heads=12, seed=i) for i in range(4)]
    assert len(explorer.explorer_html(hard).encode()) < 225_000


def with_value(name, value):
    array = np.array(getattr(RECORDS[0], name), float)
    array.flat[0] = value
    return replace(RECORDS[0], **{name: array})


@pytest.mark.parametrize(
    ("records", "marked", "message"),
    [
        ([], None, "at least one record"),
        (RECORDS[0], None, "at least one record"),
        ("a film", None, "at least one record"),
        (RECORDS[:1], [[0], [1]], "2 entries for 1 records"),
        (RECORDS[:1], [[5]], "token indices, 0 to 4"),
        (RECORDS[:1], [[-1]], "token indices, 0 to 4"),
        (RECORDS[:1], ["it"], "give token indices"),
        ([with_value("clean", np.nan)], None, "record 0 holds NaN"),
        ([with_value("adversarial", 1.5)], None, "record 0 holds NaN or a number outside"),
        ([with_value("adversarial_prediction", np.nan)], None, "record 0 holds NaN"),
        ([replace(RECORDS[0], tokens=["it"])], None, r"its 1 tokens, .* shapes are \(\(2, 3, 5, 5\)"),
        ([replace(RECORDS[0], kept=RECORDS[0].kept[:1])], None, r"`kept` \(N, L, L\), but .*\(1, 5, 5\)"),
    ],
)
def test_refuses(records, marked, message):
    with pytest.raises(InputError, match=message):
        explorer.explorer_html(records, marked)


def test_a_failed_save_keeps_the_old_page(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("old", encoding="utf-8")

    def half_written(path, content, encoding):
        path.write_bytes(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="disk full"):
        patched.setattr(explorer.Path, "write_text", half_written)
        explorer.save_explorer(RECORDS, path)
    assert path.read_text(encoding="utf-8") == "old" and list(tmp_path.iterdir()) == [path]
    explorer.save_explorer(RECORDS, path, marked=MARKED)
    assert path.read_text(encoding="utf-8") == explorer.explorer_html(RECORDS, MARKED)
    assert list(tmp_path.iterdir()) == [path]
    explorer.save_explorer(RECORDS, tmp_path / "new" / "folder" / "page.html")  # made on the way
    assert (tmp_path / "new" / "folder" / "page.html").is_file()


def frame_in(text: str) -> dict[str, str]:
    """The attributes of the only iframe."""
    (tag,) = re.findall(r"<iframe ([^>]*)>", text)
    return {name: html.unescape(value) for name, value in re.findall(r'(\w+)="([^"]*)"', tag)}


def test_frame_holds_the_page_and_survives_nbconvert(monkeypatch, recwarn):
    output = shown(monkeypatch, RECORDS, marked=MARKED, height=500)
    frame = frame_in(output.data)
    assert frame["srcdoc"] == explorer.explorer_html(RECORDS, MARKED)
    assert "height: 500px" in frame["style"] and not recwarn.list
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell("show()")]
    notebook.cells[0].outputs = [nbformat.v4.new_output("display_data", {"text/html": output.data})]
    assert frame_in(HTMLExporter(template_name="basic").from_notebook_node(notebook)[0]) == frame
