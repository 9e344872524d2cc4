"""`alphaedit undo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.markup import escape

from ..errors import EditError, SessionError
from .console import console
from .exporting import SESSION, export
from .loading import resumed
from .options import Placing, Quiet

if TYPE_CHECKING:
    from ..editors.requests import Request
    from ..session.session import Session


def undo(
    folder: Annotated[Path, Parameter(help="What `alphaedit edit --out` wrote.")],
    /,
    *,
    batches: Annotated[int, Parameter(help="How many batches, latest first.")] = 1,
    fact: Annotated[
        tuple[int, ...] | None,
        Parameter(
            consume_multiple=1,
            metavar="N...",
            help="Instead: any facts, by their number, from 1 in the order they were written. Later batches are solved "
            "again, for the targets that they had.",
        ),
    ] = None,
    quiet: Quiet = False,
    placing: Placing = Placing(),
) -> None:
    """Take back the last batches of an edit, exactly, or single facts, and write its results anew."""
    from ..storage.files import check_place

    check_place(folder, SessionError, folder=True)
    with resumed(folder / SESSION, placing, quiet) as session:
        undone = session.undo(batches) if fact is None else session.remove([numbered(session, n) for n in fact])
        for each in undone:
            console.print(f"undone: {escape(each.text)} → {escape(each.target_new)}")
        export(session, folder)


def numbered(session: Session, number: int) -> Request:
    """A session's fact by its number, from 1. Raises EditError if there is none."""
    if not 1 <= number <= len(session.facts):
        raise EditError(f"there is no fact {number}: the session holds {len(session.facts)}")
    return session.facts[number - 1]
