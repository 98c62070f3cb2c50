"""The HTML copy of a notebook: readable without a network, equations included."""

import base64
import re

import pytest

pytest.importorskip("nbconvert", reason="needs the notebooks extra")
import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from site_pages import Page

from asa_classroom.notebooks import run_notebook
from asa_classroom.pages import notebook_page
from asa_classroom.stored import NotebookError

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
TEXT = r"""# Where $\mu_{ij} < 0$

$$A = \text{softmax}(\mu)$$

\begin{align} a &= b \\ c &= d \end{align}

It costs `$5` ![a dot](dot.png)"""


def page(tmp_path, *cells):
    (tmp_path / "dot.png").write_bytes(base64.b64decode(PIXEL))
    html = notebook_page(new_notebook(cells=[*cells]), tmp_path / "lesson.ipynb")
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    return Page(tmp_path / "page.html")


def test_equations_are_mathml_and_pictures_are_inside(tmp_path):
    output = new_output("display_data", data={"text/markdown": "so $x^2$"})
    read = page(tmp_path, new_markdown_cell(TEXT), new_code_cell("cost = '$6'", outputs=[output]))
    html = read.path.read_text(encoding="utf-8")
    assert html.count("<math") == 4 and read.equations == 2 and read.errors == []
    assert not any(tex in html for tex in ("$$", r"\mu", r"\begin", "x^2"))
    assert "<code>$5</code>" in html and "$6" in html
    assert read.texts == ["a dot"] and all(target.startswith("data:") for target in read.resources)


def test_an_endless_line_is_cut_and_says_so(tmp_path):
    """Uncut, a line of 300,000 characters takes longer than everything else in a lesson."""
    line = "x" * 300_000
    outputs = [
        new_output("stream", text=line),
        new_output("execute_result", data={"text/plain": line}),
        new_output("error", ename="E", evalue="", traceback=[line]),
    ]
    cell = new_code_cell("1", outputs=outputs)
    html = page(tmp_path, cell).path.read_text("utf-8")
    assert html.count("(298000 characters more)") == 3 and "x" * 2001 not in html
    assert cell.outputs[0].text == line  # the notebook itself keeps everything


def test_the_set_up_is_left_out(tmp_path):
    cells = new_code_cell("set_up = 1", metadata={"tags": ["remove-cell"]}), new_code_cell("lesson = 1")
    assert "set_up" not in page(tmp_path, *cells).prose + page(tmp_path, *cells).path.read_text("utf-8")
    assert "lesson" in page(tmp_path, *cells).path.read_text("utf-8")


def test_an_equation_that_cannot_be_converted_is_told_before_the_run(tmp_path):
    parameters = new_code_cell("n = 1  # of nothing", metadata={"tags": ["parameters"]})
    cells = [parameters, new_markdown_cell(r"so $\frac{1$"), new_code_cell("open('it_ran', 'w')")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), tmp_path / "lesson.ipynb")
    with pytest.raises(NotebookError) as error:
        run_notebook(tmp_path / "lesson.ipynb", tmp_path / "out" / "lesson.ipynb")
    assert re.fullmatch(
        r"lesson\.ipynb: cannot convert the equation '\\\\frac\{1': Expected closing token [\x20-\x7e]+",
        str(error.value),
    )
    assert [path.name for path in tmp_path.iterdir()] == ["lesson.ipynb"]


def test_it_looks_for_no_other_host(browser, tmp_path):
    context = browser.new_context(offline=True)
    tab, asked = context.new_page(), []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: asked.append(message.text))
    tab.on("pageerror", lambda error: asked.append(str(error)))
    path = page(tmp_path, new_markdown_cell(TEXT)).path
    tab.goto(path.as_uri())
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    assert tab.locator("math").nth(1).bounding_box()["height"] > 10
    context.close()
