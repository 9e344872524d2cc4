"""The names of contenders: what can be checked without loading anything."""

from __future__ import annotations

import re
from pathlib import Path

from ..baselines.names import is_baseline
from ..editors.registry import check_names
from ..errors import HyperparameterError

PLACE = re.compile(
    r"(?P<where>.+?\.py|[^@\s]+?):(?P<function>[^\W\d]\w*)(?P<changes>(@.*?)?)(?P<projected>\+[pP])?", re.DOTALL
)
"""`FILE.py:FUNCTION` or `MODULE:FUNCTION`, with `@KEY=VALUE…`, and `+P` to project it."""


def is_place(text: str) -> bool:
    """Whether `text` names a function by its file or module."""
    return PLACE.fullmatch(text.strip()) is not None


def names_in(text: str) -> list[str]:
    """The names in one word: commas and spaces separate them, but not in brackets, nor in the path of a file."""
    place = PLACE.fullmatch(text.strip())
    if place is not None and Path(place["where"]).expanduser().is_file():
        return [text.strip()]
    return [name for name in re.split(r"[,\s]+(?![^\[{]*[\]}])", text) if name]


def check_name(text: str) -> None:
    """Raises HyperparameterError, naming the nearest method, if `text` cannot be a contender's name."""
    if is_baseline(text):
        return
    if place := PLACE.fullmatch(text.strip()):
        where = place["where"]
        if where.endswith(".py") and not Path(where).expanduser().is_file():
            raise HyperparameterError(f"there is no file {where}: an editor is FILE.py:FUNCTION")
        return
    if text.partition("@")[0].partition("+")[0].strip().endswith(".py"):
        raise HyperparameterError(f"{text!r} names a file and no function in it: write FILE.py:FUNCTION")
    check_names(text)
