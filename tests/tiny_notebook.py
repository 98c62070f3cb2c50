"""A small notebook with parameters, and the runner's command line."""

import pytest

from asa_classroom import cli

nbformat = pytest.importorskip("nbformat", reason="needs the notebooks extra")

PARAMETERS = "steps = 3  # how many\nname = 'a'  # text\nrate: float = 0.5  # per step"


def write_notebook(path, *cells, tags=("parameters",), kernel="python3", last_cell_tags=()):
    """Write a notebook: a parameters cell per entry of `tags`, then `cells`."""
    v4 = nbformat.v4
    notebook = v4.new_notebook(metadata={"kernelspec": {"name": kernel, "display_name": "Python 3"}})
    notebook.cells = [v4.new_code_cell(PARAMETERS, metadata={"tags": [tag]}) for tag in tags]
    notebook.cells += [v4.new_markdown_cell("text"), *map(v4.new_code_cell, cells)]
    notebook.cells[-1].metadata["tags"] = list(last_cell_tags)
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)
    return path


def command_line(*arguments):
    return cli.main(["notebooks", *map(str, arguments)])
