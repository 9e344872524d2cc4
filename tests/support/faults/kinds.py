"""All kinds of faults."""

from __future__ import annotations

from collections.abc import Sequence

from .compare_kills import CompareKills
from .flips import FLIPS
from .fullness import Fullness
from .fuzz import Fuzz
from .guards import Guards
from .interrupts import Interrupts
from .kills import Kills
from .kind import Kind
from .races import RACES

KINDS: tuple[type[Kind], ...] = (Kills, CompareKills, Interrupts, *FLIPS, Fullness, Fuzz, *RACES, Guards)


def chosen(names: Sequence[str]) -> list[type[Kind]]:
    """The kinds whose names begin with one of these; all for none. Raises SystemExit for a name of no kind."""
    for name in names:
        if not any(kind.name.startswith(name) for kind in KINDS):
            raise SystemExit(f"there is no kind {name}: {', '.join(kind.name for kind in KINDS)}")
    return [kind for kind in KINDS if not names or any(kind.name.startswith(name) for name in names)]
