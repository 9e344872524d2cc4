"""The facts that a model is traced and tuned with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..evaluation.facts import Fact


def pilot(source: str | None) -> tuple[list[Fact], str]:
    """(the first facts of `source`, or of those that ship; what to call them)."""
    from ..evaluation.datasets import load_facts
    from ..storage.shipped import shipped
    from ..tuning.search import PILOT

    facts = load_facts(source or shipped("examples/facts.json"))
    return facts[:PILOT], source or "those that ship"
