"""The tree is what the map says: arrows point one way, no file is long, and an import costs what it must."""

import ast
import json
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Whoever is named further right may import whoever is named before, never the other way round. A name stands
# for the module or the folder asa_mini/NAME, but for those of its parts that are named themselves.
ORDER = [
    "errors", "gradient_reversal", "config", "adversary", "kernels", "attention", "heads", "objective", "hf",
    "model", "__init__", "train.files", "train.checkpoints", "train.planting", "train.config", "train.tasks",
    "train.models", "train.reading", "train.rows", "train.hub", "train.data", "train.tokenizing",
    "train.metrics", "train.run_folder", "train.trainer", "train.evaluation", "train.baselines", "train.run",
    "train.sources", "train.options", "train", "look", "bench", "cli", "__main__",
]  # fmt: skip
PACKAGES = ("asa_mini", "asa_classroom", "results", "site", "tests")
LONGEST = 300  # lines
# What takes seconds to import, and the method does without.
HEAVY = {"datasets", "pandas", "sklearn", "scipy", "accelerate", "triton", "matplotlib", "IPython"}


def sources(root: Path) -> list[Path]:
    return [path for folder in PACKAGES for path in (root / folder).rglob("*.py")]


def modules(root: Path) -> dict[str, Path]:
    files = [path for package in ("asa_mini", "asa_classroom") for path in root.glob(f"{package}/**/*.py")]
    return {".".join(path.relative_to(root).with_suffix("").parts): path for path in files}


def imports(root: Path) -> dict[str, set[str]]:
    """Of every module, the modules of ours that it names in an import, inside functions too."""
    files = modules(root)
    graph = {}
    for name, path in files.items():
        wanted = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                package = name.split(".")[: -node.level] if node.level else []
                start = ".".join([*package, *filter(None, [node.module])])
                # `from package import part`: the part if it is a module, else the package itself.
                parts = {f"{start}.{alias.name}" for alias in node.names}
                whole = {part for part in parts if not {part, f"{part}.__init__"} & files.keys()}
                wanted |= (parts - whole) | ({start} if whole else set())
        known = {x if x in files else f"{x}.__init__" for x in wanted}
        graph[name] = known & files.keys()
    return graph


def place(module: str) -> int | None:
    """Of a module of asa_mini in ORDER."""
    parts = module.split(".")[1:]
    names = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((ORDER.index(name) for name in names if name in ORDER), None)


def nameless(tree: ast.AST) -> list[int]:
    """Lines that read or write text in whatever encoding the machine has: on Windows, not UTF-8."""
    found = []
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = getattr(node.func, "attr", getattr(node.func, "id", None))
        if name in ("read_text", "write_text") and isinstance(node.func, ast.Attribute):
            named = len(node.args) > (name == "write_text")  # after the text, if there is one
        elif name == "open" and isinstance(node.func, ast.Name):
            mode = [*node.args[1:2], *(x.value for x in node.keywords if x.arg == "mode")]
            named = any("b" in x.value for x in mode if isinstance(x, ast.Constant))
        else:
            continue
        if not named and all(x.arg != "encoding" for x in node.keywords):
            found.append(node.lineno)
    return found


def faults(root: Path) -> list[str]:
    found = []
    for path in sources(root):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LONGEST:
            found.append(f"{path.relative_to(root).as_posix()} has {lines} lines, more than {LONGEST}")
    graph = imports(root)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append("a cycle: " + " imports ".join(reversed(error.args[1])))
    for name, targets in graph.items():
        if name.startswith("asa_classroom"):
            continue
        if place(name) is None:
            found.append(f"{name} has no place in ORDER")
            continue
        for target in sorted(targets):
            if target.startswith("asa_classroom"):
                found.append(f"{name} imports {target}: the method knows no classroom")
            elif place(target) is not None and place(target) > place(name):
                found.append(f"{name} imports {target}, which stands above it")
    return found


def test_arrows_point_one_way_and_no_file_is_long():
    assert faults(ROOT) == []


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"asa_mini/errors.py": "", "asa_mini/model.py": "from asa_mini.errors import A"}, []),
        (
            {"asa_mini/hf.py": "def f():\n    from asa_mini import cli", "asa_mini/cli.py": ""},
            ["asa_mini.hf imports asa_mini.cli, which stands above it"],
        ),
        (
            {"asa_mini/train/a.py": "import asa_mini.train.b", "asa_mini/train/b.py": "from .a import x"},
            ["a cycle: asa_mini.train.a imports asa_mini.train.b imports asa_mini.train.a"],
        ),
        (
            {
                "asa_mini/cli.py": "from asa_classroom import cli",
                "asa_classroom/cli.py": "import asa_mini.cli",
            },
            [
                "a cycle: asa_mini.cli imports asa_classroom.cli imports asa_mini.cli",
                "asa_mini.cli imports asa_classroom.cli: the method knows no classroom",
            ],
        ),
        (
            {"asa_mini/train/data.py": "from asa_mini.train import run", "asa_mini/train/run.py": ""},
            ["asa_mini.train.data imports asa_mini.train.run, which stands above it"],
        ),
        (
            {"asa_mini/__init__.py": "from asa_mini.hf import x", "asa_mini/hf.py": "from asa_mini import y"},
            ["a cycle: asa_mini.__init__ imports asa_mini.hf imports asa_mini.__init__"],
        ),
        ({"asa_mini/new.py": ""}, ["asa_mini.new has no place in ORDER"]),
        ({"tests/test_long.py": "x = 1\n" * 301}, ["tests/test_long.py has 301 lines, more than 300"]),
    ],
    ids=["good", "up, in a function", "cycle", "classroom", "inside train", "package", "unknown", "long"],
)
def test_a_planted_fault_is_found(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = faults(tmp_path)
    assert all(fault in found for fault in expected) and (found == []) == (expected == [])


def test_text_is_read_and_written_in_a_named_encoding():
    planted = (
        "open(a)\nopen(a, 'rb')\na.read_text()\na.read_text('utf-8')\na.write_text(b)\nopen(a, mode='w')"
    )
    assert nameless(ast.parse(planted)) == [1, 3, 5, 6]
    found = {str(path): nameless(ast.parse(path.read_bytes())) for path in sources(ROOT)}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_heavy_packages_are_loaded_where_they_are_used():
    """Neither by `import asa_mini` nor by the command line before it knows what to do.

    transformers brings some of them itself, by its version and what is installed: those are not ours.
    """
    script = """if True:
        import json, sys
        import torch
        from transformers import AttentionInterface, HfArgumentParser, PreTrainedModel
        before = set(sys.modules)
        from asa_mini.cli import main
        try:
            main(["train", "--help"])
        except SystemExit:
            print()
            print(json.dumps(sorted(set(sys.modules) - before)))
    """
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {name.partition(".")[0] for name in json.loads(result.stdout.splitlines()[-1])}
    assert "asa_mini" in loaded and loaded & HEAVY == set()
