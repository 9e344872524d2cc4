"""Facts that are told instead of taught: nothing is written into the model, and each stands before what is asked of it.

This is IKE (Zheng et al. 2023, "Can we edit factual knowledge by in-context learning?") without demonstrations, and the
bar for every method that writes weights. `in-context` is told which fact a prompt belongs to;
`in-context@retrieve=tfidf` has to find it. A prompt about another fact is told one too, the fact that it is asked with
(each of them, if it is asked with several) or the nearest: so specificity and locality show what a reminder does where
it does not belong.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

from ..editors.hyperparameters import Hyperparameters
from ..editors.reminder import Reminder
from ..editors.requests import Request
from ..errors import EditError
from ..evaluation.facts import Fact
from ..evaluation.tfidf import vectorizer
from ..nullspace.statistics import Statistics
from ..visible import visible
from .contender import Contender, Entry, Ground, Needs, Stop, Workplace
from .course import Course
from .names import IN_CONTEXT, RETRIEVALS

_WORD = r"\w+"
_TELLS = 2
"""Change this number whenever `given` or `nearest` tells something else: old measurements are then repeated."""
Told = Callable[[str], str]
"""What is told before a prompt: `told_of` some facts, or nothing."""


class InContext(Contender):
    """`in-context`, or `in-context@retrieve=tfidf`. Raises AlphaEditError if scikit-learn is needed and not there."""

    def __init__(self, retrieve: str = RETRIEVALS[0]) -> None:
        self.retrieve = retrieve
        self.name = IN_CONTEXT if retrieve == RETRIEVALS[0] else f"{IN_CONTEXT}@retrieve={retrieve}"
        if retrieve == "tfidf":
            vectorizer(self.name)

    def needs(self, ground: Ground) -> Needs:
        return Needs(Hyperparameters.derived("alphaedit", ground.model), ())

    def enter(self, ground: Ground, needs: Needs, statistics: Statistics) -> Entry:
        return _InContextEntry(ground, self.name, self.retrieve, statistics.of_layers(()))


@dataclass
class _InContextEntry(Entry):
    ground: Ground
    name: str
    retrieve: str
    statistics: Statistics
    layers = ()
    null_spaces = None
    takes_targets = True  # it has none that could be others

    def __post_init__(self) -> None:
        self.watched = self.ground.usual_layers()

    @property
    def identity(self) -> Mapping[str, Any]:
        found = {"words": _WORD, "scikit-learn": version("scikit-learn")} if self.retrieve == "tfidf" else {}
        return {
            "in_context": {
                "retrieve": self.retrieve,
                "tells": _TELLS,
                "told": told_of([Request("{} is", "This", "it")]),
                **found,
            }
        }

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"retrieve": self.retrieve}

    def run(self, course: Course, together: Sequence[Entry], place: Workplace) -> Generator[Stop, None, None]:
        place.bar.set_description(visible(self.name))
        place.bar.update(course.checkpoints[-1].edits)
        for at in course.checkpoints:
            started = time.perf_counter()
            told = (nearest if self.retrieve == "tfidf" else given)(course.facts[: at.facts])
            seconds, asked = time.perf_counter() - started, Reminder(self.ground.tokenizer, told)
            for entry in together:
                yield Stop(entry.name, at, self.ground.model, seconds, {}, {}, tokenizer=asked)


def told_of(requests: Sequence[Request]) -> str:
    """The facts, a line each, and what announces the prompt: IKE's words, after which a small model heeds them best."""
    return "".join(f"New Fact: {_sentence(request)}\n" for request in requests) + "Prompt: "


def _sentence(request: Request) -> str:
    said = f"{request.text}{request.completion}"
    return said if said.endswith((".", "!", "?")) else f"{said}."


def given(facts: Sequence[Fact]) -> Told:
    """Before each of a fact's prompts, the fact. Of facts with the same prompt the one that is taught with it counts,
    the last of several; else the first that it asks for. What only asks for other facts (neighbours, locality) is told
    all facts that it must withstand, because each fact's specificity is measured with it; of two that contradict each
    other the last.

    A prompt inside a longer one (a question behind examples) counts too, the longest; before any other nothing is told.
    """
    withstood: dict[str, dict[str, Request]] = {}
    asked: dict[str, str] = {}
    for fact in facts:
        others = {*fact.neighbours, *(probe.prompt for kind in fact.locality.values() for probe in kind)}
        for prompt in fact.prompts:
            if prompt in others:
                withstood.setdefault(prompt, {}).update({request.text: request for request in fact.requests})
            else:
                asked.setdefault(prompt, told_of(fact.requests))
    about = {prompt: told_of(list(requests.values())) for prompt, requests in withstood.items()} | asked
    about |= {request.text: told_of(fact.requests) for fact in facts for request in fact.requests}

    def told(prompt: str) -> str:
        if prompt in about:
            return about[prompt]
        inside = [known for known in about if known in prompt]
        return about[max(inside, key=len)] if inside else ""

    return cache(told)


def nearest(facts: Sequence[Fact]) -> Told:
    """Before each prompt, the fact in force whose sentence has the largest TF-IDF cosine with it.

    Of a prompt with examples only the last paragraph is compared. Nothing is told before a prompt that shares no word
    with any fact. Raises EditError for facts without any word.
    """
    in_force = {request.text: request for fact in facts for request in fact.requests}
    known = list(in_force.values())
    words = vectorizer(f"{IN_CONTEXT}@retrieve=tfidf", token_pattern=_WORD)
    try:
        vectors = words.fit_transform(map(_sentence, known))
    except ValueError as failure:
        raise EditError(f"there are no words in the facts: {failure}") from failure

    def told(prompt: str) -> str:
        alike = (vectors @ words.transform([prompt.rpartition("\n\n")[2]]).T).toarray().ravel()
        return told_of([known[alike.argmax()]]) if alike.max() > 0 else ""

    return cache(told)
