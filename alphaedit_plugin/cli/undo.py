"""`alphaedit undo`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.markup import escape

from ..errors import EditError, SessionError
from .console import console
from .exporting import FAILED, SESSION, export
from .loading import resumed
from .options import Placing, Quiet, positive


def undo(
    folder: Annotated[Path, Parameter(help="What `alphaedit edit --out` wrote.")],
    /,
    *,
    batches: Annotated[
        int | None, Parameter(validator=positive, help="How many batches, latest first. Default: 1.")
    ] = None,
    fact: Annotated[
        tuple[int, ...] | None,
        Parameter(
            consume_multiple=1,
            metavar="N...",
            help="Instead: any facts, by their number in `alphaedit show`. Later batches are solved again, for the "
            "targets that they had.",
        ),
    ] = None,
    quiet: Quiet = False,
    placing: Placing = Placing(),
) -> None:
    """Take back the last batches of an edit, exactly, or single facts, and write its results anew.

    Ends with exit code 3 if what is left is not said with the rank or the GGUF type that was chosen.
    """
    from ..storage.files import check_place

    if fact is not None and batches is not None:
        raise EditError("--fact and --batches exclude each other: give one")
    check_place(folder, SessionError, folder=True)
    with resumed(folder / SESSION, placing, quiet) as session:
        undone = session.undo(batches or 1) if fact is None else session.remove(fact)
        for each in undone:
            console.print(f"undone: {escape(each.text)} → {escape(each.target_new)}")
        lost = export(session, folder)
    if lost:
        sys.exit(FAILED)
