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


FORCED = "Without teacher forcing"
SEQUENCE = "Over the sequence of edits"
DIFFERENCES = "Every difference, and how sure it is"
PROJECTION = "The projection and the weights"
ABILITY = "What else the model can still do"
NUMBERS = "All numbers"
REPEAT = "Settings and reproduction"


@dataclass(frozen=True)
class Section:
    """`grids` are shown; `folded` (summary, table or text) open on demand.

    A section without a `topic` carries the verdict and is open; those of one topic are folded together, and topics
    come in the order of their first sections.
    """

    id: str
    title: str
    text: str = ""
    topic: str = ""
    pictures: list[Picture] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    folded: list[tuple[str, Grid | str]] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    more_cases: list[Case] = field(default_factory=list)
    command: str = ""
