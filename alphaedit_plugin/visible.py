"""Text from outside, for a terminal or a page: characters that would control it are shown instead."""

from __future__ import annotations

import re

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and newline, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # which way text runs
    "\u2028\u2029"  # line separators
    "\ud800-\udfff]"  # halves of characters, which no UTF-8 can hold
)


def visible(text: str) -> str:
    r"""The text with each control character, except tab and newline, as Python would write it: ESC as \x1b.

    Doing it twice changes nothing.
    """
    return _CONTROLS.sub(lambda match: repr(match[0])[1:-1], text)
