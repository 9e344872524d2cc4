"""Changes of dictionaries and attributes that can be undone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from ..restoring import swapping

_ABSENT = object()


def put(table: MutableMapping[str, Any], key: str, value: Any) -> Callable[[], None]:
    """`table[key] = value`. Returns what undoes it."""
    before = table.get(key, _ABSENT)
    table[key] = value

    def undo() -> None:
        if before is _ABSENT:
            table.pop(key, None)
        else:
            table[key] = before

    return undo


@swapping
def putting(*changes: tuple[MutableMapping[str, Any], str, Any]) -> Iterator[None]:
    """`table[key] = value` inside the block, for each (table, key, value)."""
    undo: list[Callable[[], None]] = []
    try:
        for change in changes:
            undo.append(put(*change))
        yield
    finally:
        for each in reversed(undo):
            each()


def set_attribute(owner: Any, name: str, value: Any) -> Callable[[], None]:
    """`owner.name = value`. Returns what undoes it, so that an inherited attribute is inherited again."""
    before = vars(owner).get(name, _ABSENT)
    setattr(owner, name, value)

    def undo() -> None:
        if before is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, before)

    return undo
