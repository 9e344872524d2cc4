"""Functions by their place: `my_editor.py:edit`, `package.module:edit`, with settings after an @."""

from __future__ import annotations

import ast
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ..editors.changes import parse_changes, show_changes
from ..errors import HyperparameterError
from .names import PLACE

SIGNATURE = "(model, tokenizer, requests, **settings)"


@dataclass(frozen=True)
class EditingFunction:
    """An editing function with its settings.

    Invariant: `function` takes a model, a tokenizer and requests, and each of `settings` by name. `folder` is on the
    path while the function is imported and while it runs, as when Python runs a script in that folder. A function that
    was found by its `place` is in a separate module, whose globals nobody shares.
    """

    name: str
    function: Callable[..., Any]
    settings: Mapping[str, Any]
    folder: Path | None = None
    place: str | None = None

    @classmethod
    def parse(cls, text: str) -> tuple[EditingFunction, bool]:
        """(the function of `FILE.py:FUNCTION` or `MODULE:FUNCTION` with `@KEY=VALUE…`, whether `+P` follows).

        Raises HyperparameterError for a missing file, module or function, for code that cannot be imported, and for
        settings that the function does not take.
        """
        match = PLACE.fullmatch(text.strip())
        if match is None:
            raise HyperparameterError(f"{text!r} is no editor: write FILE.py:FUNCTION or package.module:FUNCTION")
        where, name, changes = match["where"], match["function"], match["changes"]
        settings = parse_changes(changes.split("@")[1:], text)
        module, folder = _file(where) if _is_file(where) else _module(where)
        function = getattr(module, name, None)
        if not callable(function):
            known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
            near = difflib.get_close_matches(name, known, n=1)
            raise HyperparameterError(f"{where} has no function {name!r}{f'; did you mean {near[0]}?' if near else ''}")
        known_by = Path(where).name if _is_file(where) else where  # wherever it lies, and however that is spelled
        place = f"{Path(where).expanduser().resolve()}:{name}{changes}" if _is_file(where) else text
        made = cls(f"{known_by}:{name}{show_changes(settings)}", function, settings, folder, place)
        made.check()
        return made, match["projected"] is not None

    @classmethod
    def of(cls, function: Callable[..., Any], name: str | None = None) -> EditingFunction:
        """From a function object; the keywords of a functools.partial become its settings.

        Raises HyperparameterError if it cannot be called as an editor is.
        """
        settings: dict[str, Any] = {}
        while isinstance(function, functools.partial) and not function.args:
            settings, function = {**function.keywords, **settings}, function.func
        own = getattr(function, "__name__", type(function).__name__)
        made = cls(name or f"{own}{show_changes(settings)}", function, settings)
        made.check()
        return made

    def fresh(self) -> EditingFunction:
        """The same function; if it was found by its place, its module is loaded again and so forgets earlier calls.

        Raises HyperparameterError if the code has changed meanwhile.
        """
        if self.place is None:
            return self
        found, _ = self.parse(self.place)
        if found.source() != self.source():
            raise HyperparameterError(f"{self.name} was changed while the run was under way: start it again")
        return found

    def __call__(self, model: Any, tokenizer: Any, requests: Sequence[Any]) -> Any:
        with importable(self.folder):
            return self.function(model, tokenizer, requests, **self.settings)

    def check(self) -> None:
        """Raises HyperparameterError unless the function can be called as an editor is."""
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

    def source(self) -> dict[str, Any]:
        """What distinguishes this function from a changed one: its name, what it closes over, and a hash of its code.

        The code is its file and everything the file imports from its own folder or, in a package, the whole package.
        """
        file = self._file()
        running = hashlib.sha256()
        name = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        if "<" in name:  # one of several that are called alike: lambdas, or functions made by a function
            running.update(_bytecode(self.function))
        if file is None:
            running.update(_code(self.function))
        else:
            for path in _belonging(file):
                running.update(f"{path.relative_to(_root(file)).as_posix()}\n".encode())
                running.update(path.read_bytes())
        return {
            "function": name,
            "source": running.hexdigest(),
            "holds": _held(self.function),
        }

    def owns(self, file: Path) -> bool:
        """Whether this file is part of the editor's own code."""
        own = self._file()
        return own is not None and file.is_absolute() and file.resolve().is_relative_to(_root(own))

    def _file(self) -> Path | None:
        function = inspect.unwrap(self.function)
        try:
            found = inspect.getsourcefile(function if inspect.isroutine(function) else type(function))
        except TypeError:
            return None
        return Path(found).resolve() if found and Path(found).is_file() else None


@contextmanager
def importable(folder: Path | None) -> Iterator[None]:
    """Make the folder's modules importable inside the block."""
    if folder is None:
        yield
        return
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _is_file(where: str) -> bool:
    return where.endswith(".py") or "/" in where or "\\" in where


def _file(where: str) -> tuple[ModuleType, Path]:
    path = Path(where).expanduser().resolve()
    if not path.is_file():
        raise HyperparameterError(f"there is no file {where}: an editor is FILE.py:FUNCTION")
    name = f"_alphaedit_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise HyperparameterError(f"{where} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as an import does it: dataclasses look here
    try:
        with importable(path.parent):
            spec.loader.exec_module(module)
    except Exception as failure:  # the user's code may raise anything
        sys.modules.pop(name, None)
        raise HyperparameterError(f"cannot import {where}: {type(failure).__name__}: {failure}") from failure
    return module, path.parent


def _module(where: str) -> tuple[ModuleType, Path | None]:
    here = Path.cwd()
    try:
        with importable(here):
            module = importlib.import_module(where)
    except Exception as failure:  # the user's code may raise anything
        missing = isinstance(failure, ModuleNotFoundError) and failure.name and where.startswith(failure.name)
        if missing:
            raise HyperparameterError(
                f"there is no module {where}, here or installed: an editor is FILE.py:FUNCTION or MODULE:FUNCTION"
            ) from failure
        raise HyperparameterError(f"cannot import {where}: {type(failure).__name__}: {failure}") from failure
    own = getattr(module, "__file__", None)
    return _anew(module), here if own and Path(own).resolve().is_relative_to(here) else None


def _anew(module: ModuleType) -> ModuleType:
    """The module executed once more, for one contender only; what it imports is shared."""
    spec = module.__spec__
    if spec is None or spec.loader is None or not (spec.origin or "").endswith(".py"):
        return module
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def _root(file: Path) -> Path:
    """The folder of a file, or that of the outermost package that the file is in."""
    folder = file.parent
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    return folder


def _belonging(file: Path) -> list[Path]:
    """The file and what belongs to it, sorted."""
    root = _root(file)
    if root != file.parent:
        package = root / file.relative_to(root).parts[0]
        return sorted(package.rglob("*.py"))
    found, left = {file}, [file]
    while left:
        for name in _imports(left.pop()):
            for path in (root / f"{name}.py", *sorted((root / name).rglob("*.py"))):
                if path.is_file() and path not in found:
                    found.add(path)
                    left.append(path)
    return sorted(found)


def _imports(file: Path) -> set[str]:
    """The first parts of all modules that a file imports by name."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return set()
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.partition(".")[0] for name in names if name}


def _code(function: Callable[..., Any]) -> bytes:
    """The source of a function without a file (in a notebook, for example), or else its bytecode."""
    try:
        return inspect.getsource(function).encode()
    except (OSError, TypeError):
        return _bytecode(function)


def _bytecode(function: Callable[..., Any]) -> bytes:
    """What a function does, wherever it stands."""
    code = getattr(function, "__code__", None)
    if code is None:
        return type(function).__qualname__.encode()
    plain = [repr(each) for each in (*code.co_consts, *code.co_names) if not inspect.iscode(each)]
    return code.co_code + " ".join(plain).encode()


def _held(function: Callable[..., Any]) -> dict[str, Any]:
    """The values that a function closes over or a callable object holds; for values unknown to JSON, the types."""
    if inspect.isfunction(function):
        held: Mapping[str, Any] = inspect.getclosurevars(function).nonlocals
    else:
        held = getattr(function, "__dict__", {})
    return {
        name: json.loads(json.dumps(value, default=lambda of: type(of).__qualname__)) for name, value in held.items()
    }
