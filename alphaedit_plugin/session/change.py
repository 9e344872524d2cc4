"""What an edit did to the weights themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..nullspace.covariance import Covariance
from ..nullspace.projection import NullSpace


@dataclass(frozen=True)
class Change:
    """By layer: `drift` ‖ΔW‖/‖W‖, `leakage` ‖ΔW K0‖/‖W K0‖, `outside` ‖ΔW(I − P)‖/‖ΔW‖.

    Leakage is known only for layers with a covariance, outside only for layers with a null space.
    """

    drift: dict[int, float] = field(default_factory=dict)
    leakage: dict[int, float] = field(default_factory=dict)
    outside: dict[int, float] = field(default_factory=dict)

    @classmethod
    def between(
        cls,
        before: Mapping[int, Tensor],
        after: Mapping[int, Tensor],
        covariances: Mapping[int, Covariance],
        null_spaces: Mapping[int, NullSpace] | None = None,
    ) -> Change:
        """The change from `before` to `after`, both layer → W, d_out × d_in."""
        return cls(
            {layer: drift(before[layer], weight) for layer, weight in after.items()},
            {
                layer: leakage(before[layer], weight, covariances[layer])
                for layer, weight in after.items()
                if layer in covariances
            },
            {layer: outside(before[layer], after[layer], space) for layer, space in (null_spaces or {}).items()},
        )


def drift(before: Tensor, after: Tensor) -> float:
    """‖ΔW‖ / ‖W‖, Frobenius."""
    return float((after.double() - before.double()).norm() / before.double().norm())


def leakage(before: Tensor, after: Tensor, covariance: Covariance) -> float:
    """‖ΔW K0‖ / ‖W K0‖: how much the layer's output for preserved keys has changed; 0 for a perfect null space.

    It is relative to the layer's own output, so plain and projected updates of any size can be compared. W is d_out ×
    d_in, and K0 enters through C = K0 K0ᵀ / N: ‖A K0‖² = N tr(A C Aᵀ).
    """
    c = covariance.matrix.to(before.device)
    w = before.double()
    delta = after.double() - w
    return max(0.0, float(((delta @ c) * delta).sum() / ((w @ c) * w).sum())) ** 0.5


def outside(before: Tensor, after: Tensor, space: NullSpace) -> float:
    """‖ΔW(I − P)‖ / ‖ΔW‖: the share of an update that is not in the null space; 0 for no update."""
    delta = after.double() - before.double()
    size = float(delta.norm())
    return float((delta - space.project(delta)).norm()) / size if size else 0.0
