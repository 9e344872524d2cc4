"""What an editor writes: an update in factors, and what may happen to it on its way into the weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import EditError
from ..model.decoder import OutProjection
from ..model.precision import compact
from ..nullspace.projection import NullSpace

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
class Site:
    """Where an update is about to be written: W as it is now and W before the first edit, d_out × d_in, and the null
    space that the layer's changes are kept in, if they are.
    """

    layer: int
    weight: Tensor
    base: Tensor
    null_space: NullSpace | None = None


Change = Callable[[Update, Site], "Update | Tensor"]
"""What a modifier does to an update: it stays in factors, or becomes a matrix, d_out × d_in."""


@dataclass(frozen=True)
class Write:
    """How an update gets into a weight: W + Δ, or by way of modifiers, the projection, or both.

    Both happen before the next layer measures what is left to do. The same Write of the same Update into the same
    weight gives the same bits: a history of updates can be replayed. `base` is W before the first edit, by layer, for
    the modifiers to see. `in_factors` says that all of them return an Update.
    """

    modifiers: tuple[Change, ...] = ()
    null_spaces: Mapping[int, NullSpace] | None = None
    base: Mapping[int, Tensor] = field(default_factory=dict)
    in_factors: bool = False

    @property
    def again(self) -> Write:
        """What repeats, from the update that a call returned, exactly what that call did."""
        return self if self.modifiers and not self.in_factors else Write()

    @torch.no_grad()
    def __call__(self, projection: OutProjection, update: Update) -> Update:
        """Write, and return the update: as it was written where that keeps it in factors, otherwise as it was given.

        Raises EditError for a modifier that does not return what it says.
        """
        weight = projection.matrix
        space = self.null_spaces[update.layer] if self.null_spaces is not None else None
        changed: Update | Tensor = update
        for modify in self.modifiers:
            if isinstance(changed, Tensor):
                changed = _factored(update, changed)
            site = Site(update.layer, weight, self.base[update.layer], space)
            changed = modify(changed, site)
        self._check(changed, weight)
        if isinstance(changed, Tensor):
            _add(weight, changed if space is None else space.project(changed))
            return update
        if space is not None:
            changed = Update(changed.layer, changed.left, space.project(changed.right.T).T)
        right = changed.right.to(torch.float64)
        for row in range(0, len(weight), _ROWS):  # in blocks: Δ is as large as the weight, and twice as precise
            part = slice(row, row + _ROWS)
            _add(weight[part], changed.left[part].to(torch.float64) @ right.T)
        return changed if self.in_factors or not self.modifiers else update

    def _check(self, changed: Update | Tensor, weight: Tensor) -> None:
        if isinstance(changed, Update):
            shape = (len(changed.left), len(changed.right))
        elif isinstance(changed, Tensor) and not self.in_factors:
            shape = tuple(changed.shape)  # type: ignore[assignment]
        else:
            wanted = "an Update" if self.in_factors else "an Update or a matrix"
            raise EditError(f"a modifier returned a {type(changed).__name__}, where {wanted} was expected")
        if shape != tuple(weight.shape):
            raise EditError(f"a modifier made Δ {shape}, where the weight is {tuple(weight.shape)}")


def _factored(update: Update, delta: Tensor) -> Update:
    """A matrix as an update, for a modifier that comes after one that made it: Δ = Δ I."""
    return Update(update.layer, delta, torch.eye(delta.shape[1], dtype=delta.dtype, device=delta.device))


def _add(weight: Tensor, delta: Tensor) -> None:
    """W + Δ, in float32 or better, rounded once."""
    work = torch.promote_types(weight.dtype, torch.float32)
    weight.copy_((weight.to(work) + delta.to(weight.device, work)).to(weight.dtype))
