"""Checks of the exercises in `notebooks/exercises`, one module for each notebook::

    from asa_classroom.checks import gradient_reversal as check

    check.scale_gradient(scale_gradient)  # a check has the name of what it takes

A step is a table, see `harness`: a reference of the check's own, never the solution, cases, and three or four
mistakes. `tests/test_checks.py` holds it to both sides: the solution passes, the stub and each mistake fail
with the message meant for it.
"""

import importlib

from asa_classroom.checks.harness import CheckFailed, Ladder, Unfinished
from asa_mini.errors import InputError

LADDERS = ("ex00_tour", "ex01_motivation", "ex02_gradient_reversal", "ex03_asa_layer", "ex04_training")
LADDERS += ("ex05_attention_analysis", "ex06_gpu_attention")  # exNN_ and the name of the module

__all__ = ["LADDERS", "CheckFailed", "Ladder", "Unfinished", "ladder"]


def ladder(notebook: str) -> Ladder:
    """Return the steps of an exercise notebook, given the stem of its file.

    Raises:
        InputError: there is no exercise of that name.
    """
    if notebook not in LADDERS:
        raise InputError(f"no exercise {notebook!r}; there are {', '.join(LADDERS)}")
    return importlib.import_module(f"asa_classroom.checks.{notebook[5:]}").ladder
