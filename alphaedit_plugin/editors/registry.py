"""The methods and modifiers that there are. Each is in one file with all there is to know of it, and registers itself.

    @method("memit", summary="…", source="…", folder="MEMIT")
    class MEMIT(LayeredEditor): ...

    @modifier("rect", summary="…", source="…", acts="update")
    def rect(update, site, *, keep=0.4): ...

Another package adds its own through entry points of the group `alphaedit_plugin`: the name of the entry point is that
of the method or modifier, its value the module that registers it. Names are known without importing any of them, so
that a misspelt one is answered before torch is loaded.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import inspect
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from ..errors import HyperparameterError

log = logging.getLogger(__name__)

GROUP = "alphaedit_plugin"

GRAMMAR = "SOLVER[@KEY=VALUE…][+MODIFIER…][+P], such as memit, memit+P or alphaedit@L2=1"

_BUILT_IN = {"rome": "rome", "memit": "memit", "memit-seq": "memit", "alphaedit": "alphaedit"}
_BUILT_IN_MODIFIERS = {"rect": "rect", "prune": "prune"}
"""name → the module beside this one that registers it."""

_NAME = re.compile(r"[a-z][a-z0-9-]*")
_RESERVED = {"p", "easyedit", "before"}

Thing = TypeVar("Thing")


def five_layers(depth: int) -> tuple[int, ...]:
    """Five consecutive layers from one seventh of the way up, where the paper's models are edited."""
    first = max(0, min(depth // 7, depth - 5))
    return tuple(range(first, min(first + 5, depth)))


@dataclass(frozen=True)
class Method:
    """A solver, and all that is known of it before a model is.

    `folder` of hparams/ holds its files, if it has any. For a model without a file `layers` gives those to edit by
    the model's depth, and `defaults` change the hyperparameters. `settings` are hyperparameters of its own.
    """

    name: str
    solver: Any
    summary: str
    source: str
    folder: str | None = None
    layers: Callable[[int], tuple[int, ...]] = five_layers
    defaults: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "method"


@dataclass(frozen=True)
class Modifier:
    """What happens to an update on its way into the weight, or at the end of a sequence.

    `function(update, site, **settings)`: with `acts` "update" it gets an `Update` and returns one, or Δ as a matrix;
    with "end" it gets the accumulated ΔW, d_out × d_in, float64, and returns that changed, or the very same. One that
    always returns an Update may say `in_factors`: what it made is then what is kept of the edit. `alone` names the
    solver that the modifier's own name stands for, as `rect` stands for memit+rect.
    """

    name: str
    function: Callable[..., Any]
    summary: str
    source: str
    acts: Literal["update", "end"] = "update"
    folder: str | None = None
    alone: str | None = None
    in_factors: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "modifier"


_methods: dict[str, Method] = {}
_modifiers: dict[str, Modifier] = {}


def method(
    name: str,
    *,
    summary: str,
    source: str,
    folder: str | None = None,
    layers: Callable[[int], tuple[int, ...]] = five_layers,
    defaults: Mapping[str, Any] = MappingProxyType({}),
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> Callable[[Thing], Thing]:
    """Register an `Editor`; the class comes back as it is. See `Method` for what the arguments mean.

    Raises HyperparameterError while decorating: for a name that is malformed or taken, a summary or source that is
    missing, or what is no class with an `edit` of its own.
    """

    def register(solver: Thing) -> Thing:
        _check(name, summary, source, solver, _methods)
        if not inspect.isclass(solver) or not callable(getattr(solver, "edit", None)):
            raise HyperparameterError(f"@method({name!r}) registers a class derived from Editor, not {_called(solver)}")
        if missing := sorted(getattr(solver, "__abstractmethods__", ())):
            raise HyperparameterError(f"@method({name!r}): {_called(solver)} lacks {', '.join(missing)}")
        _check_settings(name, settings)
        _methods[name] = Method(name, solver, summary, source, folder, layers, dict(defaults), dict(settings))
        return solver

    return register


def modifier(
    name: str,
    *,
    summary: str,
    source: str,
    acts: Literal["update", "end"] = "update",
    folder: str | None = None,
    alone: str | None = None,
    in_factors: bool = False,
) -> Callable[[Thing], Thing]:
    """Register a function `(update, site, *, setting=default, …)`, which comes back as it is. See `Modifier`.

    Raises HyperparameterError while decorating: for a name that is malformed or taken, a summary or source that is
    missing, another `acts`, or what is no plain function of two arguments whose settings have defaults.
    """

    def register(function: Thing) -> Thing:
        _check(name, summary, source, function, _modifiers)
        if acts not in ("update", "end"):
            raise HyperparameterError(f"@modifier({name!r}): acts is 'update' or 'end', not {acts!r}")
        plain = inspect.isfunction(function) and not (
            inspect.iscoroutinefunction(function)
            or inspect.isgeneratorfunction(function)
            or inspect.isasyncgenfunction(function)
        )
        if not plain:
            raise HyperparameterError(f"@modifier({name!r}) registers a plain function, not {_called(function)}")
        first, rest = _signature(function)
        if len(first) != 2 or any(parameter.kind is not parameter.KEYWORD_ONLY for parameter in rest):
            raise HyperparameterError(
                f"@modifier({name!r}): {_called(function)} must take (update, site, *, setting=default, …)"
            )
        settings = {parameter.name: parameter.default for parameter in rest}
        _check_settings(name, settings)
        _modifiers[name] = Modifier(name, function, summary, source, acts, folder, alone, in_factors, settings)  # type: ignore[arg-type]
        return function

    return register


def _signature(function: Any) -> tuple[list[inspect.Parameter], list[inspect.Parameter]]:
    """(parameters without a default, the others)."""
    parameters = list(inspect.signature(function).parameters.values())
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    first = [p for p in parameters if p.default is p.empty and p.kind not in variable]
    return first, [p for p in parameters if p not in first]


def _check(name: Any, summary: str, source: str, thing: Any, registered: Mapping[str, Any]) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _RESERVED:
        raise HyperparameterError(
            f"{name!r} cannot name a method or modifier: small letters, digits and hyphens, from a letter on, and not "
            f"{' or '.join(sorted(_RESERVED))}"
        )
    for what, text in (("summary", summary), ("source", source)):
        if not isinstance(text, str) or not text.strip():
            raise HyperparameterError(f"{name}: say in its {what} what it does, or where it is from, in a line")
    other = _methods.get(name) or _modifiers.get(name)
    taken = getattr(other, "solver", None) or getattr(other, "function", None)
    if other is not None and (_called(taken), getattr(taken, "__module__", "")) != (
        _called(thing),
        getattr(thing, "__module__", ""),
    ):
        raise HyperparameterError(f"the name {name} is taken, by {_called(taken)} of {taken.__module__}")
    if other is not None and name not in registered:
        raise HyperparameterError(f"the name {name} is taken, by a {other.kind}")


def _check_settings(name: str, settings: Mapping[str, Any]) -> None:
    for key, default in settings.items():
        if not isinstance(default, bool | int | float | str):
            raise HyperparameterError(f"{name}: its setting {key} needs a default: a number, a text, true or false")


def _called(thing: Any) -> str:
    return str(getattr(thing, "__qualname__", type(thing).__qualname__))


# ------------------------------------------------------------------------------------------------------- look-ups


def names() -> dict[str, str]:
    """name → "method" or "modifier"; "" for one of another package, which says so when it is loaded."""
    found = {**dict.fromkeys(_BUILT_IN, "method"), **dict.fromkeys(_BUILT_IN_MODIFIERS, "modifier")}
    found |= {name: found.get(name, "") for name in _entry_points()}
    return found | dict.fromkeys(_methods, "method") | dict.fromkeys(_modifiers, "modifier")


def find_method(name: str) -> Method:
    """Raises HyperparameterError for one that there is not, naming the nearest."""
    _load(name)
    if name not in _methods:
        raise unknown(name, names())
    return _methods[name]


def find_modifier(name: str) -> Modifier:
    """Raises HyperparameterError for one that there is not, naming the nearest."""
    _load(name)
    if name not in _modifiers:
        raise unknown(name, names())
    return _modifiers[name]


def is_modifier(name: str) -> bool:
    _load(name)
    return name in _modifiers


def listed() -> list[Method | Modifier]:
    """Everything that can be used, methods first."""
    for name in names():
        _load(name)
    return [*_methods.values(), *_modifiers.values()]


def own_settings() -> dict[str, Any]:
    """name → default of every setting that a method or modifier has for itself."""
    return {name: default for each in listed() for name, default in each.settings.items()}


def check_names(text: str) -> None:
    """Whether all that a variant's name names is there: `SOLVER[@KEY=VALUE…][+MODIFIER…][+P]`. Loads nothing.

    Raises HyperparameterError, naming the nearest.
    """
    head, *marks = split(text)
    known = names()
    solver = head.partition("@")[0].strip().lower()
    for name in (solver, *(mark.lower() for mark in marks if mark.lower() != "p")):
        if name not in known or (name != solver and known[name] == "method"):
            raise unknown(name, known, text)


def split(text: str) -> list[str]:
    """A variant's name at its plus signs, but for those of numbers such as 1e+3."""
    return [part.strip() for part in re.split(r"\+(?!\d)", text)]


def unknown(name: str, known: Mapping[str, str], text: str | None = None) -> HyperparameterError:
    """What to say of a name that is not known, and stands in `text`."""
    near = difflib.get_close_matches(name, known.keys() - {name}, n=1)
    if near:
        where = f" (in {text!r})" if text is not None and text != name else ""
        return HyperparameterError(f"no method {name}; did you mean {near[0]}?{where}")
    return HyperparameterError(
        f"there is no method {name if text is None else text!r}: a method is {GRAMMAR}; there are {', '.join(known)}"
    )


def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    return {each.name: each for each in importlib.metadata.entry_points(group=GROUP)}


def _load(name: str) -> None:
    """Import what registers a name, if it is known and was not imported yet."""
    if name in _methods or name in _modifiers:
        return
    built_in = {**_BUILT_IN, **_BUILT_IN_MODIFIERS}.get(name)
    if built_in is not None:
        importlib.import_module(f"{__package__}.{built_in}")
    elif (entry := _entry_points().get(name)) is not None:
        try:
            entry.load()
        except Exception as failure:  # another person's code: anything may come
            log.warning("%s = %s cannot be used: %s: %s", name, entry.value, type(failure).__name__, failure)
        else:
            if name not in _methods and name not in _modifiers:
                log.warning("%s = %s registers no method or modifier of that name", name, entry.value)
