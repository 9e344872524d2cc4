"""One call to a session's `edit`, or a part of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from ..editors.editor import Written
from ..editors.requests import Request
from ..editors.targets import Targets
from ..editors.update import Update
from ..editors.verdict import Answer
from .manifest import requests_of

_MEASURED = ("losses", "missed", "z_star")


@dataclass(frozen=True)
class Asked:
    """What the model said to a batch's facts before and after it, and which of them have the attention sink's key."""

    before: tuple[Answer, ...]
    after: tuple[Answer, ...]
    first_tokens: tuple[int, ...] = ()

    def packed(self) -> dict[str, Any]:
        """In JSON's types."""
        before, after = ([list(vars(answer).values()) for answer in each] for each in (self.before, self.after))
        return {"before": before, "after": after, "first_tokens": list(self.first_tokens)}

    def of(self, rows: Sequence[int], after: Sequence[Answer]) -> Asked:
        """Of these facts alone, written again: then the model says `after`."""
        first = tuple(at for at, row in enumerate(rows) if row in self.first_tokens)
        return Asked(tuple(self.before[row] for row in rows), tuple(after), first)

    @classmethod
    def unpacked(cls, values: Mapping[str, Any]) -> Asked:
        before, after = (tuple(Answer(*answer) for answer in values[each]) for each in ("before", "after"))
        return cls(before, after, tuple(values["first_tokens"]))


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


@dataclass(frozen=True, eq=False)
class Batch:
    """The facts of one call to `edit`, or of a part of it that a budget allowed, and what was written for them.

    A batch equals only itself. `asked` is None if the model was not asked (`on_failure="ignore"`, or a session that an
    earlier version saved). `time`, to the second, is no part of what a batch's file holds: two sessions with the same
    edits are the same. It is None where nobody noted it.
    """

    requests: tuple[Request, ...]
    written: Written
    asked: Asked | None = None
    time: datetime | None = field(default_factory=_now)

    def targets(self, rows: Sequence[int]) -> Targets | None:
        """What these of its facts were to reach, to be reached again; None if an earlier version saved the session."""
        written = self.written
        if written.z_star is None or written.losses is None:
            return None
        return Targets.kept(written.z_star, written.losses).of(rows)

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, metadata) as a file holds them."""
        tensors: dict[str, Tensor] = {}
        for i, update in enumerate(self.written.updates):
            tensors[f"update.{i}.left"], tensors[f"update.{i}.right"] = update.left, update.right
        for layer, keys in self.written.keys.items():
            tensors[f"keys.{layer}"] = keys
        for name in _MEASURED:
            if (values := getattr(self.written, name)) is not None:
                tensors[name] = values
        metadata: dict[str, Any] = {
            "requests": [vars(request) for request in self.requests],
            "layers": [update.layer for update in self.written.updates],
        }
        if self.asked is not None:
            metadata["asked"] = self.asked.packed()
        return tensors, metadata

    @classmethod
    def unpacked(
        cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], time: datetime | None = None
    ) -> Batch:
        """The batch that `packed` made. Raises KeyError for anything else."""
        updates = [
            Update(layer, tensors[f"update.{i}.left"], tensors[f"update.{i}.right"])
            for i, layer in enumerate(metadata["layers"])
        ]
        keys = {int(key.partition(".")[2]): value for key, value in tensors.items() if key.startswith("keys.")}
        written = Written(updates, keys, **{name: tensors.get(name) for name in _MEASURED})
        asked = Asked.unpacked(metadata["asked"]) if "asked" in metadata else None
        return cls(requests_of(metadata), written, asked, time)


def stacked(batches: Sequence[Batch]) -> dict[int, tuple[Tensor, Tensor]]:
    """layer → (left, right) of all updates together: ΔW = left rightᵀ, except for the rounding of each write."""
    found: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
    for batch in batches:
        for update in batch.written.updates:
            lefts, rights = found.setdefault(update.layer, ([], []))
            lefts.append(update.left)
            rights.append(update.right)
    return {layer: (torch.cat(lefts, 1), torch.cat(rights, 1)) for layer, (lefts, rights) in found.items()}
