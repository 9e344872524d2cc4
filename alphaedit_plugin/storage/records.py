"""Lists of records in files: JSON, JSONL, CSV, TSV, YAML. An error names the file, the record and the field."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import RequestError
from .yaml_file import parsed_yaml

Json = Mapping[str, Any]


Named = tuple[str, Any]
"""A record, and what errors call it."""


def read_records(path: Path, what: str) -> Sequence[Named]:
    """The records of a file, in its order, each with its name. The suffix says which of `READERS` reads it.

    What is wrong with one record (a line that is not JSON, a row with too many cells) becomes a ValueError in its
    place; `mapping` reports it.

    Raises RequestError, naming the file, if it cannot be read or holds no records.
    """
    try:
        records = READERS.get(path.suffix.lower(), _json)(path)
    except (OSError, ValueError, RecursionError, csv.Error) as failure:
        raise RequestError(f"cannot read {what} from {path}: {failure} ({ACCEPTED})") from failure
    if not records:
        raise RequestError(f"{path} holds no {what} ({ACCEPTED})")
    return records


def numbered(source: object, records: Sequence[Any]) -> list[Named]:
    """Named by their place, counted from 0."""
    return [(f"{source}, record {index}", record) for index, record in enumerate(records)]


def _json(path: Path) -> list[Named]:
    lines = _lines(path)
    if len(lines) > 1 and lines[0].startswith("{") and lines[0].endswith("}"):
        return _by_line(path)
    return _listed(path, json.loads(_text(path)))


def _by_line(path: Path) -> list[Named]:
    return numbered(path, [decoded(line) for line in _lines(path)])


def _yaml(path: Path) -> list[Named]:
    return _listed(path, parsed_yaml(_text(path)))


def _listed(path: Path, value: Any) -> list[Named]:
    if not isinstance(value, list):
        raise ValueError("it is no list")
    return numbered(path, value)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig")


def _lines(path: Path) -> list[str]:
    return [line for line in _text(path).split("\n") if line.strip()]


def _table(path: Path) -> list[Named]:
    """A record per row under the first row's names; an empty cell is None. Raises ValueError for a header that is none.

    Rows are counted from 1, the header's, as a spreadsheet counts them.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        separator = max(",;\t", key=file.readline().count)  # spreadsheets write ";" where "," is the decimal sign
        file.seek(0)
        rows = enumerate(csv.reader(file, delimiter=separator, strict=True), start=1)
        header = [name.strip() for name in next(rows, (1, []))[1]]
        if not all(header) or len(set(header)) < len(header):
            raise ValueError("the first row must name each column, and none twice")
        return list(_rows(path, header, rows))


def _rows(path: Path, header: Sequence[str], rows: Iterator[tuple[int, list[str]]]) -> Iterator[Named]:
    for number, cells in rows:
        if not any(cell.strip() for cell in cells):
            continue
        record: Any = {name: cell or None for name, cell in zip(header, cells, strict=False)}
        if len(cells) != len(header):
            record = ValueError(
                f"has {len(cells)} cells, and the first row {len(header)}: text that holds the separator goes in quotes"
            )
        yield f"{path}, row {number}", record


READERS: Mapping[str, Callable[[Path], list[Named]]] = {
    ".json": _json,
    ".jsonl": _by_line,
    ".csv": _table,
    ".tsv": _table,
    ".yaml": _yaml,
    ".yml": _yaml,
}
"""By suffix; a file with any other is read as JSON."""
ACCEPTED = (
    "accepted are a list of records as .json or .yaml, one JSON record per line as .jsonl, and .csv or .tsv in UTF-8 "
    "whose first row names the columns"
)


def decoded(text: str) -> Any:
    """The decoded JSON value, or a ValueError that says why there is none; also for what is nested too deeply."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as failure:
        return ValueError(f"is not JSON: {failure}")


def mapping(record: Any, name: str) -> Json:
    """The record itself. Raises RequestError, naming the record, if it is not a mapping, or if a text in it holds half
    a character, of which no tokenizer can make tokens.
    """
    if isinstance(record, ValueError):
        raise RequestError(f"{name} {record}")
    if not isinstance(record, Mapping):
        raise RequestError(f"{name} is a {type(record).__name__}, not a mapping")
    left: list[Any] = [record]
    seen: set[int] = set()  # YAML can hold itself
    while left:
        value = left.pop()
        if isinstance(value, str):
            check_whole(value, name)
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            left += [*value, *value.values()] if isinstance(value, Mapping) else value
    return record


def check_whole(text: str, name: str) -> None:
    """Raises RequestError, naming the record, for a text with half a character: a surrogate without its other half."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as failure:
        half = text[failure.start]
        raise RequestError(f"{name}: {text[:80]!r} holds half a character ({half!r}): mend the record") from failure


def text_of(record: Json, key: str, name: str) -> str:
    """A text field, without spaces at its ends. Raises RequestError if it is blank or not text."""
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise RequestError(f"{name}: {key} must be text, not {value!r}")
    return value.strip()
