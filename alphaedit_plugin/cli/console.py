"""What the terminal sees: output, one-line errors, the log. Nothing that is printed here can control the terminal."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.text import Text

from ..visible import visible


class VisibleConsole(Console):
    """A console that shows control characters in whatever it prints (`visible`) and sends only those that rich makes.

    Text is changed before it is measured, so that tables stay in line; and once more as it leaves, whatever it is.
    """

    def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


console = VisibleConsole()


def print_error(error: Exception) -> None:
    """One line on standard error, whatever the message holds."""
    text = escape(" ".join(str(error).split()))
    VisibleConsole(stderr=True).print(f"[bold red]error:[/bold red] {text}", highlight=False, soft_wrap=True)


def log_to_terminal(level: int) -> None:
    """Show what the library logs, from `level` on, on standard error."""
    from rich.logging import RichHandler

    handler = RichHandler(console=VisibleConsole(stderr=True), show_path=False, show_time=False)
    handler.setFormatter(_VisibleFormatter("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


class _VisibleFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def size(count: float) -> str:
    """A number of bytes as people read it."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
