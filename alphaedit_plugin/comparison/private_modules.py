"""An editor's modules, imported for it alone: what one remembers, or how one's helper is called, harms no other."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from ..errors import HyperparameterError
from ..restoring import swapping
from .source import belonging


@dataclass
class PrivateModules:
    """The modules of one editor: those in `files`, which are found in `folder`.

    Invariant: they are in sys.modules, and the folder on the path, only inside `in_place`; what was there under
    their names before is there again afterwards.
    """

    folder: Path | None
    files: frozenset[Path] = frozenset()
    modules: dict[str, ModuleType] = field(default_factory=dict)

    @swapping
    def in_place(self) -> Iterator[None]:
        others = self._loaded() | {name: sys.modules[name] for name in self.modules if name in sys.modules}
        for name in others:
            del sys.modules[name]
        sys.modules.update(self.modules)
        path = [str(self.folder)] if self.folder is not None else []
        sys.path[:0] = path
        importlib.invalidate_caches()
        try:
            yield
        finally:
            for each in path:
                if each in sys.path:
                    sys.path.remove(each)
            self.modules = self._loaded()
            for name in self.modules:
                del sys.modules[name]
            sys.modules.update(others)

    def _loaded(self) -> dict[str, ModuleType]:
        return {
            name: module
            for name, module in list(sys.modules.items())
            if (file := getattr(module, "__file__", None)) and Path(file).resolve() in self.files
        }


def import_file(where: str) -> tuple[ModuleType, PrivateModules]:
    """Raises HyperparameterError for a file that is missing, or cannot be imported."""
    path = Path(where).expanduser().resolve()
    if not path.is_file():
        raise HyperparameterError(f"there is no file {where}: an editor is FILE.py:FUNCTION")
    private = PrivateModules(path.parent, frozenset(belonging(path)))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise HyperparameterError(f"{where} is no Python file")
    module = importlib.util.module_from_spec(spec)
    private.modules[path.stem] = module  # as an import does it: dataclasses look here
    with _naming(where), private.in_place():
        spec.loader.exec_module(module)
    return module, private


def import_module(where: str) -> tuple[ModuleType, PrivateModules]:
    """From the working directory or what is installed; of the user's own, a copy for this editor alone.

    Raises HyperparameterError for a module that is missing, or cannot be imported.
    """
    here = Path.cwd()
    top = where.partition(".")[0]
    private = PrivateModules(here)
    with private.in_place():
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError):
            spec = None
    origin = Path(spec.origin).resolve() if spec is not None and spec.origin and Path(spec.origin).is_file() else None
    if origin is not None and not {"site-packages", "dist-packages"} & set(origin.parts) and not _is_pythons(origin):
        private.files = frozenset(belonging(origin))
    with _naming(where), private.in_place():
        module = importlib.import_module(where)
    return module, private


def _is_pythons(file: Path) -> bool:
    return file.is_relative_to(Path(importlib.__file__).resolve().parents[1])


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Whatever goes wrong while a user's code is imported becomes a HyperparameterError that names it."""
    try:
        yield
    except HyperparameterError:
        raise
    except (Exception, SystemExit) as failure:  # another person's code: anything may come
        missing = failure.name or "" if isinstance(failure, ModuleNotFoundError) else ""
        if missing and (where == missing or where.startswith(f"{missing}.")):
            raise HyperparameterError(
                f"there is no module {where}, here or installed: an editor is FILE.py:FUNCTION or MODULE:FUNCTION"
            ) from failure
        raise HyperparameterError(f"cannot import {where}: {type(failure).__name__}: {failure}") from failure
