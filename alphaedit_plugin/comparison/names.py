"""The names of contenders: what can be checked without loading anything."""

from __future__ import annotations

import re

from ..baselines.names import is_baseline
from ..editors.registry import check_names
from ..errors import HyperparameterError

PLACE = re.compile(r"(?P<where>[^@]+?):(?P<function>[A-Za-z_]\w*)(?P<changes>(@.*?)?)(?P<projected>\+[pP])?", re.DOTALL)
"""`FILE.py:FUNCTION` or `MODULE:FUNCTION`, with `@KEY=VALUE…`, and `+P` to project it."""


def is_place(text: str) -> bool:
    """Whether `text` names a function by its file or module."""
    return PLACE.fullmatch(text.strip()) is not None


def check_name(text: str) -> None:
    """Raises HyperparameterError, naming the nearest method, if `text` cannot be a contender's name."""
    if is_baseline(text) or is_place(text):
        return
    if text.partition("@")[0].partition("+")[0].strip().endswith(".py"):
        raise HyperparameterError(f"{text!r} names a file and no function in it: write FILE.py:FUNCTION")
    check_names(text)
