"""What an editor writes: an update in factors, and what may happen to it on its way into the weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.decoder import OutProjection
from ..model.precision import compact
from ..nullspace.projection import NullSpace
from .rect import sparsified

_ROWS = 512


@dataclass(frozen=True)
class Update:
    """Δ = left rightᵀ of one layer, with left d_out × r and right d_in × r, in the weight's precision or float32."""

    layer: int
    left: Tensor
    right: Tensor

    def __post_init__(self) -> None:
        """In one layout always, so that writing an update again gives the same bits."""
        object.__setattr__(self, "left", compact(self.left))
        object.__setattr__(self, "right", compact(self.right))

    def dense(self) -> Tensor:
        """Δ, d_out × d_in, float64."""
        return self.left.to(torch.float64) @ self.right.to(torch.float64).T


@dataclass(frozen=True)
class Write:
    """How an update gets into a weight: W + Δ, or by way of RECT's sparsification, the projection, or both.

    Both happen before the next layer measures what is left to do. The same Write of the same Update into the same
    weight gives the same bits: a history of updates can be replayed.
    """

    keep: float | None = None
    null_spaces: Mapping[int, NullSpace] | None = None

    @property
    def again(self) -> Write:
        """What repeats, from the update that a call returned, exactly what that call did."""
        return Write() if self.keep is None else self

    @torch.no_grad()
    def __call__(self, projection: OutProjection, update: Update) -> Update:
        """Write, and return the update as it was written: projected already where that keeps it in factors."""
        weight = projection.matrix
        space = self.null_spaces[update.layer] if self.null_spaces is not None else None
        if self.keep is not None:
            delta = sparsified(update.dense(), weight.to(update.left.device), self.keep)
            _add(weight, delta if space is None else space.project(delta))
            return update
        if space is not None:
            update = Update(update.layer, update.left, space.project(update.right.T).T)
        right = update.right.to(torch.float64)
        for row in range(0, len(weight), _ROWS):  # in blocks: Δ is as large as the weight, and twice as precise
            part = slice(row, row + _ROWS)
            _add(weight[part], update.left[part].to(torch.float64) @ right.T)
        return update


def _add(weight: Tensor, delta: Tensor) -> None:
    """W + Δ, in float32 or better, rounded once."""
    work = torch.promote_types(weight.dtype, torch.float32)
    weight.copy_((weight.to(work) + delta.to(weight.device, work)).to(weight.dtype))
