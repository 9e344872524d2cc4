"""A projection that spares directions of a weight's output too."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .projection import NullSpace


@dataclass(frozen=True)
class TwoSided(NullSpace):
    """ΔW → (I − LLᵀ) ΔW P, P as in `NullSpace`; `left` is L, d_out × k, orthonormal, float64.

    Invariant: it is an orthogonal projection, so a guard that projects twice projects once.
    """

    left: Tensor = field(kw_only=True)

    @classmethod
    def sparing(cls, space: NullSpace, left: Tensor, right: Tensor) -> TwoSided:
        """What `space` leaves outside of span(`left`), d_out × k, and span(`right`), d_in × k; orthonormal bases.

        On the right this is what the null space has in common with the complement of `right`: a product of two
        projections would be none. `eigenvalues` are those of `NullSpace.intersection`. Raises NullSpaceError if nothing
        is left.
        """
        narrow = NullSpace(right.to(space.factor), "range", space.eigenvalues)
        common = NullSpace.intersection([space, narrow])
        before = space.left.to(left) if isinstance(space, TwoSided) else left[:, :0]
        both = torch.linalg.qr(torch.cat([before, left], 1)).Q
        return cls(common.factor, common.side, common.eigenvalues, left=both)

    def project(self, delta: Tensor) -> Tensor:
        """(I − LLᵀ)ΔP for Δ of shape d_out × d_in, as `NullSpace.project`."""
        work = torch.promote_types(delta.dtype, torch.float32)
        right = super().project(delta.to(work))
        left = self.left.to(right)
        return (right - left @ (left.T @ right)).to(delta.dtype)
