"""The edits of a session, in memory and on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .editors import Update, Written
from .errors import SessionError
from .files import read_tensors, write_tensors, write_text
from .requests import Request

MANIFEST = "session.json"
_BATCHES = "batches"
FORMAT = 1


@dataclass(frozen=True, eq=False)
class Batch:
    """The facts of one call to `edit`, and what was written for them."""

    requests: tuple[Request, ...]
    written: Written

    def save(self, folder: Path, index: int) -> str:
        """Write the batch to a file of its own, never over another; returns its name."""
        tensors: dict[str, Tensor] = {}
        for i, update in enumerate(self.written.updates):
            tensors[f"update.{i}.left"], tensors[f"update.{i}.right"] = update.left, update.right
        for layer, keys in self.written.keys.items():
            tensors[f"keys.{layer}"] = keys
        metadata = {
            "requests": [vars(request) for request in self.requests],
            "layers": [update.layer for update in self.written.updates],
        }
        name = f"{index:06d}.safetensors"
        taken = 0
        while (folder / _BATCHES / name).exists():  # of a batch undone since, or of one not in the manifest yet
            taken += 1
            name = f"{index:06d}-{taken}.safetensors"
        write_tensors(folder / _BATCHES / name, tensors, metadata, SessionError)
        return name

    @classmethod
    def load(cls, folder: Path, name: str) -> Batch:
        """Raises SessionError, naming the file, when it is absent or damaged."""
        path = folder / _BATCHES / name
        tensors, metadata = read_tensors(path, SessionError)
        if "layers" not in metadata or "requests" not in metadata:
            raise SessionError(f"{path} holds no batch of a session: it is another kind of file of ours")
        updates = [
            Update(layer, tensors[f"update.{i}.left"], tensors[f"update.{i}.right"])
            for i, layer in enumerate(metadata["layers"])
        ]
        keys = {int(key.partition(".")[2]): value for key, value in tensors.items() if key.startswith("keys.")}
        requests = tuple(Request(**request) for request in metadata["requests"])
        return cls(requests, Written(updates, keys))


def is_saved(folder: Path, name: str | None) -> bool:
    """Whether a batch of that name is in the folder."""
    return name is not None and (folder / _BATCHES / name).exists()


def save_manifest(folder: Path, values: Mapping[str, Any], names: Sequence[str]) -> None:
    """Make the batches of these names the session's: from this moment, and not before, the folder holds them."""
    text = json.dumps({"format": FORMAT, **values, "batches": list(names)}, indent=1, ensure_ascii=False)
    write_text(folder / MANIFEST, text, SessionError)
    for path in (folder / _BATCHES).glob("*.safetensors"):
        if path.name not in names:
            with suppress(OSError):  # it is in nobody's way: the next save tries again
                path.unlink()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises SessionError, naming the file, for what is no session or a damaged one."""
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as failure:
        raise SessionError(f"{folder} holds no session: cannot read {path} ({failure})") from failure
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise SessionError(f"{path} is no session of this version of alphaedit-plugin")
    return values


def stacked(batches: Sequence[Batch]) -> dict[int, tuple[Tensor, Tensor]]:
    """layer → (left, right) of all updates together: ΔW = left rightᵀ, but for the rounding of every write."""
    found: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
    for batch in batches:
        for update in batch.written.updates:
            lefts, rights = found.setdefault(update.layer, ([], []))
            lefts.append(update.left)
            rights.append(update.right)
    return {layer: (torch.cat(lefts, 1), torch.cat(rights, 1)) for layer, (lefts, rights) in found.items()}


def is_session(folder: Path) -> bool:
    """Whether a session was saved there."""
    return (folder / MANIFEST).exists()
