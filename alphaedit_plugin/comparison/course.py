"""The facts of a comparison in their order, the batches they are written in, and where the sequence is measured."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

from ..editors.requests import Request, check_consistent
from ..errors import RequestError
from ..evaluation.facts import Fact
from .run_folder import identity_of


@dataclass(frozen=True)
class Checkpoint:
    """A point where the sequence is measured, as a number of facts, of batches and of requests."""

    facts: int
    batches: int
    edits: int


@dataclass(frozen=True)
class Course:
    """The sequence for every contender: `facts` in batches of `batch_size` facts (for MQuAKE: cases, of several
    requests each), measured at the end and after every `every` facts.

    With `targets_once` every fact's z* is found on the unedited model, once for all contenders, instead of on each
    one's model as it is when the fact's turn comes.
    """

    facts: tuple[Fact, ...]
    batch_size: int
    every: int | None = None
    targets_once: bool = False

    def __post_init__(self) -> None:
        """Raises RequestError for no facts, for empty batches, and for a batch that contradicts itself."""
        if not self.facts:
            raise RequestError("there are no facts to edit: give at least one")
        if self.batch_size < 1 or (self.every is not None and self.every < 1):
            raise RequestError("a batch, and what is written between two checkpoints, hold at least one fact")
        named = [[(f"fact {index}", request) for request in fact.requests] for index, fact in enumerate(self.facts)]
        for start in range(0, len(named), self.batch_size):
            check_consistent(itertools.chain(*named[start : start + self.batch_size]))

    @cached_property
    def batches(self) -> list[list[Request]]:
        size = self.batch_size
        return [
            [request for fact in self.facts[i : i + size] for request in fact.requests]
            for i in range(0, len(self.facts), size)
        ]

    @cached_property
    def checkpoints(self) -> list[Checkpoint]:
        return checkpoints_of(self.facts, self.batch_size, self.every)

    @cached_property
    def by_batch(self) -> dict[int, Checkpoint]:
        """number of batches → the checkpoint after that batch."""
        return {at.batches: at for at in self.checkpoints}

    @cached_property
    def order(self) -> list[str]:
        """The identities of the facts."""
        return [identity_of(asdict(fact)) for fact in self.facts]


def checkpoints_of(facts: Sequence[Fact], batch_size: int, every: int | None = None) -> list[Checkpoint]:
    """The end of the sequence and, before it, the end of the batch that completes each `every` facts."""
    wanted = {len(facts), *(range(every, len(facts), every) if every else ())}
    found = {}
    for count in sorted(wanted):
        batches = -(-count // batch_size)
        whole = min(batches * batch_size, len(facts))
        found[batches] = Checkpoint(whole, batches, sum(len(fact.requests) for fact in facts[:whole]))
    return list(found.values())
