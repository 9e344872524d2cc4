"""What an evaluation knows of a fact beside the request that writes it."""

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
    """Requests with what shows whether they took and what they broke. A field is empty where a data set has no such.

    `requests` are written together: one, but MQuAKE's cases have several. `target_true` is the old object;
    `paraphrases` are other ways to ask for the new one. `neighbours` are prompts about other subjects of which the
    old object is true, before the edit and after it. `locality` are prompts whose answers must not change,
    `portability` those that must follow from the new fact, both by kind; `questions` are asked over several hops, and
    `hops` are these one by one. `generation` are prompts to write from. `relation` and `target_id` are Wikidata's
    property and new object.
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
        """The first, and as a rule the only one."""
        return self.requests[0]
