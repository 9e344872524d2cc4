"""What JSON values must look like: types and ranges, for files that may have been touched since they were written."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import AlphaEditError

Shape = Any
"""A type (`float`: any number), None, a predicate such as `amount`, or a tuple of these, one of which must fit; a list
of one shape, for values that all have it; or a mapping. A mapping's keys are names that must be there (with a "?"
behind: may be there), or `str` or `int`, for any number of keys that are text or text of digits."""


def check_shape(values: Any, shape: Shape, what: str, error: type[AlphaEditError]) -> None:
    """Raises `error`, which begins with `what` and names the key, for the first value that does not fit."""
    _check(values, shape, "", lambda message: error(f"{what} is damaged: {message}"))


def _check(value: Any, shape: Shape, place: str, refused: Callable[[str], AlphaEditError]) -> None:
    if isinstance(shape, Mapping):
        if not isinstance(value, Mapping):
            raise refused(f"{place or 'it'} is no mapping")
        for key, inner in shape.items():
            if isinstance(key, str):
                name = key.removesuffix("?")
                if name in value:
                    _check(value[name], inner, f"{place}.{name}".lstrip("."), refused)
                elif name == key:
                    raise refused(f"{place or 'it'} has no {name}")
                continue
            for each, of in value.items():
                if key is int and not re.fullmatch(r"[0-9]{1,18}", each):
                    raise refused(f"{place} has the key {each[:40]!r}")
                _check(of, inner, f"{place}.{each}".lstrip("."), refused)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise refused(f"{place or 'it'} is no list")
        for index, each in enumerate(value):
            _check(each, shape[0], f"{place}[{index}]", refused)
    elif not any(_fits(value, one) for one in (shape if isinstance(shape, tuple) else (shape,))):
        raise refused(f"{place or 'it'} is {repr(value)[:80]}")


def _fits(value: Any, shape: Shape) -> bool:
    if shape is None or shape is bool:
        return value is None if shape is None else isinstance(value, bool)
    if isinstance(shape, type):
        return isinstance(value, (int, float) if shape is float else shape) and not isinstance(value, bool)
    return bool(shape(value))


def amount(value: Any) -> bool:
    """A finite number of at least 0."""
    return ratio(value) and math.isfinite(value)


def ratio(value: Any) -> bool:
    """A number that is not below 0; infinite or nan where it is relative to nothing."""
    return _fits(value, float) and not value < 0


def digest(value: Any) -> bool:
    """A SHA-256 in hexadecimal."""
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None
