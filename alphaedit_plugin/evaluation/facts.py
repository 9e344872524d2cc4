"""What an evaluation knows about a fact besides the request that writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..editors.requests import Request


@dataclass(frozen=True)
class Probe:
    """A prompt, and what may follow it: any of `answers`."""

    prompt: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """Requests, and what shows whether they worked and what they broke. Fields that a data set lacks are empty.

    `requests` are written together: usually one, several in MQuAKE's cases. `target_true` is the old object;
    `paraphrases` are other ways to ask for the new one. `neighbours` are prompts about other subjects for which the old
    object is true, before and after the edit. `locality` are prompts whose answers must not change, `portability`
    prompts whose answers must follow from the new fact, both by kind. `questions` need several hops, and `hops` are
    these hops one by one. `generation` are prompts to write from. `relation` and `target_id` are Wikidata's ids of the
    property and of the new object.
    """

    requests: tuple[Request, ...]
    target_true: str = ""
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    locality: Mapping[str, Sequence[Probe]] = field(default_factory=dict)
    portability: Mapping[str, Sequence[Probe]] = field(default_factory=dict)
    questions: tuple[Probe, ...] = ()
    hops: tuple[Probe, ...] = ()
    generation: tuple[str, ...] = ()
    relation: str = ""
    target_id: str = ""

    @property
    def request(self) -> Request:
        """The first request, and usually the only one."""
        return self.requests[0]

    @property
    def prompts(self) -> list[str]:
        """Every prompt that it is asked with, its requests' own first."""
        probes = [probe for kinds in (self.portability, self.locality) for kind in kinds.values() for probe in kind]
        return [
            *(request.text for request in self.requests),
            *self.paraphrases,
            *self.neighbours,
            *(probe.prompt for probe in (*probes, *self.questions, *self.hops)),
            *self.generation,
        ]
