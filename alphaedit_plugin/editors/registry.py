"""The methods and modifiers that there are, by name: ours, and those that other packages add by an entry point.

Names are known without importing what they name, so that a command line can refuse a wrong one before torch is there.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from ..errors import HyperparameterError, RegistrationError

log = logging.getLogger(__name__)

ENTRY_POINTS = "alphaedit_plugin"
"""The group of entry points: name = the method's or modifier's, value = a module whose import registers it."""

METHODS: Mapping[str, str] = {
    "rome": "rome",
    "memit": "memit",
    "memit-seq": "memit",
    "alphaedit": "alphaedit",
    "evoedit": "evoedit",
    "betaedit": "betaedit",
    "encore": "encore",
}
MODIFIERS: Mapping[str, str] = {
    "rect": "rect",
    "prune": "prune",
    "revive": "revive",
    "sphere": "sphere",
    "aligned": "aligned",
}
"""Our own names, and the modules of this package that register them."""

GRAMMAR = (
    f"SOLVER[@KEY=VALUE…][+MODIFIER…][+P] with SOLVER one of {', '.join(METHODS)} and MODIFIER one of "
    f"{', '.join(MODIFIERS)}, which alone are memit's, or a plug-in's"
)

_NAME = re.compile(r"[a-z][a-z0-9-]*")
ACTS = ("update", "between", "end")
_PLAIN = (bool, int, float, str)

Thing = TypeVar("Thing", bound=Callable[..., Any])


@dataclass(frozen=True)
class Method:
    """A solver: an `Editor` class and its description.

    `folder` holds its hyperparameter files: a folder of `hparams/`, or a path. `settings` are its own, with defaults.
    """

    name: str
    editor: Any
    summary: str
    source: str
    folder: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    kind = "method"

    @property
    def defined(self) -> Any:
        return self.editor


@dataclass(frozen=True)
class Modifier:
    """Changes each update of a solver (`acts` "update"), what it owes the next ("between"), or all of ΔW ("end").

    `function` takes (update, site, *, settings…). `alone` is the solver to use if none is named, and `folder` holds the
    hyperparameter files of both together. `in_factors`: it always returns an `Update`. `spares`, of one that is the
    projection Δ ← (I − UUᵀ)Δ(I − VVᵀ), gives U and V for a W: so it can also act in a guard.
    """

    name: str
    function: Callable[..., Any]
    summary: str
    source: str
    acts: str = "update"
    folder: str | None = None
    alone: str | None = None
    in_factors: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    spares: Callable[[Any], tuple[Any, Any]] | None = None

    kind = "modifier"

    @property
    def defined(self) -> Any:
        return self.function

    def set_to(self, own: Mapping[str, Any]) -> Modifier:
        """The modifier with the settings that `own` gives it; settings of others in `own` are ignored."""
        chosen = {key: own[key] for key in self.settings if key in own}
        return replace(self, function=functools.partial(self.function, **chosen)) if chosen else self


_registered: dict[str, Method | Modifier] = {}
_reserved: set[str] = set()


def reserve(keys: Iterable[str]) -> None:
    """Says which settings every method has: none of these can be a method's own."""
    _reserved.update(keys)


# ------------------------------------------------------------------------------------------------- registering


def method(
    name: str, *, summary: str = "", source: str = "", folder: str | None = None
) -> Callable[[type[Any]], type[Any]]:
    """Registers an `Editor` class as a solver; its own settings are its class attribute `settings`.

    Raises RegistrationError for anything that could not be used later.
    """
    _check_words("method", name, summary, source)

    def register(editor: type[Any]) -> type[Any]:
        if not (isinstance(editor, type) and any(_is_editor(base) for base in editor.__mro__)):
            raise RegistrationError(f"the method {name} must be a subclass of Editor, not {editor!r}")
        if missing := sorted(getattr(editor, "__abstractmethods__", ())):
            raise RegistrationError(f"the method {name} is abstract: {editor.__name__} lacks {', '.join(missing)}")
        _check_call(
            name,
            editor.__init__,
            "__init__(model, tokenizer, hyperparameters, preserved, *, contexts, write, progress)",
            *(None,) * 5,
            contexts=None,
            write=None,
            progress=False,
        )
        _check_call(name, editor.edit, "edit(requests, targets=None)", None, [])
        _check_call(name, editor.edit, "edit(requests, targets=None)", None, [], None)
        if not isinstance(editor.settings, Mapping):
            raise RegistrationError(f"the settings of the method {name} must be a mapping of names to defaults")
        settings = _checked_settings(f"the method {name}", editor.settings)
        _register(Method(name, editor, summary, source, folder, settings))
        return editor

    return register


def modifier(
    name: str,
    *,
    summary: str = "",
    source: str = "",
    acts: str = "update",
    folder: str | None = None,
    alone: str | None = None,
    in_factors: bool = False,
    spares: Callable[[Any], tuple[Any, Any]] | None = None,
) -> Callable[[Thing], Thing]:
    """Registers a function (update, site, *, settings…) as a modifier; its keyword-only parameters are its settings.

    With acts="update" it sees each `Update` before it is written; with acts="between" what was asked for so far and not
    written, d_out × d_in in float64, which the next update then asks for again; with acts="end" the whole ΔW, of the
    same type, when the sequence ends. It returns an `Update` or a dense Δ, d_out × d_in. Declare `in_factors` if it
    always returns an `Update`: this is then kept instead of the solver's own. `site` is a `Site`. If all that it does
    is Δ ← (I − UUᵀ)Δ(I − VVᵀ), `spares` gives these orthonormal U and V for W before the first edit: then it can act in
    a guard too.

    Raises RegistrationError for anything that could not be used later.
    """
    _check_words("modifier", name, summary, source)
    if acts not in ACTS:
        raise RegistrationError(
            f"the modifier {name} must act per 'update', 'between' them or at the 'end', not {acts!r}"
        )
    if in_factors and acts != "update":
        raise RegistrationError(f"the modifier {name} acts {acts}, where nothing is in factors: drop in_factors")
    if folder is not None and alone is None:
        raise RegistrationError(
            f"the modifier {name} has a folder: say by alone=… which solver's hyperparameters it is"
        )

    def register(function: Thing) -> Thing:
        of = f"the modifier {name}"
        if not inspect.isfunction(function):
            raise RegistrationError(f"{of} must be a plain function, not {function!r}")
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise RegistrationError(f"{of} must be a plain function, not a coroutine")
        if inspect.isgeneratorfunction(function):
            raise RegistrationError(f"{of} must return its update: it is a generator")
        *given, settings = _parameters(function)
        if given != [2, True]:
            raise RegistrationError(
                f"{of} must be called {name.replace('-', '_')}(update, site, *, setting=default, …), not "
                f"{function.__name__}{inspect.signature(function)}"
            )
        checked = _checked_settings(of, settings)
        _register(Modifier(name, function, summary, source, acts, folder, alone, in_factors, checked, spares))
        return function

    return register


def _parameters(function: Callable[..., Any]) -> tuple[int, bool, dict[str, Any]]:
    """(number of positional parameters, whether all others are keyword-only with defaults, these others)."""
    parameters = list(inspect.signature(function).parameters.values())
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    called = [each for each in parameters if each.kind in kinds and each.default is each.empty]
    others = [each for each in parameters if each not in called]
    fits = all(each.kind is each.KEYWORD_ONLY and each.default is not each.empty for each in others)
    return len(called), fits, {each.name: each.default for each in others}


def _check_words(kind: str, name: Any, summary: Any, source: Any) -> None:
    if not isinstance(name, str):
        raise RegistrationError(f'write @{kind}("its-name", summary="…", source="…"), not @{kind} alone')
    if not _NAME.fullmatch(name):
        raise RegistrationError(f"the {kind} {name!r} needs a name of small letters, digits and hyphens")
    if name == "p":
        raise RegistrationError(f"the {kind} 'p' needs another name: +P is the projection")
    for what, text in (("summary", summary), ("source", source)):
        if not isinstance(text, str) or not text.strip() or "\n" in text:
            raise RegistrationError(f"the {kind} {name} needs a {what} of one line: {what}='…'")


def _check_call(name: str, function: Callable[..., Any], wanted: str, *args: Any, **kwargs: Any) -> None:
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError as failure:
        raise RegistrationError(f"the method {name} cannot be called as {wanted}: {failure}") from failure


def _is_editor(cls: type) -> bool:
    """Whether it is `Editor` itself, told without importing it: with it comes torch."""
    return (cls.__module__, cls.__qualname__) == (f"{__package__}.editor", "Editor")


def _checked_settings(of: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    for key, default in settings.items():
        if not isinstance(key, str) or not key.isidentifier():
            raise RegistrationError(f"{of}: the setting {key!r} needs a name that Python allows")
        if key in _reserved:
            raise RegistrationError(f"{of}: {key} is a hyperparameter of every method: call the setting otherwise")
        if not isinstance(default, _PLAIN):
            raise RegistrationError(f"{of}: the default of {key} must be a number, a text, true or false")
    return dict(settings)


def _register(new: Method | Modifier) -> None:
    """A module that is loaded again may register its names again; nobody else may take them."""
    known, ours = _registered.get(new.name), METHODS.get(new.name) or MODIFIERS.get(new.name)
    place = (new.defined.__module__, new.defined.__qualname__)
    if known is not None and (known.defined.__module__, known.defined.__qualname__) != place:
        taken = f"{known.defined.__module__}.{known.defined.__qualname__}"
    elif ours is not None and place[0] != f"{__package__}.{ours}":
        taken = f"{__package__}.{ours}"
    else:
        _registered[new.name] = new
        return
    raise RegistrationError(f"the name {new.name} is taken by {taken}: call yours otherwise")


# -------------------------------------------------------------------------------------------------- looking up


def names() -> list[str]:
    """The names of every method and modifier, without importing any."""
    return sorted({*METHODS, *MODIFIERS, *_registered, *_plug_ins()})


def listed() -> list[Method | Modifier]:
    """Everything that is registered, methods first. A plug-in that cannot be imported is left out, with a warning."""
    found = []
    for name in names():
        try:
            found.append(find(name))
        except HyperparameterError:
            continue  # the import has said why
    return sorted(found, key=lambda each: (each.kind, each.name not in METHODS and each.name not in MODIFIERS))


def find(name: str) -> Method | Modifier:
    """Import what registers `name`. Raises HyperparameterError, with the nearest name, if there is none."""
    if name not in _registered:
        if ours := METHODS.get(name) or MODIFIERS.get(name):
            importlib.import_module(f".{ours}", __package__)
        elif name in (found := _plug_ins()):
            _import(found[name])
        else:
            raise _no_method(name, name)
    return _registered[name]


def find_method(name: str) -> Method:
    """As `find`; raises HyperparameterError for a modifier."""
    found = find(name)
    if not isinstance(found, Method):
        raise HyperparameterError(f"{name} is no method but a modifier: write it behind one, as in memit+{name}")
    return found


def find_modifier(name: str) -> Modifier:
    """As `find`; raises HyperparameterError for a method."""
    found = find(name)
    if not isinstance(found, Modifier):
        raise HyperparameterError(f"{name} is no modifier but a method: it comes first, as in {name}+P")
    return found


def check_names(variant: str) -> None:
    """Raises HyperparameterError if a name in `SOLVER[@KEY=VALUE…][+MODIFIER…][+P]` is unknown or out of place.

    Imports nothing, so it cannot tell yet whether a plug-in's name is a method or a modifier.
    """
    solver, _, marks = split(variant)
    for mark in marks:
        if mark != "p" and mark not in MODIFIERS:
            _check_known(mark, variant)
        if mark in METHODS:
            raise HyperparameterError(f"in {variant!r}, {mark} is no modifier but a method: it comes first")
    if solver not in METHODS and solver not in MODIFIERS:
        _check_known(solver, variant)


def split(variant: str) -> tuple[str, list[str], list[str]]:
    """(solver, its changes KEY=VALUE, marks) of a variant's name; all but the changes in lower case.

    Raises HyperparameterError if one of them is empty or appears twice.
    """
    head, *suffixes = (part.strip() for part in re.split(r"\+(?!\d)", variant))  # 1e+3 is a number
    solver, *changes = head.split("@")
    solver, marks = solver.strip().lower(), [suffix.lower() for suffix in suffixes]
    words = [solver, *marks]
    if not all(words) or solver == "p" or len(set(words)) != len(words):
        raise HyperparameterError(f"there is no method {variant!r}: a method is {GRAMMAR}")
    return solver, changes, marks


def unknown_in(variant: str, failure: HyperparameterError) -> HyperparameterError:
    """The failure of a look-up, with the variant's name and what such a name may be."""
    return HyperparameterError(f"{failure} ({variant!r}: a method is {GRAMMAR})")


def _check_known(name: str, variant: str) -> None:
    if name not in _registered and name not in _plug_ins():
        raise _no_method(name, variant)


def _no_method(name: str, variant: str) -> HyperparameterError:
    """With the nearest name where there is one, else with what a name may be."""
    near: Sequence[str] = difflib.get_close_matches(name, names(), n=1)
    if not near:
        return HyperparameterError(f"there is no method {variant!r}: a method is {GRAMMAR}")
    where = "" if name == variant.strip().lower() else f" (in {variant!r})"
    return HyperparameterError(f"no method {name}; did you mean {near[0]}?{where}")


def _plug_ins() -> dict[str, EntryPoint]:
    """The entry points of other packages; ours and the first of a name win."""
    found: dict[str, EntryPoint] = {}
    for each in entry_points(group=ENTRY_POINTS):
        if each.name not in METHODS and each.name not in MODIFIERS:
            found.setdefault(each.name, each)
    return found


def _import(plug_in: EntryPoint) -> None:
    """Raises HyperparameterError, and warns, if the import fails or registers nothing of this name."""
    why = None
    try:
        importlib.import_module(plug_in.module)
    except Exception as failure:  # a broken plug-in must not stop the others
        why = f"{type(failure).__name__}: {failure}"
    if why is None and plug_in.name not in _registered:
        why = f"importing {plug_in.module} registers nothing of this name"
    if why is not None:
        log.warning("the plug-in %s (%s) is left out: %s", plug_in.name, plug_in.value, why)
        raise HyperparameterError(f"the plug-in {plug_in.name} ({plug_in.value}) cannot be used: {why}")
