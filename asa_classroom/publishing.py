"""What every notebook starts with, so that it also runs where nothing is prepared: a badge and a set-up cell.

The repository's address stands here and nowhere else. `python -m asa_classroom exercises` writes it into all
notebooks; stored outputs stay valid, because these cells do not count as their sources.
"""

from typing import Any

# "OWNER/NAME" on GitHub. None until it is published: a made-up owner could be anybody, and the set-up cell
# runs what it fetches.
REPOSITORY: str | None = None
BRANCH = "main"
TAG = "install"  # of both cells

INSTALL = """\
# Set-up: does nothing where asa_mini is installed; elsewhere (Colab, a plain Jupyter) it installs it.
import importlib.util
import subprocess
import sys
from pathlib import Path

repository = {repository!r}
spec = importlib.util.find_spec("asa_mini")
if spec is None or spec.origin is None:  # None, too, for a mere folder of that name
    here = Path.cwd()
    folders = [folder for folder in (here, *here.parents) if (folder / "asa_mini/model.py").exists()]
    root = folders[0] if folders else here / "asa_mini_clone"
    if not root.exists() and repository is None:
        raise RuntimeError(
            "asa_mini is not installed, and this copy names no repository to fetch it from. "
            "Install it as its README.md says, and start Jupyter there."
        )
    address = f"https://github.com/{{repository}}"
    try:
        if not root.exists():
            subprocess.run(["git", "clone", "--depth", "1", address, root], check=True)
        needs = ["-e", f"{{root}}[notebooks]"]
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", *needs], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        advice = "It takes git, pip and a network; else install it as README.md says, and start Jupyter there"
        raise RuntimeError(f"no asa_mini from {{address}}: {{error}}. {{advice}}.") from None
    sys.path.insert(0, str(root))"""


def install_source() -> str:
    """The set-up cell: safe to run twice, and touches nothing that is installed."""
    return INSTALL.format(repository=REPOSITORY)


def badge_source(path: str) -> str:
    """The badge, in Markdown, of the notebook at `path` in the repository; only a published one has it."""
    image = "../" * (path.count("/") - 1) + "open_in_colab.svg"
    address = f"https://colab.research.google.com/github/{REPOSITORY}/blob/{BRANCH}/{path}"
    return f"[![Open in Colab]({image})]({address})"


def publish(notebook: Any, path: str | None) -> Any:
    """Put both cells behind the first one of an nbformat node, or bring them up to date, in place.

    Args:
        path: of the notebook in the repository, with slashes; None for one that lies elsewhere: no badge.
    """
    import nbformat

    before = {cell.id: cell for cell in notebook.cells if TAG in cell.metadata.get("tags", [])}
    install = before.get("install") or nbformat.v4.new_code_cell(id="install")
    install.source = install_source()
    # Folded away in JupyterLab, left out of the HTML copies and of the site: it teaches nothing.
    install.metadata = nbformat.from_dict({"tags": [TAG, "remove-cell"], "jupyter": {"source_hidden": True}})
    cells = [install]
    if path is not None and REPOSITORY is not None:
        badge = nbformat.v4.new_markdown_cell(badge_source(path), id="badge", metadata={"tags": [TAG]})
        cells.insert(0, badge)
    rest = [cell for cell in notebook.cells if cell.id not in before]
    notebook.cells = rest[:1] + cells + rest[1:]
    return notebook
