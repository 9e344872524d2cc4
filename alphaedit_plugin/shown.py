"""Results that show themselves: one table for terminal, `repr` and notebook, in which nothing is hidden."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from .visible import visible

WIDTH = 100
"""Of a table that no terminal limits."""
_HTML = (
    '<pre style="white-space: pre; overflow-x: auto; line-height: normal; '
    "font-family: Menlo, 'DejaVu Sans Mono', Consolas, monospace\">{code}</pre>"
)


class VisibleConsole(Console):
    """A console that shows control characters in whatever it prints (`visible`) and sends only those that rich makes.

    Text is changed before it is measured, so that tables stay in line; and once more as it leaves, whatever it is.
    """

    def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


class Shown:
    """What rich can print (`__rich__` or `__rich_console__`): `repr` and a notebook show the same, `WIDTH` wide."""

    def __repr__(self) -> str:
        lines = _drawn(self).export_text().splitlines()
        return "\n".join(line.rstrip() for line in lines).strip("\n")

    def _repr_html_(self) -> str:
        return _drawn(self).export_html(inline_styles=True, code_format=_HTML)


def _drawn(shown: Shown) -> Console:
    # In a notebook, rich would by itself show what is only to be drawn here.
    console = VisibleConsole(file=io.StringIO(), width=WIDTH, record=True, force_jupyter=False, force_terminal=False)
    console.print(shown)
    return console


def one_line(words: str) -> str:
    """What a model writes may hold anything; a cell of a table has one line for it."""
    return " ".join(words.split()) or repr(words)


def percent(probability: float) -> str:
    """With as many digits as tell it from none and from all."""
    value = 100 * probability
    if 0 < value < 0.01:
        return "< 0.01 %"
    return f"{value:.2f} %" if value < 1 else f"{value:.1f} %"
