"""The strict notebook runner: what papermill lets pass in silence fails here, in one readable message."""

import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from asa_classroom import cli, notebooks, stored
from asa_classroom.numbers import moved
from asa_mini.errors import InputError, NotebookError

nbformat = pytest.importorskip("nbformat", reason="needs the notebooks extra")

PARAMETERS = "steps = 3  # how many\nname = 'a'  # text\nrate: float = 0.5  # per step"
SLEEP = "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(600)"


def write_notebook(path, *cells, tags=("parameters",), kernel="python3", last_cell_tags=()):
    """Write a notebook: a parameters cell per entry of `tags`, then `cells`."""
    v4 = nbformat.v4
    notebook = v4.new_notebook(metadata={"kernelspec": {"name": kernel, "display_name": "Python 3"}})
    notebook.cells = [v4.new_code_cell(PARAMETERS, metadata={"tags": [tag]}) for tag in tags]
    notebook.cells += [v4.new_markdown_cell("text"), *map(v4.new_code_cell, cells)]
    notebook.cells[-1].metadata["tags"] = list(last_cell_tags)
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)
    return path


def command_line(*arguments):
    return cli.main(["notebooks", *map(str, arguments)])


def wait_for_pid(folder, seconds=120):
    """Return the id of the kernel process, once the cell `SLEEP` has written it."""
    deadline = time.monotonic() + seconds
    while not ((folder / "pid").exists() and (folder / "pid").read_text(encoding="utf-8")):
        assert time.monotonic() < deadline, "the kernel never reached its cell"
        time.sleep(0.05)
    return int((folder / "pid").read_text(encoding="utf-8"))


def assert_gone(pid, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail(f"kernel {pid} is still running")


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
        ("1 / 0", (), "ZeroDivisionError: division by zero"),
        ("x = 1 / 0", ("raises-exception",), "ZeroDivisionError: division by zero"),
        ("raise ValueError('one\\ntwo')", (), "ValueError: one two"),
        ("print('never')", ("skip-execution",), "never run (a sys.exit"),
        ("while True: pass", (), "no result after 10 s"),
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
        notebooks.run_notebook(path, output, timeout=10, write_back=True)
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
    notebooks.run_notebook(path, output)  # nothing is stored yet
    notebooks.run_notebook(path, output, write_back=True)
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
    for divisor, fault in {"1.5": "half was 1.5 and is 2 ", "float('inf')": "half was 1.5 and is 0 "}.items():
        path.write_text(stored_text.replace("steps / 2", f"steps / {divisor}"), "utf-8")
        with pytest.raises(NotebookError, match=re.escape(fault + "(tolerance 0.1)")):
            notebooks.run_notebook(path, output)


def test_a_number_that_is_none_has_moved():
    stored = {"a": {"value": 1.0, "tolerance": 0.5}}
    assert moved(stored, {"a": {"value": float("nan"), "tolerance": 0.5}}) != []
    assert moved(stored, {"a": {"value": 1.4, "tolerance": 0.5}}) == []


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


@pytest.mark.parametrize(
    ("layout", "given", "message"),
    [
        ({"tags": ()}, {}, "exactly one cell tagged 'parameters', not 0"),
        ({"tags": ("parameters",) * 2}, {}, "exactly one cell tagged 'parameters', not 2"),
        ({"kernel": "my-env"}, {}, "bad.ipynb asks for the kernel 'my-env'; every"),
        ({}, {"stepz": 1}, "no parameter 'stepz'; it has: steps, name, rate"),
        ({}, {"steps": 1.5}, "'steps' takes int, not 1.5"),
        ({}, {"steps": True}, "'steps' takes int, not True"),
        ({}, {"rate": "fast"}, "'rate' takes float, not 'fast'"),
    ],
)
def test_rules_are_checked_before_anything_runs(layout, given, message, tmp_path):
    write_notebook(tmp_path / "in" / "a.ipynb", "open('ran', 'w')")
    write_notebook(tmp_path / "in" / "bad.ipynb", "pass", **layout)
    if given:  # the first notebook would refuse them just as well
        (tmp_path / "in" / "a.ipynb").unlink()
    with pytest.raises(NotebookError) as caught:
        notebooks.run_notebooks([tmp_path / "in"], tmp_path / "out", parameters=given)
    assert message in str(caught.value)
    assert not (tmp_path / "in" / "ran").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", ["x = f()", "import os", "a, b = 1, 2", "x =", "print(1)", "x: int"])
def test_parameters_must_be_literals(source, tmp_path):
    path = write_notebook(tmp_path / "a.ipynb", "pass")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source = source
    nbformat.write(notebook, path)
    with pytest.raises(NotebookError, match=r"^a\.ipynb: the parameters cell may only hold `name = literal`"):
        stored.read_notebook(path)


@pytest.mark.parametrize("text", ["not json", "{}", '{"cells": 3, "nbformat": 4, "nbformat_minor": 5}', "[]"])
def test_invalid_file(text, tmp_path):
    path = tmp_path / "a.ipynb"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(NotebookError, match=r"a\.ipynb"):
        notebooks.run_notebook(path, tmp_path / "out" / "a.ipynb")


def test_wrong_arguments(tmp_path, capsys):
    path = write_notebook(tmp_path / "in" / "a.ipynb", "pass")
    twin = write_notebook(tmp_path / "twin" / "a.ipynb", "pass")
    (tmp_path / "empty").mkdir()
    for arguments, message in {
        (tmp_path / "nowhere",): "no notebook at",
        (tmp_path / "empty",): "no notebook at",
        (path, "--timeout", 0): "--timeout must be at least 1",
        (path, "--in-place", "-p", "steps", 1): "leave -p out",
        (path, twin): "two notebooks have the same file name",
        (path, "--output", tmp_path / "in"): "would replace a.ipynb itself",
    }.items():
        assert command_line(*arguments) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(InputError, match="default parameters"):
        notebooks.run_notebook(path, tmp_path / "a.ipynb", {"steps": 1}, write_back=True)


def test_missing_extra(tmp_path, capsys, monkeypatch):
    path = write_notebook(tmp_path / "a.ipynb", "pass")
    monkeypatch.setitem(sys.modules, "papermill", None)
    assert command_line(path, "--output", tmp_path / "out") == 2
    assert "this needs papermill: pip install 'asa_mini[classroom]'" in capsys.readouterr().err


def test_parameters_of_the_command_line_are_literals_or_text(monkeypatch):
    calls = []
    monkeypatch.setattr(notebooks, "run_notebooks", lambda *arguments: calls.append(arguments))
    given = {"n": "3", "rates": "[0.1, 1e-3]", "name": "bert-base", "digit": "'1'", "rate": "-1e-5"}
    assert command_line(*[word for pair in given.items() for word in ("-p", *pair)]) == 0
    parameters = {"n": 3, "rates": [0.1, 1e-3], "name": "bert-base", "digit": "1", "rate": -1e-5}
    assert calls == [(["notebooks"], "build/notebooks", 600, parameters, False)]


def test_ctrl_c_in_a_terminal(tmp_path):
    """A process of its own: exit code 130, no half-written file, no kernel left behind."""
    path = write_notebook(tmp_path / "in" / "a.ipynb", SLEEP)
    code = (
        "import signal, sys\nfrom asa_classroom.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it\n"
        "sys.exit(main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "notebooks", str(path), "--output", str(tmp_path / "out")],
        cwd=Path(__file__).parents[1],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    pid = wait_for_pid(path.parent)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err == "asa_mini: interrupted\n"
    assert list((tmp_path / "out").iterdir()) == []
    assert_gone(pid)


def test_termination_keeps_the_earlier_output(tmp_path):
    path = write_notebook(tmp_path / "in" / "a.ipynb", SLEEP)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.ipynb").write_text("of an earlier run", encoding="utf-8")
    pids = []

    def terminate():
        pids.append(wait_for_pid(path.parent))
        os.kill(os.getpid(), signal.SIGTERM)

    killer = threading.Thread(target=terminate)
    killer.start()
    before = signal.getsignal(signal.SIGTERM)
    assert command_line(path, "--output", tmp_path / "out") == 130
    killer.join()
    assert signal.getsignal(signal.SIGTERM) is before
    assert [file.read_text(encoding="utf-8") for file in (tmp_path / "out").iterdir()] == [
        "of an earlier run"
    ]
    assert_gone(pids[0])
