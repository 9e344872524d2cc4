"""The projection of one layer onto the null space of preserved keys."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, Self

import torch
from torch import Tensor

from ..errors import NullSpaceError
from ..model.decoder import OutProjection
from .covariance import Covariance
from .cut import cut

log = logging.getLogger(__name__)

PAPER_THRESHOLD = 2e-2
_COLUMNS = 256


@dataclass(frozen=True)
class Criterion:
    """Which eigenvectors of C are null. Exactly one of:

    - `threshold`: eigenvalue below this number (the paper; 2e-2 in every released YAML);
    - `energy`: the smallest eigenvalues that together hold at most this share of tr(C), not counting its largest
      eigenvalue (an attention sink, which would otherwise dominate the share);
    - `nullity`: this share of the dimensions (0 < n < 1), or this many of them (n ≥ 1).

    An absolute eigenvalue means different things on different models and layers; the other two do not.

    Raises NullSpaceError unless exactly one is given, as a positive number in its range.
    """

    threshold: float | None = None
    energy: float | None = None
    nullity: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise NullSpaceError(f"give exactly one of threshold, energy and nullity, not {given or 'none'}")
        ((name, value),) = given.items()
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
            raise NullSpaceError(f"{name} must be a positive number, not {value!r}")
        if name == "energy" and value >= 1:
            raise NullSpaceError(f"energy is a share of the whole: it must be below 1, not {value}")
        if name == "nullity" and value > 1 and value != int(value):
            raise NullSpaceError(f"nullity is a whole number of dimensions or a share below 1, not {value}")
        object.__setattr__(self, name, float(value))  # 15 and 15.0 are the same criterion, also as text

    @classmethod
    def given(cls, default: Criterion, **values: float | None) -> Criterion:
        """The criterion that the `values` (threshold, energy, nullity) say, or the default if none of them is given."""
        return default if all(value is None for value in values.values()) else cls(**values)

    def __str__(self) -> str:
        ((name, value),) = ((n, v) for n, v in vars(self).items() if v is not None)
        return f"{name} {value:g}"

    def nullity_of(self, eigenvalues: Tensor) -> int:
        """How many of the ascending `eigenvalues` are null."""
        d = len(eigenvalues)
        if self.threshold is not None:
            return int((eigenvalues < self.threshold).sum())
        if self.energy is not None:
            energy = eigenvalues.clamp_min(0).cumsum(0)
            return int((energy[:-1] <= self.energy * energy[-2]).sum()) if d > 1 else 0
        assert self.nullity is not None
        return round(self.nullity * d) if self.nullity < 1 else int(self.nullity)


def energy_share(eigenvalues: Tensor, nullity: int) -> float:
    """tr(PCP) / tr(C), where P projects onto the eigenvectors of C's `nullity` smallest `eigenvalues` (ascending)."""
    energy = eigenvalues.clamp_min(0)
    return float(energy[:nullity].sum() / energy.sum())


PAPER = Criterion(threshold=PAPER_THRESHOLD)


class Allowed(Protocol):
    """What a guard asks of the subspace that it keeps ΔW inside of, for one layer.

    `project` is the orthogonal projection onto it (linear, idempotent, symmetric) of Δ, d_out × d_in, in Δ's type and
    on Δ's device.
    """

    @property
    def d_in(self) -> int: ...

    def project(self, delta: Tensor) -> Tensor: ...

    def to(self, device: torch.device | str) -> Self: ...


@dataclass(frozen=True)
class NullSpace:
    """P, the orthogonal projection onto the span of the eigenvectors of C that count as null.

    Invariant: P² = P = Pᵀ. P is kept as the thinner of two orthonormal bases: of the null space (`side` "null",
    P x = U Uᵀ x) or of its complement (`side` "range", P x = x − U Uᵀ x). `factor` is U, d_in × m, float32.
    `eigenvalues` are those of C, ascending, d_in, float64.
    """

    factor: Tensor
    side: Literal["null", "range"]
    eigenvalues: Tensor

    @classmethod
    def of(cls, covariance: Covariance | Tensor, criterion: Criterion = PAPER, *, name: str = "the layer") -> NullSpace:
        """The null space of a covariance, decided in float64.

        Raises NullSpaceError if C is not finite, or, describing the spectrum, if nothing or everything is null.
        """
        matrix = covariance.matrix if isinstance(covariance, Covariance) else covariance
        matrix = matrix.to(torch.float64)
        if not torch.isfinite(matrix.sum()):  # far quicker than to look at each
            raise NullSpaceError(f"the covariance of {name} is not finite: compute it again")
        eigenvalues, nullity, factor = cut(matrix, criterion.nullity_of)
        d = len(eigenvalues)
        spectrum = (
            f"its eigenvalues go from {eigenvalues[0]:.3g} over {eigenvalues.median():.3g} to {eigenvalues[-1]:.3g}"
        )
        if nullity <= 0:
            raise NullSpaceError(
                f"nothing is null in {name} at {criterion}: {spectrum}. Choose a larger value, or a relative criterion "
                "(energy or nullity)"
            )
        if nullity >= d:
            raise NullSpaceError(
                f"everything is null in {name} at {criterion}: {spectrum}, so nothing would be preserved. Choose a "
                "smaller value, or a relative criterion (energy or nullity)"
            )
        return cls(factor, "null" if nullity <= d - nullity else "range", eigenvalues)

    @classmethod
    def whole(cls, d: int) -> NullSpace:
        """All d dimensions: P = I, which spares nothing."""
        return cls(torch.zeros(d, 0), "range", torch.zeros(d, dtype=torch.float64))

    @classmethod
    def intersection(cls, spaces: Sequence[NullSpace]) -> NullSpace:
        """The directions that lie in each of these null spaces: those that Σ (I − Pᵢ) maps to zero.

        `eigenvalues` are those of that sum. Two directions count as one if the factors' float32 cannot tell them apart
        (the sum's eigenvalue is the square of their angle). Raises NullSpaceError if there are none.
        """
        d = spaces[0].d_in
        outside = torch.zeros(d, d, dtype=torch.float64, device=spaces[0].factor.device)
        for space in spaces:
            basis = torch.linalg.qr(space.factor.to(outside)).Q  # float32 is orthonormal to 1e-7 only
            inside = basis @ basis.T
            outside += inside if space.side == "range" else torch.eye(d).to(outside) - inside
        angle = 2 * d**0.5 * torch.finfo(torch.float32).eps
        return cls.of(outside, Criterion(threshold=angle**2), name="the layers together")

    @property
    def d_in(self) -> int:
        return self.factor.shape[0]

    @property
    def nullity(self) -> int:
        """The dimension of the null space."""
        return self.factor.shape[1] if self.side == "null" else self.d_in - self.factor.shape[1]

    def check_fits(self, projection: OutProjection) -> None:
        """Raises NullSpaceError if the out-projection has another width."""
        if self.d_in != projection.d_in:
            raise NullSpaceError(
                f"the null space of layer {projection.layer} has {self.d_in} dimensions, {projection.name} "
                f"{projection.d_in}: it is another model's"
            )

    def project(self, delta: Tensor) -> Tensor:
        """ΔP for Δ of shape … × d_in, computed in float32 or better, in Δ's type and on Δ's device.

        Raises NullSpaceError if Δ has another width.
        """
        if delta.shape[-1] != self.d_in:
            raise NullSpaceError(f"an update of shape {tuple(delta.shape)} does not end in d_in = {self.d_in}")
        work = torch.promote_types(delta.dtype, torch.float32)
        x, factor = delta.to(work), self.factor.to(delta.device)
        inside = torch.zeros_like(x)
        step = _COLUMNS if factor.dtype != work else max(1, factor.shape[1])
        for column in range(0, factor.shape[1], step):  # in blocks: no second copy of the factor in float64
            u = factor[:, column : column + step].to(work)
            inside += (x @ u) @ u.T
        return (inside if self.side == "null" else x - inside).to(delta.dtype)

    def dense(self) -> Tensor:
        """P, d_in × d_in, float64. For tests and export: editing never needs it."""
        u = self.factor.to(torch.float64)
        product = u @ u.T
        inside = (product + product.T) / 2  # some processors round the two halves of a matrix product differently
        return inside if self.side == "null" else torch.eye(self.d_in, dtype=torch.float64) - inside

    def leakage(self, covariance: Covariance | Tensor | None = None) -> float:
        """tr(PCP) / tr(C): the share of the keys' energy that the null space still holds. 0 is a true null space.

        By default C is the covariance that P was made from, known by its eigenvalues; any other one may be given.
        """
        if covariance is None:
            return energy_share(self.eigenvalues, self.nullity)
        c = covariance.matrix if isinstance(covariance, Covariance) else covariance
        u = self.factor.to(c.device, torch.float64)
        held = float(((c.to(torch.float64) @ u) * u).sum() / c.trace())
        return max(0.0, held if self.side == "null" else 1.0 - held)

    def to(self, device: torch.device | str) -> NullSpace:
        return replace(self, factor=self.factor.to(device))
