"""Files of rows, read exactly: no word means null, no quote is guessed, no row is left out silently."""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow
import pyarrow.parquet

from asa_mini.errors import DataFileError, InputError

SUFFIXES = {
    ".csv": "csv",
    ".tsv": "quoted_tsv",
    ".jsonl": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".conll": "conll",
    ".txt": "lines",
}


class Row(NamedTuple):
    """One row of a file: its values by column, and where it stands, for messages."""

    path: Path
    number: int
    values: dict
    unit: str = "line"
    step: int = 0  # lines from one word to the next

    def where(self, word: int = 0) -> str:
        return f"{self.path}, {self.unit} {self.number + self.step * word}"


def read_rows(
    path: Path,
    format: str | None = None,
    columns: Sequence[str] = (),
    header: Sequence[str] = (),
    key: str = "",
) -> list[Row]:
    """All rows of one file.

    Args:
        format: csv, quoted_tsv: as RFC 4180 says, with a header; tsv: tab-separated, quotes are text; jsonl:
            an object a line; json: the same, or one list of objects (`key`: its place in an outer object);
            parquet; conll: a word a line, its tag last, sentences apart by empty lines (documents by
            -DOCSTART-, which is no sentence); dream: the JSON of that corpus; lines: a text a line.
            Default: by the file's suffix, see SUFFIXES.
        columns: of a tsv, by position, a last "*" for any more; () takes its header's. Of conll: those too,
            () takes any number of them and calls the first one tokens, the last one label.
        header: what the first line of a tsv with `columns` must say; () means that it has none.

    Raises:
        DataFileError: there is no such file. InputError: it cannot be read; the message names the line.
    """
    if not path.is_file():
        raise DataFileError(f"{path} is missing")
    format = format or SUFFIXES.get(path.suffix.lower())
    if format is None:
        raise InputError(f"{path} has an unknown suffix; its name must end in one of {', '.join(SUFFIXES)}")
    readers: dict[str, Callable[[], Iterable[Row]]] = {
        "csv": lambda: _quoted(path, ","),
        "quoted_tsv": lambda: _quoted(path, "\t"),
        "tsv": lambda: _tsv(path, columns, header),
        "jsonl": lambda: _json_lines(path),
        "json": lambda: _json(path, key),
        "parquet": lambda: _parquet(path),
        "conll": lambda: _conll(path, columns),
        "dream": lambda: _dream(path),
        "lines": lambda: (Row(path, n, {"text": line}) for n, line in enumerate(_lines(path), start=1)),
    }
    rows = list(readers[format]())
    if not rows:
        raise InputError(f"{path} is empty; it needs one row for each text")
    return rows


def parallel_rows(paths: Sequence[Path], columns: Sequence[str]) -> list[Row]:
    """Rows of files that hold one column each, a value a line."""
    files = [read_rows(path, "lines") for path in paths]
    if len({len(rows) for rows in files}) > 1:
        counts = ", ".join(f"{path} {len(rows)}" for path, rows in zip(paths, files, strict=True))
        raise InputError(f"these files belong together line by line, but differ in lines: {counts}")
    values = ([row.values["text"] for row in rows] for rows in zip(*files, strict=True))
    made = (dict(zip(columns, row, strict=True)) for row in values)
    return [Row(paths[0], n, row) for n, row in enumerate(made, start=1)]


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # a byte-order mark is no text
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}") from error


def _lines(path: Path) -> list[str]:
    text = _text(path).removesuffix("\n")
    return [line.removesuffix("\r") for line in text.split("\n")] if text else []


def _row(path: Path, number: int, cells: list[str], names: Sequence[str]) -> Row:
    open_ended = names[-1] == "*"
    if len(cells) < len(names) - open_ended or (len(cells) > len(names) and not open_ended):
        needed = f"{len(names) - open_ended}: {', '.join(names)}"
        raise InputError(f"{path}, line {number} has {len(cells)} column(s); it needs {needed}")
    return Row(path, number, dict(zip(names, cells, strict=False)))


def _tsv(path: Path, columns: Sequence[str], header: Sequence[str]) -> Iterator[Row]:
    lines = iter(enumerate(_lines(path), start=1))
    if header or not columns:
        found = next(lines, (1, ""))[1].split("\t")
        if header and found != list(header):
            needed = f"the header must be {', '.join(header)}, separated by tabs"
            raise InputError(f"{path}, line 1: {needed}, but is {', '.join(found)}")
        columns = columns or _checked_header(path, found)
    for number, line in lines:
        yield _row(path, number, line.split("\t"), columns)


def _quoted(path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # a text may be long
    reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)
    names, last = None, 0
    try:
        for cells in reader:
            number, last = last + 1, reader.line_num
            if names is None:
                names = _checked_header(path, cells)
            else:
                yield _row(path, number, cells, names)
    except csv.Error as error:
        way = 'a cell that holds a quote or a delimiter needs quotes around it, and each " in it twice'
        raise InputError(f"{path}, line {last + 1}: {error}; {way}") from error


def _checked_header(path: Path, names: list[str]) -> list[str]:
    if len({*names}) < len(names) or "" in names:
        raise InputError(f"{path}, line 1: each column needs a name of its own, but they are {names}")
    return names


def _object(path: Path, number: int, value, unit: str = "line") -> Row:
    if not isinstance(value, dict):
        raise InputError(f"{path}, {unit} {number}: this must be a JSON object, but is {str(value)[:60]!r}")
    return Row(path, number, value, unit)


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), start=1):
        yield _object(path, number, _parsed(line, f"{path}, line {number}"))


def _json(path: Path, key: str) -> Iterable[Row]:
    if not key and not _text(path).lstrip().startswith("["):
        return _json_lines(path)
    content = _parsed(_text(path), str(path))
    if key:
        content = content.get(key) if isinstance(content, dict) else None
    if not isinstance(content, list):
        raise InputError(f"{path} must hold a list of objects" + (f" under {key!r}" if key else ""))
    return (_object(path, number, value, "row") for number, value in enumerate(content, start=1))


def _parsed(text: str, where: str):
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{where}: this is no JSON: {error}") from error


def _parquet(path: Path) -> Iterator[Row]:
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise InputError(f"{path} is no Parquet file: {error}") from error
    return (Row(path, number, values, "row") for number, values in enumerate(rows, start=1))


def _conll(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    def sentence() -> Row:
        words, *_, tags = zip(*lines, strict=True)
        return Row(path, start, {names[0]: list(words), names[-1]: list(tags)}, step=1)

    names = columns or ("tokens", "label")
    start, lines, width = 0, [], len(columns)
    for number, line in enumerate([*_lines(path), ""], start=1):
        if not line.strip() or line.startswith("-DOCSTART-"):
            if lines:
                yield sentence()
            lines = []
            continue
        cells = line.split("\t" if "\t" in line else " ")
        width = width or len(cells)
        if len(cells) != width or width < 2 or not all(cells):
            needed = f"a word and its tag in {max(width, 2)} columns, apart by a tab or a space"
            raise InputError(f"{path}, line {number} is {line!r}; it needs {needed}")
        start = start if lines else number
        lines.append(cells)


def _dream(path: Path) -> Iterator[Row]:
    """Of [[sentences, [{question, choice, answer}, ...], id], ...] one row a question."""
    content = _parsed(_text(path), str(path))
    for number, dialogue in enumerate(content if isinstance(content, list) else [None], start=1):
        try:
            sentences, questions, name = dialogue
            rows = [
                {"dialogue_id": name, "dialogue": sentences}
                | {column: question[column] for column in ("question", "choice", "answer")}
                for question in questions
            ]
        except KeyError as error:
            raise InputError(f"{path}, dialogue {number}: a question has no {error}") from error
        except (TypeError, ValueError) as error:
            needed = "it needs a list of sentences, a list of questions and a name"
            raise InputError(f"{path}, dialogue {number} is broken: {needed}") from error
        yield from (Row(path, number, row, "dialogue") for row in rows)
