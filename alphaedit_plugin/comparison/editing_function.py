"""A user's editing function: by the place where it is (`my_editor.py:edit@steps=10`), or as it is."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..editors.changes import parse_changes, show_changes
from ..errors import EditError, HyperparameterError
from .names import PLACE
from .private_modules import PrivateModules, import_file, import_module
from .restraint import Restraint
from .source import belonging, described, identity_of_function, source_file

SIGNATURE = "(model, tokenizer, requests, **settings)"


@dataclass(frozen=True)
class EditingFunction:
    """An editing function with its settings.

    Invariant: `function` takes a model, a tokenizer and requests, and each of `settings` by name. A function that was
    found by its `place` has its modules to itself (`private`).
    """

    name: str
    function: Callable[..., Any]
    settings: Mapping[str, Any]
    place: str | None = None
    private: PrivateModules = field(default_factory=lambda: PrivateModules(None))

    @classmethod
    def parse(cls, text: str) -> tuple[EditingFunction, Restraint]:
        """(the function of `FILE.py:FUNCTION` or `MODULE:FUNCTION` with `@KEY=VALUE…`, what it is held to: `+P` …).

        A setting that what it is held to knows is not the function's. Raises HyperparameterError for a missing file,
        module or function, for code that cannot be imported, and for settings that nobody takes.
        """
        match = PLACE.fullmatch(text.strip())
        if match is None:
            raise HyperparameterError(f"{text!r} is no editor: write FILE.py:FUNCTION or package.module:FUNCTION")
        where, name, changes = match["where"], match["function"], match["changes"]
        if mark := re.search(r"\+[A-Za-z]\w*", re.sub(r"[\[{].*?[\]}]", "", changes)):
            raise HyperparameterError(
                f"in {text!r}, {mark[0]} stands in a setting: what an editor is held to comes last, and such a text is "
                "set by a function of yours that calls this one"
            )
        given = parse_changes(changes.split("@")[1:], text)
        settings = dict(given)
        restraint = Restraint.parse(match["marks"].split("+")[1:], settings, text)
        is_file = where.endswith(".py") or "/" in where or "\\" in where
        module, private = (import_file if is_file else import_module)(where)
        function = getattr(module, name, None)
        if not callable(function):
            known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
            near = difflib.get_close_matches(name, known, n=1)
            raise HyperparameterError(f"{where} has no function {name!r}{f'; did you mean {near[0]}?' if near else ''}")
        known_by = Path(where).name if is_file else where  # wherever it lies, and however that is spelled
        place = f"{Path(where).expanduser().resolve() if is_file else where}:{name}{show_changes(settings)}"
        made = cls(f"{known_by}:{name}{show_changes(settings)}", function, settings, place, private)
        made.check(given.keys() - settings.keys())
        return made, restraint

    @classmethod
    def of(cls, function: Callable[..., Any], name: str | None = None) -> EditingFunction:
        """From a function object; the keywords of a functools.partial become its settings.

        Raises HyperparameterError if it cannot be called as an editor is.
        """
        settings: dict[str, Any] = {}
        while isinstance(function, functools.partial) and not function.args:
            settings, function = {**function.keywords, **settings}, function.func
        inner = function
        while isinstance(inner, functools.partial):
            inner = inner.func
        own = getattr(inner, "__name__", type(inner).__name__)
        plain = {key: value for key, value in settings.items() if isinstance(value, bool | int | float | str)}
        made = cls(name or f"{own}{show_changes(plain)}", function, settings)
        made.check()
        return made

    def in_folder(self) -> EditingFunction:
        """Named with the folder that its file lies in, to tell it from another file of the same name."""
        folder = self.private.folder
        return self if folder is None else replace(self, name=f"{folder.name}/{self.name}")

    def fresh(self) -> EditingFunction:
        """The same function; if it was found by its place, its modules are loaded again and so forget earlier calls.

        Raises EditError if the code has changed since it was first loaded.
        """
        if self.place is None:
            return self
        found, _ = self.parse(self.place)
        if found.identity != self.identity:
            raise EditError(f"{self.name} was changed while the run was under way: start it again")
        return replace(found, name=self.name)

    def __call__(self, model: Any, tokenizer: Any, requests: Sequence[Any]) -> Any:
        with self.private.in_place():
            return self.function(model, tokenizer, requests, **self.settings)

    def check(self, taken: Collection[str] = ()) -> None:
        """Raises HyperparameterError unless the function can be called as an editor is, or if it names one of the
        settings that are `taken` for what it is held to.
        """
        if inspect.iscoroutinefunction(self.function) or inspect.isgeneratorfunction(self.function):
            raise HyperparameterError(f"{self.name} is a coroutine or a generator: an editor is a plain function")
        try:
            signature = inspect.signature(self.function)
        except (TypeError, ValueError):
            return  # built in: nothing is known of it
        parameters = list(signature.parameters.values())
        named = [p.name for p in parameters[3:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        named += [p.name for p in parameters[:3] if p.kind is p.KEYWORD_ONLY]
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        if both := sorted(set(taken) & set(named)):
            raise HyperparameterError(
                f"{self.name}: {both[0]} is a setting of the function and of what it is held to: call the function's "
                "otherwise"
            )
        for key in self.settings:
            if key not in named and not takes_any:
                near = difflib.get_close_matches(key, named, n=1)
                known = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(named) or 'none'}"
                raise HyperparameterError(f"{self.name}: the function has no setting {key!r}{known}")
        try:
            signature.bind(None, None, None, **self.settings)
        except TypeError as failure:
            raise HyperparameterError(
                f"{self.name}: an editor is called as {SIGNATURE}, and this function takes {signature}: {failure}"
            ) from failure

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What distinguishes it from another editor, or from itself after a change, as JSON; of the code as loaded."""
        return {"function": identity_of_function(self.function), "settings": described(dict(self.settings), {})}

    @cached_property
    def files(self) -> frozenset[Path]:
        """The editor's own code."""
        file = source_file(self.function)
        return self.private.files or (frozenset(belonging(file)) if file is not None else frozenset())

    def owns(self, file: Path) -> bool:
        """Whether this file is part of the editor's own code."""
        return file.is_absolute() and file.resolve() in self.files
