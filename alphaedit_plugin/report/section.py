"""The parts of a section of the page."""

from __future__ import annotations

from dataclasses import dataclass, field

from .figures import Picture
from .grid import Grid


@dataclass(frozen=True)
class Continuation:
    """How a model continues a fact's prompt, and whether that says the new object; longer texts as (prompt, text)."""

    variant: str
    written: str
    says: bool | None
    texts: list[tuple[str, str]]


@dataclass(frozen=True)
class Case:
    """A fact, and what the model writes about it before any edit and after the edits of each variant."""

    subject: str
    prompt: str
    target_new: str
    before: Continuation | None
    after: list[Continuation]


@dataclass(frozen=True)
class Section:
    """`grids` are shown; `folded` (summary, table or text) open on demand."""

    id: str
    title: str
    text: str = ""
    pictures: list[Picture] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    folded: list[tuple[str, Grid | str]] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    more_cases: list[Case] = field(default_factory=list)
    command: str = ""
