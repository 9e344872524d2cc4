"""Lists of JSON records; an error names the file, the record and the field."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import RequestError

Json = Mapping[str, Any]


def read_records(path: Path, what: str) -> Sequence[Any]:
    """Read a JSON list, or one JSON record per line, in the file's order.

    A line that is not JSON becomes a ValueError in the place of its record; `mapping` reports it.

    Raises RequestError, naming the file, if it cannot be read or holds no list of records.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        lines = [line for line in text.split("\n") if line.strip()]
        by_line = path.suffix == ".jsonl" or (len(lines) > 1 and lines[0].startswith("{") and lines[0].endswith("}"))
        records = list(map(decoded, lines)) if by_line else json.loads(text)
    except (OSError, ValueError, RecursionError) as failure:
        raise RequestError(f"cannot read {what} from {path}: {failure}") from failure
    if not isinstance(records, list) or not records:
        raise RequestError(f"{path} holds no list of {what}")
    return records


def decoded(text: str) -> Any:
    """The decoded JSON value, or the ValueError that decoding raised; also for what is nested too deeply."""
    try:
        return json.loads(text)
    except ValueError as failure:
        return failure
    except RecursionError as failure:
        return ValueError(str(failure))


def mapping(record: Any, name: str) -> Json:
    """The record itself. Raises RequestError, naming the record, if it is not a mapping, or if a text in it holds half
    a character, of which no tokenizer can make tokens.
    """
    if isinstance(record, ValueError):
        raise RequestError(f"{name} is not JSON: {record}")
    if not isinstance(record, Mapping):
        raise RequestError(f"{name} is a {type(record).__name__}, not a mapping")
    left: list[Any] = [record]
    while left:
        match left.pop():
            case str() as text:
                check_whole(text, name)
            case Mapping() as inner:
                left += [*inner, *inner.values()]
            case list() | tuple() as values:
                left += values
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
