"""An executed notebook as one HTML file that needs no network: pictures inside, equations as MathML.

nbconvert's own pages fetch MathJax, require.js and mermaid from other hosts; without them, a reader in a room
without a network meets equations as LaTeX. `make site` converts its equations by the same function.
"""

import copy
import re
from pathlib import Path
from typing import Any

from jinja2 import pass_context
from math_core import LatexError, LatexToMathML
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors import TagRemovePreprocessor

from asa_classroom.stored import NotebookError

# nbconvert's search for colour codes takes time that grows with the square of a line's length: 300,000
# characters took a minute and a half.
LONGEST_LINE = 2_000  # characters of an output's line that a page shows
LONGEST_TEXT = 200_000  # characters of an output
TEMPLATE = """\
{% extends 'lab/index.html.j2' %}
{% block html_head_js %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}"""


def mathml(tex: str, block: bool) -> str:
    """An equation in LaTeX, without its dollars, as MathML; a `block` stands in a line of its own.

    Raises:
        NotebookError: math-core cannot convert it.
    """
    one_line = re.sub(r"\\\n", r"\\ ", tex)  # a control space at a line's end
    try:
        return LatexToMathML().convert_with_local_state(one_line, displaystyle=block)
    except LatexError as error:
        text = re.sub(r"\x1b\[[\d;]*m", "", str(error))  # a line, then a drawing, in colours
        reason = text.strip().splitlines()[0].removeprefix("Error: ")
        raise NotebookError(f"cannot convert the equation {tex!r}: {reason}") from None


class _Renderer(IPythonRenderer):
    def block_math(self, body: str) -> str:
        return f'<div style="overflow-x: auto">{mathml(body, block=True)}</div>'

    def inline_math(self, body: str) -> str:
        return mathml(body, block=False)

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(rf"\begin{{{name}}}{body}\end{{{name}}}")


class _Exporter(HTMLExporter):
    @pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        attachments = context.get("cell", {}).get("attachments", {})
        folder = context.get("resources", {}).get("metadata", {}).get("path", "")
        renderer = _Renderer(escape=False, attachments=attachments, embed_images=True, path=folder)
        return MarkdownWithMath(renderer=renderer).render(source)


def shortened(text: str) -> str:
    """`text` without what nobody reads; in its place stands how many characters are missing."""

    def cut(part: str, limit: int) -> str:
        return part if len(part) <= limit else f"{part[:limit]} ... ({len(part) - limit} characters more)"

    return cut("\n".join(cut(line, LONGEST_LINE) for line in text.split("\n")), LONGEST_TEXT)


def notebook_page(notebook: Any, path: Path) -> str:
    """The HTML file of an nbformat node: stored outputs too, cells tagged `remove-cell` not.

    The pictures that its Markdown names lie beside its file `path`.

    Raises:
        NotebookError: an equation cannot be converted; the message names file and equation.
    """
    notebook = copy.deepcopy(notebook)
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        for holder, name in ((output, "text"), (output.get("data", {}), "text/plain")):
            if name in holder:
                holder[name] = shortened(holder[name])
        if "traceback" in output:
            output["traceback"] = [*map(shortened, output["traceback"])]
    exporter = _Exporter(embed_images=True, raw_template=TEMPLATE)
    exporter.register_preprocessor(TagRemovePreprocessor(remove_cell_tags={"remove-cell"}), enabled=True)
    try:
        page, _ = exporter.from_notebook_node(notebook, {"metadata": {"path": str(path.parent)}})
    except NotebookError as error:
        raise NotebookError(f"{path.name}: {error}") from error
    return page
