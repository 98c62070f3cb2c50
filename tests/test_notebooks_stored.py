"""The notebooks as they are stored: complete, run top to bottom, fresh, readable, free of machines' paths.

A check takes a notebook and returns its faults, each with the cell to look at. One sound notebook passes all
checks, and each check is shown to fail on that notebook with one thing damaged.
"""

import ast
import copy
import io
import re
import tokenize
from pathlib import Path

import pytest

from asa_mini.notebooks import read_notebook, sources_digest

nbformat = pytest.importorskip("nbformat", reason="needs the notebooks extra")

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MAX_BYTES = 500_000
MAX_CODE_CELLS = 25
MAX_CELL_LINES = 15
WORDS_PER_LINE = (8, 15)  # of prose, for every line of code
SUMMARY_SENTENCES = 3
MACHINE_PATH = re.compile(r"(?<![\w.:/])(?:/(?:home|root|tmp|work|Users|content|opt|var)/|[A-Z]:\\)")
LITTER = re.compile(r"\r|\d ?(?:it/s|s/it)\b|\w*Warning\b")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def code_cells(notebook):
    """Yield (name, cell) of the code cells; the name is what a message says of a cell."""
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type == "code":
            yield f"cell {number} ({cell.id})", cell


def prose(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def code_lines(cell):
    return sum(bool(line.strip()) for line in cell.source.splitlines())


def output_texts(cell):
    """Yield every text in the outputs of `cell`, but no encoded image: any letters can occur in those."""
    for output in cell.outputs:
        yield output.get("text", "")
        yield from output.get("traceback", [])
        data = output.get("data", {})
        yield from (str(value) for kind, value in data.items() if not kind.startswith("image/"))


def parameters_without_comment(notebook):
    """Every assignment has a comment, on its own lines or alone on the line above."""
    for name, cell in code_cells(notebook):
        if "parameters" not in cell.metadata.get("tags", []):
            continue
        lines = cell.source.splitlines()
        tokens = list(tokenize.generate_tokens(io.StringIO(cell.source).readline))
        commented = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
        alone = {number for number in commented if lines[number - 1].lstrip().startswith("#")}
        for line in ast.parse(cell.source).body:
            own = set(range(line.lineno, line.end_lineno + 1))
            if not commented & own and line.lineno - 1 not in alone:
                yield f"{name}: {ast.unparse(line)} has no comment"


def not_run_in_order(notebook):
    cells = [(name, cell) for name, cell in code_cells(notebook) if cell.source.strip()]
    for expected, (name, cell) in enumerate(cells, start=1):
        if cell.execution_count != expected:
            yield f"{name} was run as number {cell.execution_count}, not {expected}"
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"{name} ended with {output.ename}"
    if not any(cell.outputs for _, cell in cells):
        yield "no cell has an output"


def edited_since_its_run(notebook):
    if notebook.metadata.get("asa_mini", {}).get("sources_sha256") != sources_digest(notebook):
        yield "its cells were edited after its outputs were made, or it was run by other means"


def litter_in_outputs(notebook):
    for name, cell in code_cells(notebook):
        if any(output.get("name") == "stderr" for output in cell.outputs):
            yield f"{name} wrote to stderr"
        for text in output_texts(cell):
            for pattern, what in ((LITTER, "litter"), (MACHINE_PATH, "a path of one machine")):
                if found := pattern.search(text):
                    yield f"{name} shows {what}: {found.group()!r}"


def figures_without_alt(notebook):
    for name, cell in code_cells(notebook):
        for output in cell.outputs:
            for kind in output.get("data", {}):
                if kind.startswith("image/") and not output.metadata.get(kind, {}).get("alt", "").strip():
                    yield f"{name} shows a figure without alt text: use plots.show_figure"


def runner_metadata(notebook):
    """What papermill leaves: it would make a change of every run."""
    if "papermill" in notebook.metadata:
        yield "the notebook has metadata of papermill"
    for number, cell in enumerate(notebook.cells, start=1):
        if {"papermill", "execution"} & set(cell.metadata):
            yield f"cell {number} has metadata of its run"
        if "injected-parameters" in cell.metadata.get("tags", []):
            yield f"cell {number} was injected"


def hard_to_read(notebook):
    """Short cells, not too many of them, and as much prose as code needs."""
    cells = dict(code_cells(notebook))
    for name, cell in cells.items():
        if code_lines(cell) > MAX_CELL_LINES:
            yield f"{name} has {code_lines(cell)} lines of code, at most {MAX_CELL_LINES}"
    if len(cells) > MAX_CODE_CELLS:
        yield f"{len(cells)} code cells, at most {MAX_CODE_CELLS}"
    words = sum(any(map(str.isalpha, word)) for text in prose(notebook) for word in text.split())
    ratio, (low, high) = words / sum(map(code_lines, cells.values())), WORDS_PER_LINE
    if not low <= ratio <= high:
        yield f"all cells together: {ratio:.1f} words of prose per line of code, not {low} to {high}"


def missing_parts(notebook):
    for part in ("# ", "**Goal.**", "**Prerequisites.**", "**Runs in**"):
        if part not in notebook.cells[0].source:
            yield f"cell 1 has no {part!r}"
    text = "\n".join(prose(notebook))
    headings = re.findall(r"^## (.+)$", text, flags=re.M)[-3:]
    if headings != ["What you learned", "Try it", "Where to look next"]:
        yield f"the end: What you learned, Try it, Where to look next are missing; it has {headings}"
        return
    summary = text.split("\n## What you learned\n")[1].split("\n## ")[0]
    summary = re.sub(r"`[^`]*`|\$[^$]*\$", "X", summary)  # a full stop in code ends no sentence
    sentences = len(re.findall(r"[.!?](?=\s+[A-Z]|\s*$)", summary))
    if sentences != SUMMARY_SENTENCES:
        yield f"the end: What you learned has {sentences} sentences, not {SUMMARY_SENTENCES}"


def dead_links(notebook):
    for number, cell in enumerate(notebook.cells, start=1):
        for target in LINK.findall(cell.source) if cell.cell_type == "markdown" else ():
            if re.match(r"[a-z]+:|#", target):
                continue  # on the web, or within the page
            file = (FOLDER / target.split("#")[0]).resolve()
            if not (file.exists() and file.is_relative_to(FOLDER.parent)):
                yield f"cell {number} links to {target}, which is not in the repository"


CHECKS = [
    parameters_without_comment,
    not_run_in_order,
    edited_since_its_run,
    litter_in_outputs,
    figures_without_alt,
    runner_metadata,
    hard_to_read,
    missing_parts,
    dead_links,
]


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_notebook(path, check):
    faults = list(check(read_notebook(path)))  # reading checks the kernel and the parameters cell, too
    remedy = f"once it is mended, run: python -m asa_mini notebooks notebooks/{path.name} --in-place"
    assert not faults, "\n".join([path.name, *faults, remedy])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_small(path):
    assert path.stat().st_size <= MAX_BYTES


def sound_notebook():
    """A notebook in which no check finds a fault: cells 1 and 4 are prose."""
    v4 = nbformat.v4
    first = "# 01 · A title\n\n**Goal.** One.\n\n**Prerequisites.** None.\n\n**Runs in** about 1 s."
    ends = "## What you learned\n\nOne, see `a. B`. Two in $x. Y$ and so\non. Is this three?\n\n"
    ends += "## Try it\n\n1. One. Two.\n\n## Where to look next\n\n[Code](../asa_mini/plots.py#L1), "
    ends += "[web](https://example.org), [here](#top)."
    figure = v4.new_output("display_data", {"image/png": "aaaa"}, metadata={"image/png": {"alt": "A line."}})
    printed = v4.new_output("stream", name="stdout", text="bits/it and 3 items; /data/file\n")
    notebook = v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    notebook.cells = [
        v4.new_markdown_cell(first, id="first"),
        v4.new_code_cell("steps = 3  # how many", metadata={"tags": ["parameters"]}, execution_count=1),
        v4.new_code_cell("draw(steps)\n\nshow()", id="draw", execution_count=2, outputs=[figure, printed]),
        v4.new_markdown_cell(ends, id="last"),
    ]
    return stamped(notebook)


def stamped(notebook):
    notebook.metadata["asa_mini"] = {"sources_sha256": sources_digest(notebook)}
    return notebook


def source(number, old, new):
    """Damage: replace a text in cell `number`."""

    def damage(notebook):
        cell = notebook.cells[number - 1]
        assert old in cell.source
        cell.source = cell.source.replace(old, new)

    return damage


def printed(name="stdout", text=""):
    """Damage: cell 3 has this output, too."""
    return lambda notebook: notebook.cells[2].outputs.append(
        nbformat.v4.new_output("stream", name=name, text=text)
    )


def change(**changes):
    """Damage: set these fields of cell 3."""
    return lambda notebook: notebook.cells[2].update(copy.deepcopy(changes))


def without_alt(notebook):
    notebook.cells[2].outputs[0].metadata["image/png"]["alt"] = " "


def many_cells(notebook):
    notebook.cells += [nbformat.v4.new_code_cell("") for _ in range(24)]


ERROR = nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])
DAMAGES = [
    (
        parameters_without_comment,
        source(2, "# how", "\nb = 2 # how"),
        r"cell 2 \(.*\): steps = 3 has no comm",
    ),
    (not_run_in_order, change(execution_count=3), r"cell 3 \(draw\) was run as number 3, not 2"),
    (not_run_in_order, change(execution_count=None), r"cell 3 \(draw\) was run as number None, not 2"),
    (not_run_in_order, change(outputs=[]), "no cell has an output"),
    (not_run_in_order, change(outputs=[ERROR]), r"cell 3 \(draw\) ended with ValueError"),
    (edited_since_its_run, source(3, "draw", "draw_all"), "edited after its outputs were made"),
    (edited_since_its_run, source(1, "One.", "Two."), "edited after its outputs were made"),
    (edited_since_its_run, lambda notebook: notebook.metadata.pop("asa_mini"), "edited after"),
    (litter_in_outputs, printed("stderr", "note"), r"cell 3 \(draw\) wrote to stderr"),
    (litter_in_outputs, printed(text="50%\r100%"), r"cell 3 \(draw\) shows litter: '\\r'"),
    (litter_in_outputs, printed(text="[00:01<00:02, 12.5it/s]"), "shows litter: '5it/s'"),
    (litter_in_outputs, printed(text="a.py:3: UserWarning: no"), "shows litter: 'UserWarning'"),
    (litter_in_outputs, printed(text="in /home/me/x"), "shows a path of one machine: '/home/'"),
    (figures_without_alt, without_alt, r"cell 3 \(draw\) shows a figure without alt text"),
    (runner_metadata, lambda notebook: notebook.metadata.update(papermill={}), "metadata of papermill"),
    (runner_metadata, change(metadata={"execution": {}}), "cell 3 has metadata of its run"),
    (runner_metadata, change(metadata={"tags": ["injected-parameters"]}), "cell 3 was injected"),
    (hard_to_read, change(source="a\n" * 16), r"cell 3 \(draw\) has 16 lines of code, at most 15"),
    (hard_to_read, change(source="a\n" * 4), r"7\.\d words of prose per line of code"),
    (hard_to_read, change(source="a"), r"\d\d\.\d words of prose per line of code"),
    (hard_to_read, many_cells, "26 code cells, at most 25"),
    (missing_parts, source(1, "**Prerequisites.**", "You need"), r"cell 1 has no '\*\*Prerequisites"),
    (missing_parts, source(4, "## Try it", "### Try it"), "Where to look next are missing"),
    (missing_parts, source(4, "on. Is", "on; is"), "What you learned has 2 sentences, not 3"),
    (missing_parts, source(4, "One, see", "One. See"), "What you learned has 4 sentences, not 3"),
    (dead_links, source(4, "plots.py", "plot.py"), r"cell 4 links to \.\./asa_mini/plot\.py#L1"),
    (dead_links, source(4, "../asa_mini/plots.py", "/usr"), "cell 4 links to /usr#L1, which is not in"),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_check_passes_a_sound_notebook(check):
    assert list(check(sound_notebook())) == []


@pytest.mark.parametrize(("check", "damage", "message"), DAMAGES)
def test_a_check_can_fail(check, damage, message):
    notebook = sound_notebook()
    damage(notebook)
    faults = list(check(notebook))
    assert re.search(message, "\n".join(faults)), faults


def test_every_check_can_fail():
    assert {check for check, _, _ in DAMAGES} == set(CHECKS)


def test_a_comment_may_stand_above_a_parameter():
    notebook = sound_notebook()
    notebook.cells[1].source = "a = 1  # one\n# three\nc = [\n    3,\n]\nd = [  # four\n    4,\n]"
    assert list(parameters_without_comment(notebook)) == []
