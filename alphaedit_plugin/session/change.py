"""What an edit did to the weights themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
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


_PROBES, _ROWS = 8, 64


def sketch(before: Tensor, after: Tensor) -> list[float]:
    """A few numbers by which two changes of a weight, d_out × d_in, can be compared: uᵢᵀ ΔW vᵢ for fixed uᵢ and vᵢ.

    The entries of uᵢ and vᵢ spread over [−1, 1], so each number is of the order of ‖ΔW‖ / 2, and so is the difference
    of two sketches to that of the changes.
    """
    work = torch.promote_types(after.dtype, torch.float32)
    left, right = (
        torch.sin(torch.outer(torch.arange(1, _PROBES + 1).double() * step, torch.arange(1, size + 1).double() ** 1.5))
        for step, size in zip((1.618033988749895, 1.324717957244746), after.shape, strict=True)
    )
    found, left = torch.zeros_like(right), left.to(after.device, work)
    for start in range(0, len(after), _ROWS):  # so few rows that what is computed stays in the caches
        rows = slice(start, start + _ROWS)
        delta = after[rows].to(work) - before[rows].to(after.device, work)
        found += (left[:, rows] @ delta).cpu()
    return (found * right).sum(1).tolist()


def same_change(one: Sequence[float], other: Sequence[float], before: Tensor, after: Tensor) -> bool:
    """Whether two sketches differ by no more than rounding does that differs between two machines.

    That is a change in the last bit of some of the weights, or a thousandth of ΔW.
    """
    weight = float(before.double().norm())
    delta = float((after.double() - before.double()).norm())
    allowed = 1e-3 * delta + 0.3 * torch.finfo(before.dtype).eps * weight
    return len(one) == len(other) and all(abs(a - b) <= 4 * allowed for a, b in zip(one, other, strict=True))


def outside(before: Tensor, after: Tensor, space: NullSpace) -> float:
    """‖ΔW(I − P)‖ / ‖ΔW‖: the share of an update that is not in the null space; 0 for no update."""
    delta = after.double() - before.double()
    size = float(delta.norm())
    return float((delta - space.project(delta)).norm()) / size if size else 0.0
