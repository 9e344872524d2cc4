"""All kinds of faults."""

from __future__ import annotations

from collections.abc import Sequence

from .flips import FLIPS
from .interrupts import Interrupts
from .kills import Kills
from .kind import Kind

KINDS: tuple[type[Kind], ...] = (Kills, Interrupts, *FLIPS)


def chosen(names: Sequence[str]) -> list[type[Kind]]:
    """The kinds whose names begin with one of these; all for none. Raises SystemExit for a name of no kind."""
    for name in names:
        if not any(kind.name.startswith(name) for kind in KINDS):
            raise SystemExit(f"there is no kind {name}: {', '.join(kind.name for kind in KINDS)}")
    return [kind for kind in KINDS if not names or any(kind.name.startswith(name) for name in names)]
