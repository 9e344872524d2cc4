"""The cache on disk: texts, covariances and null spaces, addressed by what determines them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock
from torch import Tensor

from ..errors import StoreError
from .tensors import read_tensors, write_tensors

log = logging.getLogger(__name__)

FORMAT = 1
ENVIRONMENT = "ALPHAEDIT_CACHE"
KINDS = ("text", "covariance", "null-space", "partial", "models")

Recipe = Mapping[str, Any]
"""Everything that determines a result, in JSON's types."""


@dataclass(frozen=True)
class Entry:
    """One file of the store: what kind it is, what it was made from, and its size in bytes."""

    kind: str
    path: Path
    recipe: Recipe
    size: int


class Store:
    """A directory of results, each under the hash of its recipe.

    Invariant: every file in it is complete and was made from exactly its recipe. Writes are atomic and reads verify a
    checksum. If several processes ask for the same results, one computes them while the others wait.

    The directory is `root`, else $ALPHAEDIT_CACHE, else the platform's user cache directory.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        default = os.environ.get(ENVIRONMENT) or platformdirs.user_cache_dir("alphaedit", appauthor=False)
        self.root = Path(root or default).expanduser()

    def path(self, kind: str, recipe: Recipe) -> Path:
        text = json.dumps({"format": FORMAT, **recipe}, sort_keys=True)
        return self.root / kind / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"

    def get(self, kind: str, recipe: Recipe) -> dict[str, Tensor] | None:
        """The stored tensors, or None. A damaged file is reported, removed and counts as absent."""
        path = self.path(kind, recipe)
        if not path.exists():
            return None
        try:
            return read_tensors(path, StoreError)[0]
        except StoreError as failure:
            log.warning("%s; it is computed anew", failure)
            path.unlink(missing_ok=True)
            return None

    def put(self, kind: str, recipe: Recipe, tensors: Mapping[str, Tensor]) -> None:
        write_tensors(self.path(kind, recipe), tensors, {"recipe": dict(recipe)}, StoreError)

    def get_or_make(
        self, kind: str, recipes: Mapping[int, Recipe], make: Callable[[list[int]], Mapping[int, Mapping[str, Tensor]]]
    ) -> dict[int, dict[str, Tensor]]:
        """The result of every recipe. `make` is called once, with the keys of the missing ones."""
        lock = hashlib.sha256(json.dumps(sorted(str(self.path(kind, r)) for r in recipes.values())).encode())
        with self.lock(f"{kind}-{lock.hexdigest()[:16]}"):
            found = {key: self.get(kind, recipe) for key, recipe in recipes.items()}
            missing = [key for key, tensors in found.items() if tensors is None]
            if missing:
                for key, tensors in make(missing).items():
                    self.put(kind, recipes[key], tensors)
                    found[key] = dict(tensors)
        return {key: tensors for key, tensors in found.items() if tensors is not None}

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Let one process at a time into the block. Raises StoreError if the cache cannot be written."""
        folder = self.root / "locks"
        lock = FileLock(folder / f"{name}.lock")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as failure:
            raise StoreError(f"cannot write to the cache {self.root}: {failure}. Set ${ENVIRONMENT}") from failure
        try:
            yield
        finally:
            lock.release()

    def entries(self) -> list[Entry]:
        """All results, largest first; a converted model (a folder) counts as one."""
        found = [
            Entry("models", folder, {"model": folder.name}, sum(f.stat().st_size for f in folder.iterdir()))
            for folder in self.root.glob("models/*")
            if folder.is_dir()
        ]
        for path in self.root.glob("*/*.safetensors"):
            if path.name.startswith("."):
                continue
            try:
                recipe = _recipe_of(path)
                found.append(Entry(path.parent.name, path, recipe, path.stat().st_size))
            except FileNotFoundError:
                continue
        return sorted(found, key=lambda entry: -entry.size)

    def clear(self, kind: str | None = None) -> int:
        """Remove all entries (of one kind); returns the number of bytes freed."""
        for leftover in self.root.glob("*/.*.safetensors"):  # of a process that was killed while writing
            leftover.unlink(missing_ok=True)
        freed = 0
        for entry in self.entries():
            if kind is None or entry.kind == kind:
                if entry.path.is_dir():
                    shutil.rmtree(entry.path)
                else:
                    entry.path.unlink(missing_ok=True)
                freed += entry.size
        return freed


def _recipe_of(path: Path) -> Recipe:
    """The recipe in the header of a safetensors file, without reading its tensors."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, 1 << 24)))
        return json.loads(header["__metadata__"]["alphaedit"]).get("recipe", {})
    except (ValueError, KeyError):
        return {}
