"""`alphaedit ask`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..errors import AlphaEditError
from .console import console, print_error
from .loading import resumed, session_in
from .options import Placing, Quiet, positive


def ask(
    folder: Annotated[Path, Parameter(help="What `alphaedit edit --out` wrote, or a session's own folder.")],
    /,
    *prompts: Annotated[
        str, Parameter(help="What to go on from. Without any, they are read from the terminal or a pipe, line by line.")
    ],
    tokens: Annotated[int, Parameter(validator=positive, help="How many tokens are written after each.")] = 20,
    chat: Annotated[
        bool,
        Parameter(help="Ask as a user in the model's chat template. A session of `edit --chat` does so by itself."),
    ] = False,
    quiet: Quiet = False,
    placing: Placing = Placing(),
) -> None:
    """Ask the model with and without the edits, side by side.

    A prompt that is about an edited fact, or about its subject, is answered with the probabilities of the old and the
    new object too. Nothing is changed; the session may be in use.
    """
    with resumed(session_in(folder), placing, quiet, read_only=True) as session:
        if prompts:
            console.print(session.ask(prompts, tokens=tokens, chat=chat))
            return
        for prompt in _read():
            try:
                console.print(session.ask(prompt, tokens=tokens, chat=chat))
            except AlphaEditError as failure:
                if not sys.stdin.isatty():
                    raise
                print_error(failure)


def _read() -> Iterator[str]:
    """Prompts from the terminal, until an empty line; or from a pipe, whose empty lines are none."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\n") for line in sys.stdin if line.strip())
        return
    console.print("A prompt a line; an empty line ends.", style="dim")
    while prompt := _line():
        yield prompt


def _line() -> str:
    try:
        return console.input("[bold]> [/bold]")
    except EOFError:
        return ""
