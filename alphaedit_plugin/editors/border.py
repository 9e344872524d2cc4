"""The border between a prompt and what follows: as written, and one space between words of scripts that have spaces."""

from __future__ import annotations

import re
from unicodedata import category

UNSPACED = re.compile(
    "["
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf"  # Thai, Lao, Tibetan, Burmese, Khmer, Tai
    "\ua000-\ua4cf\ua980-\ua9df\ua9e0-\ua9ff\uaa60-\uaadf"  # Yi, Javanese, more Burmese and Tai
    "\u2e80-\u312f\u31a0-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff9f"  # Han, kana, bopomofo, and their signs
    "\U00016fe0-\U0001b2ff\U00020000-\U0003ffff"
    "]"
)
"""A character of a script that puts no spaces between words. (Korean does.)"""

_ALIKE = "\"'`*_~"
"""Marks that open and close alike, Markdown's among them."""
_CLOSING = re.compile(r"""[,.;:!?%](?!\w)|["'](?=[\s,.;:!?)\]}]|$)""")
"""What belongs to the word before it. Not so the first signs of ".NET", "'s-Hertogenbosch" or a quoted title."""


def border(prompt: str, target: str) -> str:
    """What to write between the two: a space, or nothing.

    Nothing beside whitespace: a prompt's own newline, or a target's own leading space, decides. Nothing behind an
    opening quote or bracket, or a sign that is joined to its word ("A=", "well-"); nothing before a closing one.
    Nothing where either word is of a script without spaces; behind a punctuation mark the prompt's script decides.
    """
    if not prompt or not target or prompt[-1].isspace() or target[0].isspace():
        return ""
    if category(target[0]) in ("Pe", "Pf", "Mn", "Mc") or _CLOSING.match(target):
        return ""
    if _opens(prompt) or _joins(prompt) or UNSPACED.match(prompt[-1]):
        return ""
    marked = category(prompt[-1]).startswith("P")
    word = next((letter for letter in reversed(prompt) if letter.isalpha()), "") if marked else target[0]
    return "" if UNSPACED.match(word) else " "


def _opens(prompt: str) -> bool:
    """Whether it ends in an opening bracket, or in a quote or a sign like $ that no word precedes."""
    last, kind = prompt[-1], category(prompt[-1])
    if kind == "Ps":
        return True
    if kind not in ("Pi", "Sc") and last not in f"{_ALIKE}@#":
        return False
    before = prompt.rstrip(last)[-1:]
    if before == ":":  # in JSON
        return last in "\"'"
    return not before or before.isspace() or category(before) in ("Ps", "Pi", "Pd", "Sm")


def _joins(prompt: str) -> bool:
    """Whether it ends in a hyphen, a slash, an arrow or the like that follows its word directly."""
    body = prompt
    while body and (category(body[-1]) in ("Pd", "Sm") or body[-1] in "/\\") and body[-1] != "+":  # C++ is a word
        body = body[:-1]
    return len(body) < len(prompt) and bool(body) and not body[-1].isspace()


def without_usual_space(prompt: str, target: str) -> tuple[str, str]:
    """The same text, with no space written where `border` puts one. Anything else stays as it is."""
    bare, word = prompt.rstrip(), target.lstrip()
    usual = border(bare, word) == " " and prompt + target == f"{bare} {word}"
    return (bare, word) if usual else (prompt, target)
