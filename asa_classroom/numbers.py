"""Key numbers of a lesson: published by its cells, stored with its outputs, compared at every later run.

A digest of the cells cannot see that the package under them has changed; these numbers can.
"""

from collections.abc import Mapping
from typing import Any

MIME = "application/vnd.asa_mini.numbers+json"


def publish_numbers(tolerance: float, **numbers: float) -> None:
    """Show the key numbers of a lesson, and keep them in the outputs of the cell.

    Args:
        tolerance: by how much a run elsewhere may differ from the stored one, in the numbers' own units,
            because other processors add up in another order.
    """
    from IPython import display

    values = {name: float(value) for name, value in numbers.items()}
    shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    text = f"key numbers, which every run must reproduce within {tolerance:g}: {shown}"
    display.publish_display_data({MIME: {"tolerance": tolerance, "numbers": values}, "text/plain": text})


def read_numbers(notebook: Any) -> dict[str, dict[str, float]]:
    """Return {name: {"value": ..., "tolerance": ...}} from the outputs of an nbformat node."""
    outputs = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    return {
        name: {"value": value, "tolerance": data[MIME]["tolerance"]}
        for data in outputs
        for name, value in data.get(MIME, {}).get("numbers", {}).items()
    }


def moved(stored: Mapping[str, dict[str, float]], now: Mapping[str, dict[str, float]]) -> list[str]:
    """What differs between the numbers of two runs, in words; nothing where nothing was stored."""
    faults = [f"{name} is not published any more" for name in stored if name not in now]
    for name in stored.keys() & now.keys():
        before, after, tolerance = stored[name]["value"], now[name]["value"], now[name]["tolerance"]
        if not abs(after - before) <= tolerance:  # NaN, too
            faults.append(f"{name} was {before:.6g} and is {after:.6g} (tolerance {tolerance:g})")
    return sorted(faults)
