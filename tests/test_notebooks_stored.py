"""The notebooks as they are stored: complete, run top to bottom, small, and free of any machine's paths."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

from asa_mini.notebooks import read_notebook

pytest.importorskip("nbformat", reason="needs the notebooks extra")

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MAX_CELL_LINES = 20
MAX_BYTES = 400_000
MACHINE_PATH = re.compile(r"(?<![\w.:/])(?:/(?:home|root|tmp|work|Users|content|opt|var)/|[A-Z]:\\)")


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def output_texts(cell):
    """Yield every text in the outputs of `cell`, but no encoded image: any letters can occur in those."""
    for output in cell.outputs:
        yield output.get("text", "")
        yield from output.get("traceback", [])
        data = output.get("data", {})
        yield from (str(value) for kind, value in data.items() if not kind.startswith("image/"))


def uncommented(source):
    """Return the names whose assignment has no comment, neither on its own lines nor on the line above."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    commented = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    alone = {number for number in commented if source.splitlines()[number - 1].lstrip().startswith("#")}
    return [
        ast.unparse(line)
        for line in ast.parse(source).body
        if not commented & set(range(line.lineno, line.end_lineno + 1)) and line.lineno - 1 not in alone
    ]


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_parameters_and_kernel(path):
    notebook = read_notebook(path)  # this checks the kernel and the tag
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    assert cell.source.strip() and uncommented(cell.source) == []


def test_was_run_from_top_to_bottom(path):
    cells = [cell for cell in code_cells(read_notebook(path)) if cell.source.strip()]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)
    errors = [output.evalue for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert errors == []


def test_is_small(path):
    longest = max(len(cell.source.splitlines()) for cell in code_cells(read_notebook(path)))
    assert longest <= MAX_CELL_LINES
    assert path.stat().st_size <= MAX_BYTES


def test_outputs_name_no_machine(path):
    texts = [text for cell in code_cells(read_notebook(path)) for text in output_texts(cell)]
    assert [match.group() for text in texts if (match := MACHINE_PATH.search(text))] == []


def test_leaves_no_runner_metadata(path):
    notebook = read_notebook(path)
    assert "papermill" not in notebook.metadata
    for cell in notebook.cells:
        assert not {"papermill", "execution"} & set(cell.metadata)
        assert "injected-parameters" not in cell.metadata.get("tags", [])


def test_the_comment_rule_can_fail():
    source = "a = 1  # one\nb = 2\n# three\nc = [\n    3,\n]\nd = [  # four\n    4,\n]"
    assert uncommented(source) == ["b = 2"]
