"""Sphinx configuration of the static site (`make site`): README, executed notebooks, module reference.

The source folder is the repository itself, so links between its files keep working. No cell is run: the
stored outputs are shown. No page needs another host, for which equations are converted to MathML here.
"""

import ast
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from asa_classroom.pages import mathml  # noqa: E402
from asa_classroom.stored import NotebookError  # noqa: E402

project = author = html_title = "asa_mini"
root_doc = "README"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
# A Python or JSON file is a page too, see `page_source`; a link to it then leads there.
source_suffix = {
    ".md": "myst-nb",
    ".ipynb": "myst-nb",
    ".py": "restructuredtext",
    ".json": "restructuredtext",
}
LESSONS = [ROOT / "README.md", *(ROOT / "notebooks").glob("[0-9]*.ipynb")]
include_patterns = [
    "README.md",
    "notebooks/[0-9]*.ipynb",
    "asa_mini/**.py",
    "site/files.md",
    "data/README.md",
    "results/*.py",
    "results/*.json",
    "CONTRIBUTING.md",
    *{test for path in LESSONS for test in re.findall(r"tests/\w+\.py", path.read_text("utf-8"))},
    "tests/fixtures/README.md",
]
exclude_patterns = ["asa_mini/**/_[!_]*.py", "asa_mini/_[!_]*.py", "asa_mini/__main__.py"]

nb_execution_mode = "off"
suppress_warnings = ["mystnb.unknown_mime_type"]  # of key numbers: their text is shown
nb_merge_streams = True
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath"]
html_math_renderer = "mathml"

highlight_language = "none"  # of formulas in docstrings and of shell commands; the other blocks name theirs
default_role = "py:obj"  # `name` in a docstring is code, and a link where there is such a name
add_module_names = False
python_maximum_signature_line_length = 90
autodoc_default_options = {"members": True, "member-order": "bysource", "ignore-module-all": True}
autodoc_inherit_docstrings = False  # those of torch are not ours to reformat
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_extra_path = ["index.html"]
html_show_copyright = False
html_use_index = html_domain_indices = False
html_copy_source = html_show_sourcelink = False
html_show_search_summary = False  # it fetches pages, which browsers forbid to a page opened from a file
pygments_style, pygments_dark_style = "default", "github-dark"

HAS_TRITON = importlib.util.find_spec("triton") is not None
autodoc_mock_imports = [] if HAS_TRITON else ["triton"]

NAVIGATION = """
```{toctree}
:hidden:
:glob:
:caption: Notebooks
notebooks/*
```
```{toctree}
:hidden:
:caption: Modules and files
Module reference <asa_mini/__init__>
site/files
CONTRIBUTING
```
"""
PAGES_OF_FOLDERS = {
    "results": "site/files",
    "notebooks/exercises": "site/files",
    "asa_classroom": "site/files",
    "asa_mini": "asa_mini/__init__",
}


def page_source(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace what Sphinx read: a module by its reference, any other code by its text; add the navigation."""
    path = Path(app.env.doc2path(docname))
    if docname == root_doc:
        source[0] += NAVIGATION
    elif docname == "site/files":
        exercises = sorted((ROOT / "notebooks" / "exercises").glob("*.ipynb"))
        links = [f"- [{path.stem}](/{path.relative_to(ROOT).as_posix()})" for path in exercises]
        source[0] = source[0].replace("EXERCISES", "\n".join(links))
    elif docname.startswith("asa_mini/"):
        source[0] = module_page(docname)
    elif path.suffix in (".py", ".json"):
        language = "python" if path.suffix == ".py" else "none"
        text = f".. literalinclude:: {path.name}\n   :language: {language}\n"
        source[0] = f":nosearch:\n\n{heading(docname + path.suffix)}\n{text}"


def heading(text: str) -> str:
    return f"``{text}``\n{'=' * (len(text) + 4)}\n"


def module_page(docname: str) -> str:
    """The reference of a module; for a package, also its modules, in the order its docstring has."""
    name = docname.removesuffix("/__init__").replace("/", ".")
    page = f"{heading(name)}\n.. automodule:: {name}\n"
    if docname.endswith("/__init__"):
        folder = (ROOT / docname).parent
        modules = {path.stem: path.stem for path in folder.glob("[!_]*.py")}
        modules |= {path.parent.name: f"{path.parent.name}/__init__" for path in folder.glob("*/__init__.py")}
        words = re.findall(r"\w+", ast.get_docstring(ast.parse((ROOT / f"{docname}.py").read_text("utf-8"))))
        order = dict.fromkeys([word for word in words if word in modules] + sorted(modules))
        page += "\n.. toctree::\n   :maxdepth: 1\n\n" + "".join(
            f"   {module} <{modules[module]}>\n" for module in order
        )
    return page


def mend_links(app: Sphinx, doctree: nodes.document) -> None:
    """Lead links to a folder to the page about it, and to an exercise to its file."""
    for link in list(doctree.findall(addnodes.pending_xref)):
        place = link["reftarget"]
        if link["reftype"] != "myst" or place in app.env.found_docs:
            continue
        if link.get("refdomain") == "doc":  # a file that could have a page, and has none
            if place.startswith("notebooks/exercises/"):
                target = {"reftarget": f"/{place}.ipynb", "refdoc": app.env.docname, "refexplicit": True}
                options = target | {"refdomain": None, "reftype": "myst"}
                link.replace_self(addnodes.download_reference("", "", *link.children, **options))
            else:
                link.replace_self(link.children)  # solutions and the instructors' guide are not given away
            continue
        folder = app.env.relfn2path(place, app.env.docname)[0]
        for page in (f"{folder}/README", f"{folder}/__init__", PAGES_OF_FOLDERS.get(folder)):
            if page in app.env.found_docs:
                link["refdomain"], link["reftarget"], link["reftargetid"] = "doc", page, None


def describe_figures(app: Sphinx, doctree: nodes.document) -> None:
    """Give every figure of a notebook the description that is stored with it, which myst-nb leaves out."""
    path = Path(app.env.doc2path(app.env.docname))
    if path.suffix != ".ipynb":
        return
    cells = json.loads(path.read_text("utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    texts = [
        output["metadata"].get("image/png", {}).get("alt")
        for output in outputs
        if "image/png" in output.get("data", {})
    ]
    shown = [node for node in doctree.findall(nodes.container) if "cell_output" in node["classes"]]
    figures = [figure for node in shown for figure in node.findall(nodes.image)]
    if len(figures) != len(texts) or not all(texts):
        raise ExtensionError(f"{path.name}: {len(figures)} pictures, but these descriptions: {texts}")
    for figure, text in zip(figures, texts, strict=True):
        figure["alt"] = text


def write_mathml(translator: Any, node: nodes.Element) -> None:
    """Write an equation as MathML, or fail the build."""
    block = isinstance(node, nodes.math_block)
    try:
        markup = mathml(node.astext(), block)
    except NotebookError as error:
        raise ExtensionError(f"{translator.docnames[0]}: {error}") from error
    translator.body.append(f'<div class="equation">{markup}</div>' if block else markup)
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    if HAS_TRITON:
        import triton

        # A compiled kernel has no signature to show; with options, jit is called before it has a function.
        triton.jit = lambda function=None, **options: function or (lambda kernel: kernel)
    app.connect("source-read", page_source)
    app.connect("doctree-read", mend_links, priority=100)  # before Sphinx collects what to download
    app.connect("doctree-read", describe_figures)
    app.add_html_math_renderer("mathml", (write_mathml, None), (write_mathml, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
