"""EasyEdit prints a lot, and configures the root logger when it is imported or called."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout

from ..restoring import swapping

log = logging.getLogger(__name__)


@swapping
def hushed() -> Iterator[None]:
    """What is printed inside the block goes to our log at debug level; the root logger stays as the caller has it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with redirect_stdout(_Lines()), redirect_stderr(_Lines()):
        try:
            yield
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)


class _Lines(io.TextIOBase):
    def write(self, text: str) -> int:
        if text.strip():
            log.debug("%s", text.rstrip())
        return len(text)
