"""What `pip install .` puts in place works away from the clone: it brings every file that the code reads."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOMES = {  # folder of the clone -> where it is installed
    "asa_mini": "asa_mini",
    "asa_classroom": "asa_classroom",
    "results": "asa_results",
    "data/shortcut": "asa_mini/_data/shortcut",
}
READING = """
import runpy, sys
from importlib.metadata import entry_points
from pathlib import Path
from asa_classroom.grading import report
from asa_classroom.grading.collect import Work
from asa_mini.look.explorer import explorer_html
from asa_mini.train.data import load
from asa_results.tables import read_runs

assert len(load("shortcut")["train"]) > 1000 and len(read_runs("planted")) > 30
report.write([Work("ada", exercise="ex02")], {"ex02": ["Reversal"]}, Path())
assert "ada" in Path("grades.html").read_text(encoding="utf-8")
(script,) = entry_points(group="console_scripts", name="asa-mini")
assert script.load() is sys.modules["asa_mini.cli"].main
ours = {name: module.__file__ for name, module in sys.modules.items() if name.startswith("asa_")}
assert {name: file for name, file in ours.items() if not file.startswith(sys.argv[1])} == {}
sys.argv[1:] = "train", "--seed", "-1", "--output_dir", "run"
runpy.run_module("asa_mini", run_name="__main__")
"""


def files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what the wheel is built from: building leaves files beside it."""
    source = tmp_path_factory.mktemp("source")
    for name in HOMES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    return source


@pytest.fixture(scope="module")
def installed(source, tmp_path_factory):
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run(
        [*pip, "--no-compile", "--target", target, source], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return target


def away(installed, folder, *arguments):
    """Run Python in `folder`, with our packages as they were installed, not those of the clone."""
    environment = os.environ | {"PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=300
    )


def test_the_wheel_holds_every_file(source, installed):
    for name, home in HOMES.items():
        found = files(installed / home)
        assert {path for path in found if home != "asa_mini" or path.parts[0] != "_data"} == files(
            source / name
        )


def test_what_is_read_away_from_the_clone(installed, tmp_path):
    """And what a program shows: its exit code, and that importing prints nothing."""
    done = away(installed, tmp_path, "-c", READING, installed)
    assert done.returncode == 2, done.stderr
    assert len(done.stdout.splitlines()) == 2 and "ada" in done.stdout  # of the report
    assert done.stderr == "asa_mini: error: seed must be from 0 to 4294967295, but is -1\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["asa_mini", "--version"], "asa_mini 0."),
        (["asa_classroom", "--help"], "make the students' notebooks"),
    ],
)
def test_commands_away_from_the_clone(installed, tmp_path, arguments, words):
    done = away(installed, tmp_path, "-m", *arguments)
    assert done.returncode == 0 and words in done.stdout, done.stderr
    assert files(tmp_path) == set()
