"""The cache on disk: texts, covariances and null spaces, addressed by what determines them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from torch import Tensor

from ..errors import StoreError
from .files import remove_leftover
from .lease import leased
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
            tensors, metadata = read_tensors(path, StoreError)
            if metadata.get("recipe") != json.loads(json.dumps(dict(recipe))):
                raise StoreError(f"{path} was not made from what its name says: it is another entry of the cache")
            return tensors
        except StoreError as failure:
            log.warning("%s; it is computed anew", failure)
            with suppress(OSError):  # a cache that may only be read
                path.unlink()
            return None

    def put(self, kind: str, recipe: Recipe, tensors: Mapping[str, Tensor]) -> None:
        write_tensors(self.path(kind, recipe), tensors, {"recipe": dict(recipe)}, StoreError)

    def get_or_make(
        self, kind: str, recipes: Mapping[int, Recipe], make: Callable[[list[int]], Mapping[int, Mapping[str, Tensor]]]
    ) -> dict[int, dict[str, Tensor]]:
        """The result of every recipe. `make` is called once, with the keys of the missing ones.

        A cache that holds all of them need not be writable.
        """
        found = {key: self.get(kind, recipe) for key, recipe in recipes.items()}
        if all(tensors is not None for tensors in found.values()):
            return {key: tensors for key, tensors in found.items() if tensors is not None}
        lock = hashlib.sha256(json.dumps(sorted(str(self.path(kind, r)) for r in recipes.values())).encode())
        with self.lock(f"{kind}-{lock.hexdigest()[:16]}"):
            found |= {key: self.get(kind, recipes[key]) for key, tensors in found.items() if tensors is None}
            missing = [key for key, tensors in found.items() if tensors is None]
            if missing:
                for key, tensors in make(missing).items():
                    self.put(kind, recipes[key], tensors)
                    found[key] = dict(tensors)
        return {key: tensors for key, tensors in found.items() if tensors is not None}

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Let one process at a time into the block. Raises StoreError if the cache cannot be written."""
        held = ExitStack()
        try:
            held.enter_context(leased(self.root / "locks" / f"{name}.lease", wait=True))
        except OSError as failure:
            raise StoreError(f"cannot write to the cache {self.root}: {failure}. Set ${ENVIRONMENT}") from failure
        with held:
            yield

    def entries(self) -> list[Entry]:
        """All results, largest first; a converted model (a folder) counts as one, a link as what it takes itself."""
        found = [
            Entry("models", folder, {"model": folder.name}, _size(folder))
            for folder in self.root.glob("models/*")
            if (folder.is_dir() or folder.is_symlink()) and not folder.name.startswith(".")
        ]
        for path in self.root.glob("*/*.safetensors"):
            if path.name.startswith("."):
                continue
            with suppress(FileNotFoundError):  # removed meanwhile
                found.append(Entry(path.parent.name, path, _recipe_of(path), _size(path)))
        return sorted(found, key=lambda entry: -entry.size)

    def clear(self, kind: str | None = None) -> int:
        """Remove all entries (of one kind), and what killed writers left; returns the number of bytes freed.

        A symbolic link is removed, and what it leads to stays. Raises StoreError if an entry cannot be removed.
        """
        freed = 0
        try:
            for folder in [each for each in self.root.glob("*") if each.is_symlink() and kind in (None, each.name)]:
                folder.unlink()
            for leftover in self.root.glob("*/.*"):
                if not leftover.parent.is_symlink():
                    remove_leftover(leftover)
            for entry in self.entries():
                if kind not in (None, entry.kind) or entry.path.parent.is_symlink():
                    continue
                if entry.path.is_dir() and not entry.path.is_symlink():
                    shutil.rmtree(entry.path)
                else:
                    entry.path.unlink(missing_ok=True)
                freed += entry.size
        except OSError as failure:
            raise StoreError(f"cannot clear the cache {self.root}: {failure}") from failure
        return freed


def _recipe_of(path: Path) -> Recipe:
    """The recipe in the header of a safetensors file, without reading its tensors."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, 1 << 24)))
        recipe = json.loads(header["__metadata__"]["alphaedit"])["recipe"]
        return recipe if isinstance(recipe, Mapping) else {}
    except (ValueError, KeyError, TypeError, RecursionError, OSError):
        return {}


def _size(path: Path) -> int:
    """In bytes, of a file or of all files in a folder; links are not followed."""
    inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else ()
    return sum(each.lstat().st_size for each in (path, *inside) if not each.is_dir() or each.is_symlink())
