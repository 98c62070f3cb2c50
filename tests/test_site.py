"""The site of `make site`: complete, without a dead link, readable offline, on a phone and in the dark."""

import ast
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from site_pages import Visitor, complaints, read_site

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
MODULES = [path for path in sorted((ROOT / "asa_mini").rglob("*.py")) if path.name != "__main__.py"]
PHONE = {"viewport": {"width": 390, "height": 844}}


@pytest.fixture(scope="module")
def conf():
    pytest.importorskip("myst_nb", reason="needs Sphinx and myst-nb, see the site extra")
    return runpy.run_path(str(ROOT / "site" / "conf.py"))


@pytest.fixture(scope="module")
def site(conf, tmp_path_factory):
    """The folder with the built site, ASA_SITE if that was built just now; a warning fails the build."""
    if built := os.environ.get("ASA_SITE"):
        return Path(built).resolve()
    folder = tmp_path_factory.mktemp("site").resolve()
    options = ["-q", "-W", "--keep-going", "-c", "site", "-d", folder / "trees", ".", folder / "html"]
    run = subprocess.run([sys.executable, "-m", "sphinx", *options], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site):
    return read_site(site)


@pytest.fixture
def visitor(browser, site):
    """Makes visitors of the site; at the end none of them may have noted anything."""
    made = []

    def visitor(**options):
        made.append(Visitor(browser, site, **options))
        return made[-1]

    yield visitor
    for each in made:
        each.context.close()
    assert [note for each in made for note in each.complaints] == []


def cells(path, kind):
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def test_pages_are_whole(pages, site):
    assert complaints(pages, site) == []


def test_the_start_page_leads_to_every_notebook_and_module(pages, site):
    assert pages[site / "index.html"].links == ["README.html"]
    links = pages[site / "README.html"].links
    assert set(links) >= {f"notebooks/{path.stem}.html" for path in NOTEBOOKS}
    assert set(links) >= {path.relative_to(ROOT).with_suffix(".html").as_posix() for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_reference_has_every_public_name(path, pages, site):
    relative = path.relative_to(ROOT)
    name = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and ast.get_docstring(node)
        # torch makes an object of an operator, and autodoc passes it over; its source is on the site
        and not any("custom_op" in ast.unparse(decorator) for decorator in node.decorator_list)
    ]
    public = {f"{name}.{each}" for each in names if each[0] != "_"}
    assert pages[site / relative.with_suffix(".html")].ids >= public


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_keeps_its_equations_figures_and_outputs(path, pages, site):
    page = pages[site / "notebooks" / f"{path.stem}.html"]
    text = "".join("".join(cell["source"]) for cell in cells(path, "markdown"))
    assert page.equations == text.count("$$") / 2
    outputs = [output for cell in cells(path, "code") for output in cell["outputs"]]
    described = [
        output["metadata"]["image/png"]["alt"] for output in outputs if "image/png" in output.get("data", {})
    ]
    badges = re.findall(r"!\[(.*?)\]", text)
    assert page.texts and sorted(page.texts) == sorted(described + badges)


def test_exercises_are_downloads_and_solutions_are_not_there(pages, site):
    exercises = {path.name for path in (ROOT / "notebooks" / "exercises").glob("*.ipynb")}
    links = pages[site / "site" / "files.html"].links
    assert {Path(link).name for link in links if link.endswith(".ipynb")} == exercises
    files = [path.relative_to(site) for path in site.rglob("*") if path.is_file()]
    assert [path for path in files if "solutions" in path.parts] == []
    notebooks = [path for path in files if path.suffix == ".ipynb" or path.parts[0] == "notebooks"]
    assert not any("BEGIN SOLUTION" in (site / path).read_text("utf-8") for path in notebooks)


def test_every_page_on_a_phone(visitor, pages, site):
    """Of the pages with the source of a module, which differ in its text alone, the longest."""
    sources = [path for path in pages if path.is_relative_to(site / "_modules" / "asa_mini")]
    reader = visitor(**PHONE)
    for path in set(pages) - set(sources) - {site / "index.html"}:  # which only leads to the start page
        reader.visit(path)
    reader.visit(max(sources, key=lambda path: path.stat().st_size))


def test_the_index_leads_to_the_start_page(visitor, site):
    tab = visitor().tab
    tab.goto((site / "index.html").as_uri())
    tab.wait_for_url("**/README.html")


def test_no_page_is_wider_than_a_screen(visitor, site):
    reader = visitor()
    for page in ("notebooks/03_asa_layer.html", "asa_mini/model.html"):
        for width in (1000, 1100, 1330, 1500):
            reader.tab.set_viewport_size({"width": width, "height": 800})
            reader.visit(site / page)


def test_light_and_dark(visitor, site):
    colors = {}
    for scheme in ("light", "dark"):
        tab = visitor(color_scheme=scheme).visit(site / "notebooks" / "04_training.html")
        color = "getComputedStyle(document.body).backgroundColor"
        colors[scheme] = tab.evaluate(color)
        paper = tab.locator(".cell_output img").first.evaluate("x => getComputedStyle(x).backgroundColor")
        assert paper == "rgb(255, 255, 255)"
        for _ in range(2):  # furo's button goes round: as the system has it, the other one, the same one
            tab.locator(".theme-toggle:visible").first.click()
            colors[scheme, tab.evaluate("document.body.dataset.theme")] = tab.evaluate(color)
    assert colors["light"] != colors["dark"]
    assert colors["light", "dark"] == colors["dark", "dark"] == colors["dark"]
    assert colors["light", "light"] == colors["dark", "light"] == colors["light"]


def test_search_finds_a_word_and_a_function(visitor, site):
    tab = visitor().visit(site / "README.html")
    for word, wanted in (("oatmeal", "notebooks/00_tour.html"), ("keep_mask", "asa_mini/adversary.html")):
        tab.locator("input[name=q]:visible").fill(word)
        tab.keyboard.press("Enter")
        tab.get_by_text("Search finished").wait_for()  # until then the results move
        found = tab.locator(f'#search-results a[href*="{wanted}"]').first
        found.click()
        tab.wait_for_url(f"**/{wanted}*")
        assert word in tab.locator("article").text_content()


def test_the_explorer_works(visitor, site):
    tab = visitor().visit(site / "notebooks" / "05_attention_analysis.html")
    frame = tab.locator("iframe").content_frame
    frame.locator("#head").select_option(label="head 1")
    frame.get_by_text("Attention in layer 0, head 1").first.wait_for()


def test_equations_have_a_size(visitor, site):
    tab = visitor().visit(site / "notebooks" / "03_asa_layer.html")
    sizes = tab.locator("math").evaluate_all("all => all.map(x => x.getBoundingClientRect().height)")
    assert len(sizes) > 20 and min(sizes) > 4


GOOD = '<h1 id="top">A</h1><a href="b.html#x">b</a><code>$$</code><img src="f.png" alt="A line.">'
DAMAGE = [
    ('href="b.html#x"', 'href="c.html"', "no file for c.html"),
    ('href="b.html#x"', 'href="b.html#y"', "no place for b.html#y"),
    ('src="f.png"', 'src="https://example.invalid/f.png"', "loads https://example.invalid/f.png"),
    ('alt="A line."', 'alt=""', "a picture without a description"),
    (' alt="A line."', "", "a picture without a description"),
    ("<code>$$</code>", "<p>$$x$$</p>", "an equation as text"),
    ("<code>", '<code class="xref problematic">', "problematic"),
]


@pytest.mark.parametrize(("old", "new", "said"), [("", "", None), *DAMAGE])
def test_damage_is_noticed(tmp_path, old, new, said):
    (tmp_path / "a.html").write_text(GOOD.replace(old, new), encoding="utf-8")
    (tmp_path / "b.html").write_text('<html><body><p id="x">b</p></body></html>', encoding="utf-8")
    (tmp_path / "f.png").touch()
    assert complaints(read_site(tmp_path), tmp_path) == ([f"a.html: {said}"] if said else [])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("<p>fine</p>", None),
        ("<script>console.error('oh')</script>", "oh"),
        ("<script>undefined.x</script>", "Cannot read properties of undefined"),
        ("<img src='https://example.invalid/x.png'>", "https://example.invalid/x.png"),
        ("<div style='width: 500px'>wide</div>", "500 pixels wide|pixels wide in a window of 390"),
    ],
)
def test_a_bad_page_is_noticed_in_the_browser(browser, tmp_path, body, said):
    (tmp_path / "bad.html").write_text(
        f"<!doctype html><meta charset=utf-8><body>{body}</body>", encoding="utf-8"
    )
    reader = Visitor(browser, tmp_path, **PHONE)
    reader.visit(tmp_path / "bad.html").wait_for_timeout(500)
    reader.context.close()
    assert bool(reader.complaints) == bool(said)
    assert said is None or re.search(said, reader.complaints[0])


def test_an_equation_that_cannot_be_converted_fails_the_build(conf):
    from docutils import nodes
    from sphinx.errors import ExtensionError

    writer = SimpleNamespace(docnames=["page"], body=[])
    with pytest.raises(nodes.SkipNode):
        conf["write_mathml"](writer, nodes.math("", r"\tau^2"))
    assert writer.body[0].startswith("<math") and "<msup>" in writer.body[0]
    with pytest.raises(ExtensionError, match=r"page: cannot convert the equation"):
        conf["write_mathml"](writer, nodes.math("", r"\nonsense{x}"))


def test_a_figure_without_a_description_fails_the_build(conf, tmp_path):
    from docutils import nodes, utils
    from sphinx.errors import ExtensionError

    path, page = tmp_path / "00.ipynb", utils.new_document("00")
    app = SimpleNamespace(env=SimpleNamespace(docname="00", doc2path=lambda docname: path))
    page += nodes.container("", nodes.image(uri="x.png"), classes=["cell_output"])

    def store(metadata):
        output = {"data": {"image/png": ""}, "metadata": metadata}
        path.write_text(json.dumps({"cells": [{"cell_type": "code", "outputs": [output]}]}), encoding="utf-8")

    store({"image/png": {"alt": "A line."}})
    conf["describe_figures"](app, page)
    assert next(page.findall(nodes.image))["alt"] == "A line."
    store({})
    with pytest.raises(ExtensionError, match="1 pictures"):
        conf["describe_figures"](app, page)
