"""What a run leaves behind to be compared with: the digest of its sources and its key numbers."""

import json

import pytest
from tiny_notebook import write_notebook

from asa_classroom import notebooks, stored
from asa_classroom.numbers import moved
from asa_classroom.stored import NotebookError


def test_a_run_leaves_the_digest_of_the_sources(tmp_path):
    path = write_notebook(tmp_path / "in" / "a.ipynb", "steps + 1")
    notebooks.run_notebook(path, tmp_path / "out" / "a.ipynb", write_back=True)
    notebook = stored.read_notebook(path)
    digests = [notebook.metadata["asa_mini"]["sources_sha256"]]
    for field, value in {"outputs": [], "source": "more", "id": "other", "cell_type": "raw"}.items():
        notebook.cells[2][field] = value
        digests.append(stored.sources_digest(notebook))
    notebook.cells.reverse()
    digests.append(stored.sources_digest(notebook))
    assert digests[0] == digests[1] and len(set(digests)) == 5


PUBLISH = "from asa_classroom.numbers import publish_numbers\npublish_numbers(0.1, half=steps / 2, zero=0)"


def test_key_numbers_are_stored_and_compared(tmp_path):
    """Only a run with the default parameters is held to them, and a failure names what moved."""
    path, output = write_notebook(tmp_path / "in" / "a.ipynb", PUBLISH), tmp_path / "out" / "a.ipynb"
    notebooks.run_notebook(path, output, write_back=True)  # nothing was stored before
    notebooks.run_notebook(path, output)
    assert json.loads(output.with_suffix(".json").read_text("utf-8"))["numbers"] == {
        "half": {"value": 1.5, "tolerance": 0.1},
        "zero": {"value": 0.0, "tolerance": 0.1},
    }
    stored_text = path.read_text("utf-8")
    path.write_text(stored_text.replace("steps / 2", "steps / 2.1").replace(", zero=0", ""), "utf-8")
    notebooks.run_notebook(path, output, {"steps": 4})
    with pytest.raises(NotebookError, match=r"^a\.ipynb: zero is not published any more; if that is right"):
        notebooks.run_notebook(path, output)
    assert not output.exists() and not output.with_suffix(".json").exists()
    path.write_text(stored_text.replace("steps / 2", "steps / 1.5"), "utf-8")
    with pytest.raises(NotebookError, match=r"half was 1\.5 and is 2 \(tolerance 0\.1\)"):
        notebooks.run_notebook(path, output)


def test_a_number_that_is_none_has_moved():
    stored = {"a": {"value": 1.0, "tolerance": 0.5}}
    assert moved(stored, {"a": {"value": float("nan"), "tolerance": 0.5}}) != []
    assert moved(stored, {"a": {"value": 1.4, "tolerance": 0.5}}) == []
