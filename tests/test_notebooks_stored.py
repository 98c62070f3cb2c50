"""The notebooks as they are stored: complete, run top to bottom, fresh, readable, free of machines' paths.

One sound notebook passes all checks of `notebook_checks`, and each check is shown to fail on that notebook
with one thing damaged.
"""

import copy
import re

import pytest
from notebook_checks import (
    FOLDER,
    OF_ALL,
    OF_LESSONS,
    dead_links,
    edited_since_its_run,
    figures_without_alt,
    hard_to_read,
    litter_in_outputs,
    missing_parts,
    not_run_in_order,
    parameters_without_comment,
    runner_metadata,
)

from asa_classroom.stored import read_notebook, sources_digest

nbformat = pytest.importorskip("nbformat", reason="needs the notebooks extra")

LESSONS = sorted(FOLDER.glob("*.ipynb"))
SOLUTIONS = sorted(FOLDER.glob("solutions/*.ipynb"))
MAX_BYTES = 500_000
CHECKS = OF_ALL + OF_LESSONS


def test_there_are_notebooks():
    assert LESSONS
    assert SOLUTIONS


@pytest.mark.parametrize(
    ("path", "check"),
    [(path, check) for path in LESSONS for check in CHECKS]
    + [(p, check) for p in SOLUTIONS for check in OF_ALL],
    ids=lambda item: getattr(item, "stem", None) or item.__name__,
)
def test_stored_notebook(path, check):
    notebook = read_notebook(path)  # reading checks the kernel and the parameters cell, too
    faults = list(check(notebook, path.parent) if check is dead_links else check(notebook))
    place = path.relative_to(FOLDER.parent)
    remedy = f"once it is mended, run: python -m asa_classroom notebooks {place} --in-place"
    assert not faults, "\n".join([path.name, *faults, remedy])


@pytest.mark.parametrize("path", LESSONS + SOLUTIONS, ids=lambda path: path.stem)
def test_is_small(path):
    assert path.stat().st_size <= MAX_BYTES


def sound_notebook():
    """A notebook in which no check finds a fault: cells 1 and 4 are prose."""
    v4 = nbformat.v4
    first = "# 01 · A title\n\n**Goal.** One.\n\n**Prerequisites.** None.\n\n**Runs in** about 1 s."
    ends = "## What you learned\n\nOne, see `a. B[i](x)`. Two in $x. Y$ and so\non. Is this three?\n\n"
    ends += "## Try it\n\n1. One. Two.\n\n## Where to look next\n\n[Code](../asa_mini/look/plots.py#L1), "
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
    (dead_links, source(4, "plots.py", "plot.py"), r"cell 4 links to \.\./asa_mini/look/plot\.py#L1"),
    (dead_links, source(4, "../asa_mini/look/plots.py", "/usr"), "cell 4 links to /usr#L1, which is not in"),
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
