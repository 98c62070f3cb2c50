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
DOORS = {  # what each extra is for: folders or modules that need it, beside the core's own
    (): (),  # the method and its kernels
    ("train",): ("asa_mini/cli.py", "asa_mini/train", "asa_mini/bench", "results/[!f]*.py", "data"),
    ("notebooks",): ("asa_mini/look", "results/figures.py"),
    ("classroom",): ("asa_classroom",),
    ("site",): ("site",),
    ("test",): ("tests",),
}
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def parsed(lines):
    """Return {canonical name: requirement} of requirement strings."""
    return {canonicalize_name(item.name): item for item in map(Requirement, lines)}


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(scope="module")
def extras(project):
    """{extra: {name: requirement}}, without what one extra takes over from another."""
    given = project["optional-dependencies"]
    return {
        extra: parsed(line for line in lines if not line.startswith("asa_mini["))
        for extra, lines in given.items()
    }


@pytest.fixture(scope="module")
def environment_lines():
    """Lines of environment.yml that name something to install, without the list dash."""
    text = (ROOT / "environment.yml").read_text("utf-8")
    lines = [line.strip().removeprefix("- ") for line in text.partition("dependencies:")[2].splitlines()]
    return [line for line in lines if line and line != "pip:"]


def test_environment_has_the_bounds_of_pyproject(project, extras, environment_lines):
    stated = [line.partition("#")[0].strip() for line in environment_lines]
    assert f"python{project['requires-python']}" in stated
    assert stated.count("-e .") == stated.count("-c constraints.txt") == stated.count("pip") == 1
    packages = [line for line in stated if not line.startswith(("-", "python>", "pip"))]
    wanted = parsed(project["dependencies"])
    for extra in extras.values():
        wanted |= extra
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
    lines = [line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if line[0] != "#"]
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


def imported(*patterns):
    """Return the packages that Python files import, at whatever depth of a function."""
    found = [path for pattern in patterns for path in ROOT.glob(pattern)]
    files = [file for path in found for file in ([path] if path.is_file() else path.rglob("*.py"))]
    assert files
    names = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module)
    names = {name.partition(".")[0] for name in names}
    own = {"asa_mini", "asa_classroom", "asa_results", "tomllib"} | {file.stem for file in files}
    return {
        canonicalize_name(IMPORT_NAMES.get(name, name)) for name in names - set(sys.stdlib_module_names) - own
    }


def everything_of(extra, project):
    """Names of what `pip install asa_mini[extra]` asks for, inner extras included."""
    names = set(parsed(project["dependencies"]))
    for line in project["optional-dependencies"][extra]:
        inner = re.fullmatch(r"asa_mini\[(\w+)\]", line)
        names |= everything_of(inner[1], project) if inner else set(parsed([line]))
    return names


@pytest.mark.parametrize("extra", DOORS)
def test_imports_are_declared(extra, project, extras):
    """A door needs no more than its extra; triton is imported where a kernel runs, pytest where tests do."""
    declared = everything_of(extra[0], project) if extra else set(parsed(project["dependencies"]))
    patterns = DOORS[extra]
    if not extra:
        patterns = [
            *(p.relative_to(ROOT).as_posix() for p in ROOT.glob("asa_mini/*.py") if p.name != "cli.py"),
            "asa_mini/kernels",
        ]
    assert imported(*patterns) <= declared | set(extras["gpu"]) | {"pytest"}
