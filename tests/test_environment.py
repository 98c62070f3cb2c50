"""pyproject.toml, environment.yml and constraints.txt tell one story, and cover what the code imports."""

import ast
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
IMPORT_NAMES = {"sklearn": "scikit-learn", "PIL": "pillow"}
NEED_NOTEBOOKS = {"notebooks.py", "plots.py", "explorer.py", "exercises.py", "publishing.py"}
NEED_NOTEBOOKS |= {
    "pages.py",
    "grading_collect.py",
    "grading_worker.py",
}  # the modules that only work with that extra
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def parsed(lines):
    """Return {canonical name: requirement} of requirement strings."""
    return {canonicalize_name(item.name): item for item in map(Requirement, lines)}


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def extras(project):
    return {name: parsed(lines) for name, lines in project["optional-dependencies"].items()}


@pytest.fixture(scope="module")
def environment_lines():
    """Lines of environment.yml that name something to install, without the list dash."""
    text = (ROOT / "environment.yml").read_text()
    lines = [line.strip().removeprefix("- ") for line in text.partition("dependencies:")[2].splitlines()]
    return [line for line in lines if line and line != "pip:"]


def test_environment_has_the_bounds_of_pyproject(project, extras, environment_lines):
    stated = [line.partition("#")[0].strip() for line in environment_lines]
    assert f"python{project['requires-python']}" in stated
    assert stated.count("-e .") == stated.count("-c constraints.txt") == stated.count("pip") == 1
    packages = [line for line in stated if not line.startswith(("-", "python>", "pip"))]
    wanted = parsed(project["dependencies"]) | extras["notebooks"] | extras["test"] | extras["site"]
    assert len(packages) == len(wanted)
    found = parsed(packages)
    assert {name: str(item.specifier) for name, item in found.items()} == {
        name: str(item.specifier) for name, item in wanted.items()
    }


def test_every_line_of_the_environment_says_what_it_is_for(environment_lines):
    assert [line for line in environment_lines if not re.search(r"  # \w.{4,}", line)] == []


def test_dependencies_have_a_bound(project, extras):
    everything = [parsed(project["dependencies"]), *extras.values()]
    assert [name for group in everything for name, item in group.items() if not item.specifier] == []


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_pin_every_dependency_once(python, project, extras):
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    pins = {}
    for item in map(Requirement, lines):
        if item.marker is None or item.marker.evaluate({"python_version": python}):
            name = canonicalize_name(item.name)
            assert name not in pins, f"{name} is pinned twice"
            assert re.fullmatch(r"==[\w.]+", str(item.specifier)), f"{item} is not an exact public version"
            pins[name] = str(item.specifier)[2:]
    for group in (parsed(project["dependencies"]), *extras.values()):
        for name, item in group.items():
            if item.marker is not None and not item.marker.evaluate({"python_version": python}):
                continue
            assert item.specifier.contains(pins[name]), f"{item} excludes the tested {pins[name]}"


def imported(folder, without=()):
    """Return the packages that Python files below `folder` import, at whatever depth of a function."""
    files = [file for file in (ROOT / folder).rglob("*.py") if file.name not in without]
    names = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module)
    names = {name.partition(".")[0] for name in names}
    names -= set(sys.stdlib_module_names) | {"tomllib", "asa_mini"} | {file.stem for file in files}
    return {canonicalize_name(IMPORT_NAMES.get(name, name)) for name in names}


def test_imports_are_declared(project, extras):
    core, notebooks, gpu = set(parsed(project["dependencies"])), set(extras["notebooks"]), set(extras["gpu"])
    assert imported("asa_mini", without=NEED_NOTEBOOKS) <= core | gpu
    assert imported("asa_mini") <= core | gpu | notebooks
    assert imported("data") <= core
    assert imported("tests") <= core | gpu | notebooks | set(extras["test"]) | set(extras["site"])
    assert imported("site") <= gpu | set(extras["site"])
