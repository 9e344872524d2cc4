"""What tells one editing function from another: its code, and the values that it holds."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..storage.tensors import tensor_digest

_PLAIN = (bool, int, float, str, type(None))


def identity_of_function(function: Callable[..., Any]) -> Any:
    """JSON that is equal for two functions only if they do the same: code, defaults, and everything held.

    The code is the function's file and all that the file imports from its own folder, or in a package the whole
    package. Whatever cannot be told (an open file, a generator) gets an identity of this process alone, so that
    results are computed anew instead of being taken for another's.
    """
    return described(function, {})


def described(value: Any, seen: dict[int, tuple[str, Any]]) -> Any:
    """A value as JSON: equal values alike, in every process; `seen` are those that are being described already."""
    if isinstance(value, _PLAIN):
        return value
    if id(value) in seen:
        return seen[id(value)][0]
    seen[id(value)] = (f"number {len(seen)}", value)  # kept, so that no other value gets its id
    if isinstance(value, Tensor):
        return {"tensor": tensor_digest(value)}
    if isinstance(value, np.ndarray):
        return {"array": [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]}
    if isinstance(value, nn.Module):
        weights = {name: tensor_digest(tensor) for name, tensor in value.state_dict().items()}
        return {"module": _dotted(type(value)), "weights": weights}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return [[described(key, seen), described(each, seen)] for key, each in value.items()]
    if isinstance(value, list | tuple):
        return [described(each, seen) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(str(described(each, seen)) for each in value)
    if isinstance(value, functools.partial):
        parts = (value.func, value.args, value.keywords)
        return {"partial": [described(part, seen) for part in parts]}
    if inspect.ismethod(value):
        return {"method": described(value.__func__, seen), "of": described(value.__self__, seen)}
    if inspect.isfunction(value):
        return _of_function(value, seen)
    if inspect.isclass(value) or inspect.isbuiltin(value) or inspect.ismodule(value):
        return _dotted(value)
    if hasattr(value, "__dict__"):
        return {"object": _dotted(type(value)), "code": _code_of(type(value)), "holds": described(vars(value), seen)}
    return {"object": _dotted(type(value)), "unlike any other": uuid.uuid4().hex}


def source_file(function: Callable[..., Any]) -> Path | None:
    """The file that an editing function, or the class of an object that is called, stands in; None without one."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(getattr(function, "__func__", function))
    try:
        found = inspect.getsourcefile(function if inspect.isroutine(function) else type(function))
    except TypeError:
        return None
    return Path(found).resolve() if found and Path(found).is_file() else None


def root_of(file: Path) -> Path:
    """The folder of a file, or that of the outermost package that the file is in."""
    folder = file.parent
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    return folder


def belonging(file: Path) -> list[Path]:
    """The file and what belongs to it, sorted: its package, or all that it imports from its own folder."""
    root = root_of(file)
    if root != file.parent:
        return sorted((root / file.relative_to(root).parts[0]).rglob("*.py"))
    found, left = {file}, [file]
    while left:
        for name in _imports(left.pop()):
            for path in (root / f"{name}.py", *sorted((root / name).rglob("*.py"))):
                if path.is_file() and path not in found:
                    found.add(path)
                    left.append(path)
    return sorted(found)


def _of_function(function: Any, seen: dict[int, tuple[str, Any]]) -> dict[str, Any]:
    closure = inspect.getclosurevars(function)
    file = source_file(function)
    held: dict[str, Any] = {"nonlocals": closure.nonlocals}
    if file is None:  # a notebook's, say: what else it uses is in no file either
        held["globals"] = closure.globals
    held |= {"defaults": function.__defaults__, "keyword defaults": function.__kwdefaults__}
    wrapped = getattr(function, "__wrapped__", None)
    return {
        "function": function.__qualname__,
        "code": _bytecode(function) if file is None or "<" in function.__qualname__ else "",
        "files": _hash_of(file) if file is not None else "",
        "holds": described(held, seen),
        **({"wraps": described(wrapped, seen)} if wrapped is not None else {}),
    }


def _code_of(cls: type) -> str:
    try:
        file = inspect.getsourcefile(cls)
    except TypeError:
        return ""
    return _hash_of(Path(file).resolve()) if file and Path(file).is_file() else ""


@functools.lru_cache(maxsize=256)
def _hash_at(file: Path, state: tuple[tuple[str, int, int], ...]) -> str:
    running = hashlib.sha256()
    for path in belonging(file):
        running.update(f"{path.relative_to(root_of(file)).as_posix()}\n".encode())
        running.update(path.read_bytes())
    return running.hexdigest()


def _hash_of(file: Path) -> str:
    """Of all that belongs to a file; read again only if one of them was written since."""
    if "site-packages" in file.parts or "dist-packages" in file.parts:
        file_state = ((str(file), file.stat().st_mtime_ns, file.stat().st_size),)
        return hashlib.sha256(repr(file_state[0][1:]).encode()).hexdigest()
    state = tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in belonging(file))
    return _hash_at(file, state)


def _bytecode(function: Any) -> str:
    """A hash of what a function does, wherever it stands."""
    code = function.__code__
    plain = [repr(each) for each in (*code.co_consts, *code.co_names) if not inspect.iscode(each)]
    nested = [each.co_code.hex() for each in code.co_consts if inspect.iscode(each)]
    return hashlib.sha256(code.co_code + " ".join(plain + nested).encode()).hexdigest()


def _imports(file: Path) -> set[str]:
    """The first parts of all modules that a file imports by name."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return set()
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.partition(".")[0] for name in names if name}


def _dotted(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}"
