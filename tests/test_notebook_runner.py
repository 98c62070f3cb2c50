"""The strict notebook runner: what papermill lets pass in silence fails here, in one readable message."""

import importlib.metadata
import json
import re
import sys

import pytest
from tiny_notebook import command_line, nbformat, write_notebook

from asa_classroom import notebooks
from asa_classroom.stored import NotebookError


def test_success_writes_a_clean_notebook_and_html(tmp_path, monkeypatch):
    decoy = tmp_path / "jupyter" / "kernels" / "python3"  # another "python3" that a user has installed
    decoy.mkdir(parents=True)
    spec = {"argv": ["false"], "display_name": "x", "language": "python"}
    (decoy / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("MPLBACKEND", "agg")
    path = write_notebook(
        tmp_path / "in {braces}" / "a.ipynb",
        "import os, sys\nprint(steps, name, rate, os.path.basename(os.getcwd()), sys.executable)",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2]);",
        "print(os.environ['HF_HUB_DISABLE_PROGRESS_BARS'], os.environ['TOKENIZERS_PARALLELISM'])",
    )
    output = tmp_path / "out {braces}" / "a.ipynb"
    output.parent.mkdir()
    (output.parent / "a.failed.ipynb").write_text("of an earlier run", encoding="utf-8")

    seconds = notebooks.run_notebook(path, output, {"steps": 7, "rate": 2}, timeout=60)

    assert 0 < seconds < 60
    assert sorted(file.name for file in output.parent.iterdir()) == ["a.html", "a.ipynb"]
    executed = nbformat.read(output, as_version=4)
    nbformat.validate(executed)
    tags = [cell.metadata.get("tags") for cell in executed.cells]
    assert tags[:2] == [["parameters"], ["injected-parameters"]]
    assert executed.cells[3].outputs[0].text == f"7 a 2 in {{braces}} {sys.executable}\n"
    assert "image/png" in executed.cells[4].outputs[0].data
    assert executed.cells[5].outputs[0].text == "1 false\n"
    text = output.read_text(encoding="utf-8")
    assert "papermill" not in text and "iopub" not in text and "start_time" not in text
    assert "data:image/png;base64" in (output.parent / "a.html").read_text(encoding="utf-8")


OLD_IPYTHON = int(importlib.metadata.version("ipython").split(".")[0]) < 9
needs_ipython_9 = pytest.mark.skipif(OLD_IPYTHON, reason="IPython 8 drops the exit status of x = !command")


@pytest.mark.parametrize(
    ("cell", "tag", "cause"),
    [
        ("!exit 3\n!true\nprint('later')", (), "Command 'exit 3' returned non-zero exit status 3."),
        pytest.param("x = !exit 4", (), "exit status 4", marks=needs_ipython_9),
        ("%%bash\nexit 5", (), "exit status 5"),
        ("x = 1 / 0", ("raises-exception",), "ZeroDivisionError: division by zero"),
        ("raise ValueError('one\\ntwo')", (), "ValueError: one two"),
        ("print('never')", ("skip-execution",), "never run (a sys.exit"),
        ("import time; time.sleep(600)", (), "no result after 8 s"),
        ("import os; os._exit(0)", (), "DeadKernelError: Kernel died"),
    ],
)
def test_failing_cell(cell, tag, cause, tmp_path):
    path = write_notebook(tmp_path / "in" / "a.ipynb", cell, last_cell_tags=tag)
    before = path.read_bytes()
    output = tmp_path / "a.ipynb"
    for stale in ("a.ipynb", "a.html"):
        (tmp_path / stale).write_text("of an earlier run", encoding="utf-8")
    with pytest.raises(NotebookError) as caught:
        notebooks.run_notebook(path, output, timeout=8, write_back=True)
    message = str(caught.value)
    assert cause in message and "\n" not in message
    assert message.startswith(f"a.ipynb, cell 3 ({cell.splitlines()[0]}): ")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.failed.ipynb", "in"]
    assert nbformat.read(tmp_path / "a.failed.ipynb", as_version=4).cells
    assert path.read_bytes() == before


def test_silent_exit_in_the_middle(tmp_path):
    path = write_notebook(tmp_path / "in" / "a.ipynb", "import sys; sys.exit(0)", "print('never')")
    with pytest.raises(NotebookError, match=r"^a\.ipynb, cell 4 \(print\(.*\)\): never run"):
        notebooks.run_notebook(path, tmp_path / "a.ipynb")


def test_cell_numbers_ignore_the_injected_cell(tmp_path):
    path = write_notebook(tmp_path / "in" / "a.ipynb", "assert steps < 5, 'too many'")
    with pytest.raises(NotebookError, match=r"^a\.ipynb, cell 3 \(assert .*\): AssertionError: too many$"):
        notebooks.run_notebook(path, tmp_path / "a.ipynb", {"steps": 9})


def test_write_back_is_stable(tmp_path):
    path = write_notebook(tmp_path / "in" / "a.ipynb", "steps + 1", "", "print('done')")
    (tmp_path / "in" / "other.txt").write_text("kept", encoding="utf-8")
    texts = []
    for _ in range(2):
        assert command_line(path, "--in-place", "--output", tmp_path / "out") == 0
        texts.append(path.read_text(encoding="utf-8"))
    assert texts[0] == texts[1]
    stored = nbformat.reads(texts[0], as_version=4)
    assert [cell.get("execution_count") for cell in stored.cells] == [1, None, 2, None, 3]
    assert stored.cells[2].outputs[0].data["text/plain"] == "4"
    assert [cell.metadata.get("tags") for cell in stored.cells] == [["parameters"], None, None, None, []]
    assert set(stored.metadata) == {"kernelspec", "asa_mini"} and texts[0].endswith("}\n")
    assert sorted(file.name for file in (tmp_path / "in").iterdir()) == ["a.ipynb", "other.txt"]


def test_run_notebooks_stops_at_the_first_failure(tmp_path, capsys):
    for name, cell in {"01": "pass", "02": "1 / 0", "03": "pass"}.items():
        write_notebook(tmp_path / "in" / f"{name}.ipynb", cell)
    assert command_line(tmp_path / "in", "--output", tmp_path / "out") == 2
    out, err = capsys.readouterr()
    assert err == "asa_mini: error: 02.ipynb, cell 3 (1 / 0): ZeroDivisionError: division by zero\n"
    lines = out.splitlines()
    assert re.fullmatch(r"01.ipynb ... ok, \d+\.\d s", lines[0])
    assert lines[1:] == ["02.ipynb ... failed", "03.ipynb not run"]
    written = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert written == ["01.html", "01.ipynb", "02.failed.ipynb"]
