"""What the terminal sees: output, one-line errors, the log."""

from __future__ import annotations

import logging

from rich.console import Console
from rich.markup import escape

console = Console()


def print_error(error: Exception) -> None:
    """One line on standard error, whatever the message holds."""
    text = escape(" ".join(str(error).split()))
    Console(stderr=True).print(f"[bold red]error:[/bold red] {text}", highlight=False, soft_wrap=True)


def log_to_terminal(level: int) -> None:
    """Show what the library logs, from `level` on, on standard error."""
    from rich.logging import RichHandler

    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    logging.basicConfig(level=level, format="%(message)s", handlers=[handler])


def size(count: float) -> str:
    """A number of bytes as people read it."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
