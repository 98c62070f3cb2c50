"""Hand-ins for the tests of grading: solved in part, broken by accident, hostile."""

import json
import os
from pathlib import Path

import nbformat

from asa_classroom.exercises import SOLUTION, student_version

NAME = "ex02_gradient_reversal"
ROOT = Path(__file__).parents[1]
STEPS = ["slopes", "simultaneous_step", "Reversal", "reverse_by_detach", "players_loss"]
STEPS += ["largest_rate", "play"]
FOR_EVER = (
    "import time\nwhile True:\n    try:\n        while True: time.sleep(0.02)\n    except BaseException: pass"
)
FORGERY = """import contextlib, os
for descriptor in range(3, 30):
    with contextlib.suppress(OSError):
        os.write(descriptor, b'{"step": "play", "state": "passed", "message": ""}\\n')
for _ in range(1200):  # deeper than Python can walk
    os.mkdir("d")
    os.chdir("d")
os._exit(0)"""


def homework(path, steps=STEPS, after=(), change=()):
    """Write a student's notebook: `steps` solved, cells inserted `after` one, cells with a `change`."""
    solution = nbformat.read(ROOT / "notebooks" / "solutions" / f"{NAME}.ipynb", as_version=4)
    solved = {cell.id: SOLUTION.sub(r"\2", cell.source) for cell in solution.cells}
    notebook = student_version(solution, NAME)
    for cell in notebook.cells:
        if cell.id.removesuffix("-answer") in steps and cell.metadata.get("nbgrader", {}).get("solution"):
            cell.source = solved[cell.id]
    ids = [cell.id for cell in notebook.cells]
    for step, source in change:
        notebook.cells[ids.index(step)].source = source
    for step, *sources in after:
        place = next(i for i, cell in enumerate(notebook.cells) if cell.id == step) + 1
        notebook.cells[place:place] = map(nbformat.v4.new_code_cell, sources)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(notebook), encoding="utf-8")


def accidents(victim, port):
    """{cell: what its error says}: what the guard forbids with and without a wall, and what is just wrong."""
    outside, kept = repr(str(victim)), repr(str(victim / "kept.txt"))
    rule = "grading allows no network, no other process and no change outside the own folder: "
    return {
        "import os, shutil, sys, socket, subprocess\nsys.exit(3)": "asked to exit",
        "exit()": "asked to exit",
        "os.kill(os.getppid(), 9)": f"{rule}os.kill",
        f"shutil.rmtree({outside})": f"{rule}shutil.rmtree",
        f"os.remove({kept})": f"{rule}os.remove",
        f"os.rename({kept}, 'mine.txt')": f"{rule}os.rename",
        f"open('own.txt', 'w').close(); os.rename('own.txt', {kept})": f"{rule}os.rename",
        f"open({outside} + '/new.txt', 'w')": f"{rule}open",
        f"os.symlink({outside}, 'link'); open('link/new.txt', 'a')": f"{rule}open",
        f"socket.create_connection(('127.0.0.1', {port}))": f"{rule}socket",
        f"socket.socket().connect(('127.0.0.1', {port}))": f"{rule}socket.connect",
        "!ls": rule,
        "subprocess.run(['ls'])": f"{rule}subprocess.Popen",
        "os.system('ls')": f"{rule}os.system",
        "os.fork()": f"{rule}os.fork",
        "input()": "EOFError",
        "try: open('large', 'wb').write(bytes(60 * 2**20))\nfinally: os.remove('large')": "OSError",
        "class Odd(Exception):\n    def __str__(self): raise ValueError\nraise Odd": "its __str__ stopped",
        "f(": "SyntaxError",
    }


def attacks(victim, other):
    """The same for what no guard sees, so that only a wall stops it; nothing of this may reach beyond."""
    outside, kept = repr(str(victim)), repr(str(victim / "kept.txt"))
    spawn = "import ctypes, multiprocessing, signal\ndef removed(path):\n"
    spawn += "    child = multiprocessing.get_context('spawn').Process(target=os.remove, args=(path,))\n"
    spawn += "    child.start(); child.join()\n    return child.exitcode == 0\n"
    spawn += "open('own.txt', 'w').close()\nassert removed(os.path.abspath('own.txt')), 'no child'\n"
    hidden = [other, other.parents[1], ROOT / "notebooks", ROOT / "tests", "/etc/passwd"]
    network = os.readlink("/proc/self/ns/net")
    return {
        f"{spawn}assert removed({kept}), 'walled'": "AssertionError: walled",
        f"signal.pidfd_send_signal(os.pidfd_open({os.getpid()}), 9)": "Error: [Errno",
        f"os.symlink({str(other)!r}, 'lesson.txt'); open('lesson.txt')": "FileNotFoundError",
        f"os.unlink('kept.txt', dir_fd=os.open({outside}, os.O_RDONLY))": "FileNotFoundError",
        f"assert ctypes.CDLL(None).unlink({kept}.encode()) == 0, 'walled'": "AssertionError: walled",
        f"assert any(map(os.path.exists, {[*map(str, hidden)]})), 'walled'": "AssertionError: walled",
        f"assert os.readlink('/proc/self/ns/net') == {network!r}, 'walled'": "walled",
        "assert open('/proc/1/fd/0').read(), 'walled'": "walled",
    }


ALLOWED = [  # no errors, and no harm to what comes after
    "%matplotlib inline\nimport matplotlib.pyplot as plt, asa_mini.look.plots as plots\n"
    "fig, ax = plt.subplots(); ax.plot([1, 2]); plots.show_figure(fig, 'mine', 'a line')",
    "import tempfile\nwith tempfile.TemporaryDirectory() as d: open(d + '/a', 'w').write('a')",
    "open('a.txt', 'w').write('a'); os.rename('a.txt', 'b.txt'); os.remove('b.txt'); open(os.devnull, 'w')",
    "import inspect\ndef shown(): pass\nassert 'pass' in inspect.getsource(shown)",
    "import builtins, asa_mini, asa_classroom.checks.harness as harness\n"
    "check = lambda *a: 1 / 0\nbuiltins.print = harness.same = harness.call = asa_mini.wrap = check\n"
    "builtins.open = None\nsys.stdout.close()",
    "os.mkdir('deep'); os.chdir('deep')",
]
