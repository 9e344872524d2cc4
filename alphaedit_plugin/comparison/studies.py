"""The paper's studies, as presets of `alphaedit compare`."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

from ..errors import CompareError
from ..evaluation.facts import Fact

ALL_METHODS = ("rome", "rome+P", "memit", "memit+P", "prune", "prune+P", "rect", "rect+P", "alphaedit")
STUDIED_THRESHOLDS = ("1e-3", "5e-3", "1e-2", "2e-2", "5e-2", "1e-1")
REGULARISATIONS = ("0.1", "1", "10", "100", "1000")
SHARES = tuple(tenths / 10 for tenths in range(1, 11))

# What a frontier is swept over: λ by the name that a method gives it, the length of targets, what counts as null.
FRONTIER_WEIGHTS = {
    "mom2_update_weight": ("0", "100", "1000", "10000"),
    "L2": ("0", "10", "100", "1000"),
}
FRONTIER_CLAMPS = ("0.4", "0.75")
FRONTIER_THRESHOLDS = ("1e-2", "2e-2", "5e-2", "1e-1")


@dataclass(frozen=True)
class Plan:
    """The options that a study may set; None means not set."""

    methods: tuple[str, ...] | None = None
    edits: int | None = None
    every: int | None = None
    texts: int | None = None

    def over(self, other: Plan) -> Plan:
        """This plan, with unset options taken from the other."""
        return replace(other, **{f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None})


@dataclass(frozen=True)
class Study:
    """A plan for all options that the user leaves open, and functions that change methods and facts.

    `methods` also gets the number of tokens of text; with `shares_text`, a tenth of it must still fill a covariance.
    With `targets_once` all variants write the same targets, found on the unedited model.
    """

    meaning: str
    plan: Plan = Plan()
    methods: Callable[[Sequence[str], int], Sequence[str]] = lambda methods, tokens: methods
    facts: Callable[[Sequence[Fact]], Sequence[Fact]] = lambda facts: facts
    shares_text: bool = False
    targets_once: bool = False
    several_models: bool = False


def _with(key: str, values: Sequence[str]) -> Callable[[Sequence[str], int], Sequence[str]]:
    """Each method with each value of a hyperparameter."""

    def expand(methods: Sequence[str], tokens: int) -> list[str]:
        return [_changed(method, key, value) for method in methods for value in values]

    return expand


def _with_less_text(methods: Sequence[str], tokens: int) -> list[str]:
    return [_changed(method, "tokens", str(round(share * tokens))) for method in methods for share in SHARES]


def _over_its_settings(methods: Sequence[str], tokens: int) -> list[str]:
    """Each method with every λ and clamp, and if it is projected with every threshold.

    Raises CompareError for a method without a λ, and for one that sets what is swept.
    """
    from ..editors.registry import find_method  # here, so that a command's help loads no torch
    from ..editors.variant import Variant

    found = []
    for method in methods:
        variant = Variant.parse(method)
        key = find_method(variant.solver).editor.regularised_by
        if key is None:
            raise CompareError(f"the study of frontiers sweeps λ, and {method} has none: leave it out")
        swept = [(key, FRONTIER_WEIGHTS[key]), ("clamp_norm_factor", FRONTIER_CLAMPS)]
        swept += [("nullspace_threshold", FRONTIER_THRESHOLDS)] * variant.projected
        if given := [setting for setting, _ in swept if setting in dict(variant.changes)]:
            raise CompareError(
                f"{method}: the study of frontiers sweeps {given[0]} by itself: leave it out of the name"
            )
        names = [method]
        for setting, values in swept:
            names = [_changed(name, setting, value) for name in names for value in values]
        found += names
    return found


def _changed(method: str, key: str, value: str) -> str:
    """The method with a changed hyperparameter, which comes after the solver's name and before suffixes."""
    head, plus, suffixes = method.partition("+")
    return f"{head}@{key}={value}{plus}{suffixes}"


def of_frequent_relations(facts: Sequence[Fact], least: int = 5) -> list[Fact]:
    """The facts whose relation has at least `least` facts, each relation spread evenly over the sequence.

    Raises CompareError if there is no such relation.
    """
    of_relation: dict[str, list[Fact]] = {}
    for fact in facts:
        of_relation.setdefault(fact.relation, []).append(fact)
    frequent = [group for relation, group in of_relation.items() if relation and len(group) >= least]
    if not frequent:
        raise CompareError(f"no relation has {least} facts: the study of relations needs a data set that names them")
    placed = [(place / len(group), fact) for group in frequent for place, fact in enumerate(group)]
    return [fact for _, fact in sorted(placed, key=lambda pair: pair[0])]


STUDIES = {
    "sequential": Study("metrics and capability as edits accumulate", Plan(every=100)),
    "relations": Study("facts of frequent relations, one by one (C.4)", facts=of_frequent_relations),
    "corpus-size": Study(
        "covariances from 10 % to all of the text (C.8)",
        Plan(methods=("alphaedit",)),
        methods=_with_less_text,
        shares_text=True,
    ),
    "runtime": Study("seconds of every method (C.9)", Plan(methods=ALL_METHODS, edits=50)),
    "threshold": Study(
        "what counts as null", Plan(methods=("alphaedit",)), methods=_with("nullspace_threshold", STUDIED_THRESHOLDS)
    ),
    "L2": Study("AlphaEdit's λ", Plan(methods=("alphaedit",)), methods=_with("L2", REGULARISATIONS)),
    "frontier": Study(
        "what is written against what is kept, over λ, clamp and threshold",
        Plan(methods=("memit", "memit+P", "alphaedit"), edits=100),
        methods=_over_its_settings,
        targets_once=True,
    ),
    "models": Study("the same on every model of --models (C.6)", several_models=True),
    "cases": Study("what the model writes before and after (C.1)", Plan(edits=20, texts=20)),
}


def study_named(name: str | None) -> Study:
    """The study of this name; None means no study. Raises CompareError for an unknown name."""
    if name is None:
        return Study("")
    if name not in STUDIES:
        raise CompareError(f"there is no study {name!r}; known are {', '.join(STUDIES)}")
    return STUDIES[name]


def sampled(facts: Sequence[Fact], count: int, seed: int | None) -> list[Fact]:
    """The first `count` facts, in the file's order or in the order that the seed determines."""
    order = list(facts) if seed is None else random.Random(seed).sample(list(facts), len(facts))
    return order[:count]
