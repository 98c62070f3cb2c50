"""What may be wrong with a stored notebook: a check yields its faults, with the cell to look at."""

import ast
import io
import re
import tokenize
from pathlib import Path

from asa_classroom.publishing import TAG
from asa_classroom.stored import sources_digest

FOLDER = Path(__file__).parents[1] / "notebooks"
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
    cells = {name: cell for name, cell in code_cells(notebook) if TAG not in cell.metadata.get("tags", [])}
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


def dead_links(notebook, folder=FOLDER):
    for number, cell in enumerate(notebook.cells, start=1):
        text = re.sub("`[^`]*`", "", cell.source) if cell.cell_type == "markdown" else ""
        for target in LINK.findall(text):
            if re.match(r"[a-z]+:|#", target):
                continue  # on the web, or within the page
            file = (folder / target.split("#")[0]).resolve()
            if not (file.exists() and file.is_relative_to(FOLDER.parent)):
                yield f"cell {number} links to {target}, which is not in the repository"


OF_ALL = [  # lessons and solutions
    parameters_without_comment,
    not_run_in_order,
    edited_since_its_run,
    litter_in_outputs,
    figures_without_alt,
    runner_metadata,
    dead_links,
]
OF_LESSONS = [hard_to_read, missing_parts]
