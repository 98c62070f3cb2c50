"""What must hold on every page of the site, read from the files and seen in a browser."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ERRORS = {"problematic", "system-message"}  # classes by which docutils marks what it could not read
VERBATIM = {"pre", "code", "script", "style", "title"}
EMPTY = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


@dataclass
class Page(HTMLParser):
    """The parts of one HTML file that the checks need."""

    path: Path
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)  # a reader may follow them
    resources: list[str] = field(default_factory=list)  # the browser fetches them
    texts: list[str | None] = field(default_factory=list)  # of pictures
    errors: list[str] = field(default_factory=list)
    prose: str = ""
    equations: int = 0  # displayed ones
    inside: list[str] = field(default_factory=list)

    def __post_init__(self):
        super().__init__()
        self.feed(self.path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag not in EMPTY:
            self.inside.append(tag)
        self.ids |= {values[name] for name in ("id", "name") if values.get(name)}
        self.links += [values["href"]] if tag == "a" and "href" in values else []
        self.resources += [values["href"]] if tag == "link" and "href" in values else []
        self.resources += [values["src"]] if values.get("src") else []
        self.texts += [values.get("alt")] if tag == "img" else []
        self.errors += sorted(ERRORS & set((values.get("class") or "").split()))
        self.errors += [tag] if tag == "merror" else []
        self.equations += tag == "math" and values.get("display") == "block"

    def handle_endtag(self, tag):
        while tag in self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if not VERBATIM & set(self.inside):
            self.prose += data


def read_site(folder: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(folder.rglob("*.html"))}


def complaints(pages: dict[Path, Page], folder: Path) -> list[str]:
    """Dead links, resources of other hosts, undescribed pictures, errors and unconverted equations."""
    found = []
    for page in pages.values():
        name = page.path.relative_to(folder).as_posix()
        for target in page.links + page.resources:
            found += [
                f"{name}: {reason}" for reason in wrong_target(target, page, pages, target in page.links)
            ]
        found += [f"{name}: a picture without a description" for text in page.texts if not text]
        found += [f"{name}: {error}" for error in page.errors]
        found += [f"{name}: an equation as text"] if "$$" in page.prose else []
    return found


def wrong_target(target: str, page: Page, pages: dict[Path, Page], may_leave: bool) -> list[str]:
    parts = urlsplit(target)
    if parts.scheme == "data":
        return []
    if parts.scheme or parts.netloc:
        return [] if may_leave else [f"loads {target}"]
    path = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
    if not path.is_file():
        return [f"no file for {target}"]
    anchor = unquote(parts.fragment)
    if anchor and path in pages and anchor not in pages[path].ids:
        return [f"no place for {target}"]
    return []


class Visitor:
    """A tab without a network that remembers what a page did wrong."""

    def __init__(self, browser, folder: Path, **options):
        self.context = browser.new_context(offline=True, **options)
        self.tab = self.context.new_page()
        self.complaints: list[str] = []
        known = (folder.as_uri(), "about:", "data:", "blob:")
        self.tab.on("request", lambda request: request.url.startswith(known) or self.note(request.url))
        self.tab.on("console", self.hear)
        self.tab.on("pageerror", lambda error: self.note(str(error)))

    def hear(self, message) -> None:
        if message.type in ("error", "warning"):  # the theme logs a change of colours
            self.note(message.text)

    def note(self, text: str) -> None:
        self.complaints.append(f"{Path(urlsplit(self.tab.url).path).name}: {text}")

    def visit(self, path: Path):
        """Open the page; note it if the reader would have to scroll it sideways."""
        self.tab.goto(path.as_uri())
        wide, window = self.tab.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        if wide > window:
            self.note(f"{wide} pixels wide in a window of {window}")
        return self.tab
