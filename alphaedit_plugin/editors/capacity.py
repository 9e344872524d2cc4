"""How much room the facts that were written have left in a layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Capacity:
    """Of the `dimensions` that a method may write into, how many the kept keys K fill, and how alike these keys are.

    `used` is Σ s/(s + λ) over the eigenvalues s of KKᵀ, the effective degrees of freedom of the ridge regression
    (Hastie et al. 2009, 3.50): a direction counts as filled once its keys outweigh λ, and a new key in it moves
    nothing. `condition` is that of KKᵀ + λI on span(K), None if nothing is kept there.
    """

    dimensions: int
    used: float
    condition: float | None

    @classmethod
    def of(cls, dimensions: int, weights: Tensor) -> Capacity:
        """`weights` are s/λ of every direction that is kept, infinite ones of directions that are closed for good."""
        filled = (weights / (1 + weights)).nan_to_num(1.0)
        finite = weights[weights.isfinite()]
        condition = float((1 + finite.max()) / (1 + finite.min())) if len(finite) else None
        return cls(dimensions, min(float(filled.sum()), dimensions), condition)

    @property
    def left(self) -> float:
        """Dimensions that are still free."""
        return self.dimensions - self.used
