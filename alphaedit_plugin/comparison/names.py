"""The names of contenders: what can be checked without loading anything."""

from __future__ import annotations

import re
from pathlib import Path

from ..baselines.names import is_baseline
from ..editors.changes import parse_changes
from ..editors.registry import check_names, split
from ..errors import HyperparameterError

_MARKS = r"(?P<marks>(\+[a-zA-Z][\w-]*)*)"
PLACE = re.compile(
    r"(?P<where>.+?\.py|[^@\s]+?):(?P<function>[^\W\d]\w*)(?P<changes>(@.*?)?)" + _MARKS,
    re.DOTALL,
)
"""`FILE.py:FUNCTION` or `MODULE:FUNCTION`, with `@KEY=VALUE…`, and what it is held to: `+P`, `+revive`, `+crisp`."""
KEY = re.compile(r"(?P<name>.*?)" + _MARKS, re.DOTALL)
"""A name that a user gives to a function, and what it is held to."""
IN_CONTEXT = "in-context"
RETRIEVALS = ("given", "tfidf")
"""How the contender `in-context` finds the fact that a prompt is about; the first is the default."""


def is_in_context(text: str) -> bool:
    """Whether `text` names the contender that is told the facts instead of being taught them."""
    return re.split("[@+]", text)[0].strip().lower() == IN_CONTEXT


def retrieval_in(text: str) -> str:
    """One of RETRIEVALS, of `in-context[@retrieve=…]`. Raises HyperparameterError for any other setting, and for +P."""
    _, changed, marks = split(text)
    if marks:
        raise HyperparameterError(
            f"{text!r}: {IN_CONTEXT} writes no weight that +{marks[0]} could change: leave it out"
        )
    changes = parse_changes(changed, text)
    retrieve = changes.pop("retrieve", RETRIEVALS[0])
    if changes or retrieve not in RETRIEVALS:
        raise HyperparameterError(
            f"{text!r}: {IN_CONTEXT} has one setting, @retrieve={' or @retrieve='.join(RETRIEVALS)}"
        )
    return str(retrieve)


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
    if is_in_context(text):
        retrieval_in(text)
        return
    if place := PLACE.fullmatch(text.strip()):
        where = place["where"]
        if where.endswith(".py") and not Path(where).expanduser().is_file():
            raise HyperparameterError(f"there is no file {where}: an editor is FILE.py:FUNCTION")
        return
    if text.partition("@")[0].partition("+")[0].strip().endswith(".py"):
        raise HyperparameterError(f"{text!r} names a file and no function in it: write FILE.py:FUNCTION")
    check_names(text)
