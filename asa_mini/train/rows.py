"""From rows as they were read to the columns of a task: labels get numbers, and every row is checked."""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence

from asa_mini.errors import InputError
from asa_mini.train.planting import check_text
from asa_mini.train.reading import Row
from asa_mini.train.tasks import TASKS, Task

Columns = dict[str, list]  # label; text, text_pair, tokens or choices; group; position of a planted word


def complete(task: Task, rows: dict[str, list[Row]]) -> Task:
    """The task with its columns, kind and labels, as the training set (else the first set) has them.

    Texts are by default in the column `text`, else `tokens` or `sentence`. Lists of words with lists of
    labels are tokens, a column of choices is multiple choice, other lists of labels are multi-label, numbers
    with a decimal point are regression, all else is classification. The labels are sorted: whole numbers as
    numbers, names as text.

    Raises:
        InputError: a column is not there, or all labels are the same.
    """
    known = rows.get("train") or next(iter(rows.values()))
    first = _values(task, known[0])
    if not task.text:
        text = next((name for name in ("text", "tokens", "sentence") if name in first), "text")
        task = dataclasses.replace(task, text=text)
    columns = [task.text, task.text_pair, task.label, *task.group]
    if task.kind == "multiple_choice":
        columns.append(task.choices)
    for name in filter(None, columns):
        if name not in first:
            options = {task.text: "--text_column", task.text_pair: "--text_pair_column"}
            way = f"; name it with {options.get(name, '--label_column')}" if task.name not in TASKS else ""
            raise InputError(f"{known[0].path} has no column {name!r}, only {', '.join(first)}{way}")
    if task.kind is None:
        task = dataclasses.replace(task, kind=_kind(task, known))
    if task.labels or task.kind in ("regression", "multiple_choice"):
        return task
    labels = [_labels(task, row) for row in known]
    found = {_name(x) for label in labels for x in (label if isinstance(label, list) else [label])}
    found.discard("")  # no name: a row that has it is refused
    if len(found) < 2:
        raise InputError(f"{known[0].path}: every label in column {task.label!r} is {', '.join(found)!r}")
    numbers = all(name.removeprefix("-").isdecimal() for name in found)
    return dataclasses.replace(task, labels=tuple(sorted(found, key=int if numbers else str)))


def standard_columns(task: Task, rows: Sequence[Row], by_number: bool = True) -> Columns:
    """The columns of a complete task; InputError names file and line of a row that does not fit.

    Args:
        by_number: a label may be a number instead of a name.
    """
    numbers = _numbers(task.labels, by_number)
    made = [_example(task, row, numbers) for row in rows]
    counts = {len(example["choices"]) for example in made if "choices" in example}
    if len(counts) > 1:
        raise InputError(f"{rows[0].path}: each row needs the same number of choices, but they have {counts}")
    return {name: [example[name] for example in made] for name in made[0]}


def _example(task: Task, row: Row, numbers: dict[str, int]) -> dict:
    values, where = _values(task, row), row.where()
    text, label = values.get(task.text), _labels(task, row, values)
    example = {}
    if task.kind == "tokens":
        words = text if isinstance(text, list) else [text]
        for place, word in enumerate(words):
            check_text(word, row.where(place), "word")
        if not words or not isinstance(label, list) or len(words) != len(label):
            raise InputError(f"{where}: it needs a list of words and a list with the label of each")
        example["tokens"] = words
    else:
        example["text"] = check_text(text, where)
    if task.text_pair:
        example["text_pair"] = check_text(values.get(task.text_pair), where, "second text")
    if task.kind == "multiple_choice":
        choices = values.get(task.choices)
        if not isinstance(choices, list) or len(choices) < 2:
            raise InputError(f"{where}: column {task.choices!r} must hold a list of two texts or more")
        example["choices"] = [check_text(choice, where, "choice") for choice in choices]
        numbers = _numbers(map(str, range(len(choices))))
    if task.kind == "regression":
        example["label"] = _score(task, label, where)
    elif task.kind in ("tokens", "multi_label"):
        if not isinstance(label, list):
            raise InputError(f"{where}: the labels are {label!r}; they must be a list")
        example["label"] = [_number(x, numbers, row.where(place)) for place, x in enumerate(label)]
    else:
        example["label"] = _number(label, numbers, where)
    if task.group:
        example["group"] = ", ".join(str(values[name]) for name in task.group)
    if "position" in task.columns:
        example["position"] = position = int(values["position"]) if values["position"].isdecimal() else -1
        if position not in range(len(text.split())):
            raise InputError(f"{where}: no word of the text has the position {values['position']!r}, from 0")
    return example


def _values(task: Task, row: Row) -> dict:
    try:
        return task.convert(row.values) if task.convert else row.values
    except KeyError as error:
        raise InputError(f"{row.where()}: there is no {error}, only {', '.join(row.values)}") from error


def _labels(task: Task, row: Row, values: dict | None = None):
    """The label as it stands; of multi-label sets in a table, the list that the cell holds as JSON."""
    label = (values or row.values).get(task.label)
    if task.kind == "multi_label" and isinstance(label, str):
        try:
            return json.loads(label)
        except ValueError as error:
            way = 'a JSON list such as ["a", "b"]'
            raise InputError(f"{row.where()}: the labels are {label!r}; they must be {way}") from error
    return label


def _kind(task: Task, rows: Sequence[Row]) -> str:
    values = [_values(task, row) for row in rows]
    if all(isinstance(value.get(task.text), list) for value in values):
        return "tokens"
    if task.choices in values[0]:
        return "multiple_choice"
    labels = [value.get(task.label) for value in values]
    if all(isinstance(label, list) or str(label).startswith("[") for label in labels):
        return "multi_label"
    fractions = any(isinstance(label, float) or "." in str(label) for label in labels)
    return "regression" if fractions and all(map(_is_score, labels)) else "classification"


def _is_score(label) -> bool:
    try:
        return not isinstance(label, bool) and math.isfinite(float(label))
    except (TypeError, ValueError):
        return False


def _score(task: Task, label, where: str) -> float:
    low, high = task.scores or (-math.inf, math.inf)
    if not _is_score(label) or not low <= float(label) <= high:
        needed = f"a number from {low:g} to {high:g}" if task.scores else "a finite number"
        raise InputError(f"{where}: the score is {label!r}; it must be {needed}")
    return float(label)


def _name(label) -> str:
    return "" if label is None else str(label)


def _numbers(names: Iterable[str], by_number: bool = False) -> dict[str, int]:
    """Number of each label by its name, or also by that number where no name looks like one."""
    numbers = {name: number for number, name in enumerate(names)}
    if by_number and not any(name.isdecimal() for name in numbers):
        numbers |= {str(number): number for number in numbers.values()}
    return numbers


def _number(label, numbers: dict[str, int], where: str) -> int:
    number = numbers.get(_name(label))
    if number is None:
        raise InputError(f"{where}: the label is {label!r}; it must be one of {', '.join(numbers)}")
    return number
