"""The attention explorer in a browser: what a reader does with it, and that nothing leaves the page."""

import io
from xml.etree import ElementTree

import numpy as np
import pytest
from explorer_records import MARKED, NASTY, RECORDS, record, shown
from PIL import Image

from asa_mini.look import explorer


@pytest.fixture
def visit(browser, tmp_path):
    """Opens a page without a network; at the end, nothing was asked of one, and no error was reported."""
    complaints, contexts = [], []

    def visit(page=None, **options):
        path = tmp_path / "page.html"
        path.write_text(page or explorer.explorer_html(RECORDS, MARKED), encoding="utf-8")
        contexts.append(browser.new_context(offline=True, **options))
        tab = contexts[-1].new_page()
        known = (path.as_uri(), "about:", "data:", "blob:")
        tab.on("request", lambda request: request.url.startswith(known) or complaints.append(request.url))
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.goto(path.as_uri())
        tab.locator("#stage svg, iframe").first.wait_for()
        return tab

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []


def percentages(tab, side: str) -> list[str]:
    tab.locator("#stage svg").wait_for()
    return tab.locator(f'[data-share^="{side} "]').all_text_contents()


def assert_shows(tab, record, layer, head, query):
    """The numbers of both panels are the record's; head None is the mean, query None the mean of all."""
    for side in ("clean", "adversarial"):
        weights = getattr(record, side)[layer]
        weights = weights.mean(0) if head is None else weights[head]
        wanted = 100 * (weights.mean(0) if query is None else weights[query])
        for number, text in zip(wanted, percentages(tab, side), strict=True):
            low, high = {"<1%": (0, 0.5), ">99%": (99.5, 100)}.get(text) or [int(text[:-1])] * 2
            assert low - 0.7 <= number <= high + 0.7, f"{side}: {number} is shown as {text}"


def token(tab, i):
    return tab.locator("#tokens button").nth(i)


def test_choosing_a_sentence_a_layer_and_a_head(visit):
    tab = visit()
    assert_shows(tab, RECORDS[0], 0, None, None)
    tab.select_option("#layer", "1")
    assert_shows(tab, RECORDS[0], 1, None, None)
    tab.select_option("#head", label="head 2")
    assert_shows(tab, RECORDS[0], 1, 2, None)
    tab.select_option("#record", "2")
    assert_shows(tab, RECORDS[2], 1, 2, None)
    assert "Attention in layer 1, head 2" in tab.locator("#stage svg").text_content()
    wanted = [f"{100 * p:.1f}%" for p in RECORDS[2].prediction]
    assert all(text in tab.locator("#stage svg").text_content() for text in wanted)


def test_pointing_shows_a_token_and_a_click_keeps_it(visit):
    tab, first = visit(), RECORDS[0]
    tab.select_option("#head", label="head 1")
    token(tab, 2).hover()
    assert_shows(tab, first, 0, 1, 2)
    struck = tab.locator('text[text-decoration="line-through"]').all_text_contents()
    plain = ["◆ has" if name == "has" else name for name in first.tokens]
    assert struck == [plain[j] for j in np.flatnonzero(~first.kept[0, 2])] and struck
    squares = tab.locator("[data-removed]").get_attribute("d").count("M")
    assert squares == (~first.kept[0]).sum()
    tab.locator("h1").hover()
    assert_shows(tab, first, 0, 1, None)
    token(tab, 3).click()
    token(tab, 0).hover()
    assert_shows(tab, first, 0, 1, 3)
    tab.keyboard.press("Escape")
    tab.locator("h1").hover()
    token(tab, 4).hover()
    assert_shows(tab, first, 0, 1, 4)
    assert "removed all its units: it attends to every token equally" in tab.locator("#said").text_content()


def test_keyboard(visit):
    tab, first = visit(), RECORDS[0]
    tab.locator("#png").focus()
    tab.keyboard.press("Tab")
    assert_shows(tab, first, 0, None, 0)
    for key in ("ArrowDown", "ArrowRight", "ArrowDown", "ArrowUp", "ArrowLeft"):
        tab.keyboard.press(key)
    assert_shows(tab, first, 0, None, 1)
    assert token(tab, 1).get_attribute("aria-label") == "has, token 2 of 5, marked"
    style = token(tab, 1).evaluate("x => getComputedStyle(x).outline")
    assert "solid" in style and "3px" in style
    said = tab.locator("#said[aria-live]").text_content().replace("\u2068", "").replace("\u2069", "")
    best = first.clean[0].mean(0)[1]
    assert (
        f"“has”, token 2 of 5, attends to: clean “{first.tokens[best.argmax()]}” {100 * best.max():.0f}%"
        in said
    )
    assert f"removed {(~first.kept[0, 1]).sum()} of its 5 units" in said
    tab.keyboard.press("Enter")
    assert token(tab, 1).get_attribute("aria-pressed") == "true"
    tab.keyboard.press("End")
    assert token(tab, 4).get_attribute("aria-pressed") == "true"
    tab.keyboard.press("Escape")
    assert token(tab, 4).get_attribute("aria-pressed") == "false"
    assert_shows(tab, first, 0, None, None)


def test_a_script_in_a_sentence_is_text(visit):
    tab = visit()
    tab.select_option("#record", "1")
    token(tab, 0).hover()
    assert f"\u2068{NASTY}\u2069" in tab.locator("#stage text").all_text_contents()
    assert RECORDS[1].tokens[0] in tab.locator("#said").text_content()
    assert tab.evaluate("window.ran") is None and tab.locator("img").count() == 0


def test_the_policy_forbids_a_network(browser):
    tab = browser.new_page()
    tab.set_content(explorer.explorer_html(RECORDS[:1]))
    refused = """() => new Promise((done) => {
        document.addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective));
        new Image().src = "https://example.invalid/x.png";
        setTimeout(done, 3000, "nothing refused it");
    })"""
    assert tab.evaluate(refused) == "img-src"
    tab.close()


@pytest.mark.parametrize("width", [375, 800, 1280])
def test_nothing_is_cut_off(visit, width):
    tab = visit(viewport={"width": width, "height": 700})
    for number in range(len(RECORDS)):
        tab.select_option("#record", str(number))
        token(tab, 0).click()
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        outside = """() => { const all = document.querySelector("#stage svg").getBoundingClientRect();
            return [...document.querySelectorAll("#stage text")].filter((text) => {
                const box = text.getBoundingClientRect();
                return box.left < all.left - 1 || box.right > all.right + 1 || box.bottom > all.bottom + 1;
            }).map((text) => text.textContent); }"""
        assert tab.evaluate(outside) == []


def saved(tab, frame, kind) -> bytes:
    with tab.expect_download() as download:
        frame.locator(f"#{kind}").click()
    assert download.value.suggested_filename == f"attention_sentence1_layer0_mean.{kind}"
    return download.value.path().read_bytes()


def test_two_frames_in_a_dark_notebook(visit, monkeypatch):
    """They do not meet each other or the notebook's style, and save pictures on white all the same."""
    style = "<style>button, text, svg { display: none !important }</style>"
    page = (
        shown(monkeypatch, [RECORDS[0]], height=900).data + shown(monkeypatch, RECORDS[1:], height=900).data
    )
    tab = visit(
        f"<!doctype html><meta charset=utf-8>{style}{page}", color_scheme="dark", accept_downloads=True
    )
    one, two = (tab.locator("iframe").nth(i).content_frame for i in (0, 1))
    one.locator("#tokens button").nth(1).click()
    assert_shows(one, RECORDS[0], 0, None, 1)
    assert_shows(two, RECORDS[1], 0, None, None)
    assert (
        one.locator("body").evaluate("x => getComputedStyle(x.parentNode).backgroundColor")
        == "rgb(20, 24, 29)"
    )
    drawing = ElementTree.fromstring(saved(tab, one, "svg"))
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    words = " ".join(drawing.itertext())
    assert all(
        text in words for text in ("it has all of it", "unit removed by the adversary", "token 2 of 5")
    )
    picture = Image.open(io.BytesIO(saved(tab, one, "png"))).convert("RGB")
    assert picture.size == (
        2 * int(drawing.get("width")),
        pytest.approx(2 * float(drawing.get("height")), abs=2),
    )
    colors = {color for _, color in picture.getcolors(1 << 24)}
    assert picture.getpixel((0, 0)) == (255, 255, 255) and {(1, 115, 178), (213, 94, 0)} <= colors


def test_one_head_two_tokens_and_no_adversary(visit):
    tab = visit(explorer.explorer_html([record("a b", layers=1, heads=1, attacked=False)]))
    assert tab.locator("#head option").all_text_contents() == ["head 0"]
    token(tab, 1).hover()
    assert_shows(tab, record("a b", layers=1, heads=1, attacked=False), 0, 0, 1)
    assert "Nothing was removed in any layer" in tab.locator("#said").text_content()
    assert tab.locator("[data-removed]").get_attribute("d") == ""


def test_a_long_text_is_drawn_once_and_followed_cheaply(visit):
    """A click changes attributes; neither the picture nor a node for each of L x L units is made."""
    long = record(" ".join("abcdefghij" * 10), layers=1, heads=1, seed=3)
    stored = np.rint(255 * long.clean) / 255
    tab = visit(explorer.explorer_html([long]))
    assert_shows(tab, long, 0, 0, None)
    assert tab.locator("#stage svg g").first.locator("path").count() == (stored > 0.5 / 100).sum() < 5000
    tab.evaluate("window.before = document.querySelector('#stage svg')")
    token(tab, 7).click()
    assert_shows(tab, long, 0, 0, 7)
    assert tab.evaluate("document.querySelector('#stage svg') === window.before")
    assert tab.locator("#stage svg image").get_attribute("href").startswith("data:image/png")
