"""From names to contenders, and from contenders to entries that are ready to edit a model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..baselines.names import is_baseline, parse_baseline
from ..editors.changes import parse_changes
from ..editors.variant import Variant
from ..errors import HyperparameterError, NullSpaceError
from ..nullspace.statistics import Statistics
from .contender import Contender, Entry, Ground, Needs
from .easyedits import EasyEditMethod
from .editing_function import EditingFunction
from .in_context import InContext
from .names import KEY, check_name, is_in_context, is_place, retrieval_in
from .ours import OurMethod
from .restraint import Restraint
from .results import BEFORE
from .yours import YourEditor

log = logging.getLogger(__name__)

Given = str | Callable[..., Any]
"""A contender as the user gives it: a name, or a function."""


def contender(given: Given, name: str | None = None) -> Contender:
    """`memit+P`, `easyedit:FT`, `in-context`, `my_editor.py:edit@steps=10+P`, or a function, whose name may end in what
    it is held to (`Restraint`), with the settings of that: `mine@tau=0.2+revive`.

    Raises HyperparameterError, naming the nearest method, for anything else.
    """
    if not isinstance(given, str):
        key = KEY.fullmatch(name or "")
        assert key is not None  # it matches anything
        label, settings = key["name"], {}
        if (marks := key["marks"].split("+")[1:]) and marks[0].upper() != "P":
            label, *changed = label.split("@")
            settings = parse_changes(changed, str(name))
        restraint = Restraint.parse(marks, settings, str(name))
        if settings:
            raise HyperparameterError(
                f"in {name!r}, what the function is held to has no setting {min(settings)}: give the function's own "
                "with functools.partial"
            )
        return YourEditor(EditingFunction.of(given, label or None), restraint)
    check_name(given)
    if is_baseline(given):
        return EasyEditMethod(parse_baseline(given))
    if is_in_context(given):
        return InContext(retrieval_in(given))
    if is_place(given):
        return YourEditor(*EditingFunction.parse(given))
    return OurMethod(Variant.parse(given))


def contenders(given: Sequence[Given] | Mapping[str, Given]) -> list[Contender]:
    """All of them, in order, each once. In a mapping a function goes by its key, at whose end stands what it
    is held to, such as +P.

    Raises HyperparameterError if two different ones are called alike, or a name stands under another key.
    """
    if isinstance(given, Mapping):
        chosen = [_under(name, each) for name, each in given.items()]
    else:
        chosen = _told_apart([contender(each) for each in given])
    found: dict[str, Contender] = {}
    for each in chosen:
        other = found.setdefault(each.name, each)
        if each.name in (BEFORE, "") or not _same(each, other):
            raise HyperparameterError(f"two editors cannot be called {each.name}: name them, as in {{'mine': edit}}")
    return list(found.values())


def _under(name: str, given: Given) -> Contender:
    found = contender(given, name)
    if isinstance(given, str) and contender(name).name != found.name:
        raise HyperparameterError(f"{given!r} stands under the key {name!r}: a name is its own key, a function has one")
    return found


def _told_apart(chosen: Sequence[Contender]) -> list[Contender]:
    """Files of one name are told apart by their folders."""
    yours = [each for each in chosen if isinstance(each, YourEditor)]
    alike = {each.name for each in yours for other in yours if each.name == other.name and not _same(each, other)}
    return [
        YourEditor(each.called.in_folder(), each.restraint)
        if isinstance(each, YourEditor) and each.name in alike
        else each
        for each in chosen
    ]


def _same(one: Contender, other: Contender) -> bool:
    if isinstance(one, YourEditor) and isinstance(other, YourEditor):
        return one.called.identity == other.called.identity
    return type(one) is type(other)


def prepared(chosen: Sequence[Contender], ground: Ground, *, skip_impossible: bool = False) -> list[Entry]:
    """All contenders on this model. What they need is computed together: one pass over the text per number of tokens.

    With `skip_impossible`, contenders for which nothing, or everything, is null are left out with a warning, unless
    none remains; otherwise they raise NullSpaceError. Raises HyperparameterError for contenders that cannot be compared
    in one run.
    """
    needs = {each.name: each.needs(ground) for each in chosen}
    statistics = _statistics(needs, ground)
    entries: list[Entry] = []
    failed: NullSpaceError | None = None
    for each in chosen:
        try:
            entries.append(each.enter(ground, needs[each.name], statistics[each.name]))
        except NullSpaceError as failure:
            if not skip_impossible:
                raise
            failed = failure
            log.warning("%s is left out: %s", each.name, failure)
    if failed is not None and not entries:
        raise failed
    return entries


def _statistics(needs: Mapping[str, Needs], ground: Ground) -> dict[str, Statistics]:
    none = dict.fromkeys((name for name, of in needs.items() if not of.layers), Statistics({}, {}))
    needs = {name: of for name, of in needs.items() if of.layers}
    return {**none, **_of_needed(needs, ground)} if needs else none


def _of_needed(needs: Mapping[str, Needs], ground: Ground) -> dict[str, Statistics]:
    if isinstance(ground.statistics, Statistics):
        return dict.fromkeys(needs, ground.statistics)
    if ground.statistics is not None:
        if missing := sorted(needs.keys() - ground.statistics.keys()):
            raise HyperparameterError(f"there are no statistics of {', '.join(missing)}")
        return {name: ground.statistics[name] for name in needs}
    templates = {of.values.rewrite_module_tmp for of in needs.values()}
    if len(templates) > 1:
        raise HyperparameterError(f"the methods edit different modules ({templates}): compare them in two runs")
    preparation = ground.preparation
    layers: dict[int | None, set[int]] = {}
    for of in needs.values():
        layers.setdefault(of.values.tokens or preparation.tokens, set()).update(of.layers)
    if preparation.stats_dir is not None and layers.keys() - {preparation.tokens}:
        raise HyperparameterError("with --stats-dir no method can choose its tokens: they are those of the files")
    found = {
        tokens: preparation.statistics(
            ground.model, ground.tokenizer, sorted(chosen), tokens=tokens, template=next(iter(templates))
        )
        for tokens, chosen in layers.items()
    }
    return {name: found[of.values.tokens or preparation.tokens] for name, of in needs.items()}
