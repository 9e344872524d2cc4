"""What the terminal sees: output, one-line errors, the log. Nothing that is printed here can control the terminal."""

from __future__ import annotations

import logging
import sys

from rich.logging import RichHandler
from rich.markup import escape

from ..shown import VisibleConsole
from ..visible import visible

console = VisibleConsole()


def print_error(error: Exception) -> None:
    """One line on standard error, whatever the message holds."""
    text = escape(" ".join(str(error).split()))
    VisibleConsole(stderr=True).print(f"[bold red]error:[/bold red] {text}", highlight=False, soft_wrap=True)


def log_to_terminal(level: int) -> None:
    """Show what the library logs, from `level` on, on standard error."""
    handler = _Above(console=VisibleConsole(stderr=True), show_path=False, show_time=False)
    handler.setFormatter(_VisibleFormatter("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


class _Above(RichHandler):
    """Writes above the progress bars there are, which move down, and not through them."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        with tqdm.external_write_mode(sys.stderr):
            super().emit(record)


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
