"""EvoEdit (Lyu et al. 2026, "Evolving Null-space Alignment for Robust and Efficient Knowledge Editing")."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..model.precision import compact
from .alphaedit import AlphaEdit
from .registry import method
from .ridge import Memory, Ridge, check_finite
from .singular import without


@dataclass(frozen=True)
class Deflation:
    """The null space of one layer as edits leave it: after each batch P ← P − QQᵀ, Q an orthonormal basis of P K.

    It works on keys that lie in the first null space. Invariant: `keys` are the batches' keys as they came, d × mᵢ, and
    `bases` their Q, d × rᵢ with rᵢ ≤ mᵢ, in the keys' type; all Q are orthogonal to each other. A direction counts if
    its singular value is above `cut` times the largest of the batch's keys. A batch costs O(d·n·m) for n keys before.
    """

    regularisation: float
    cut: float
    d: int
    keys: tuple[Tensor, ...] = ()
    bases: tuple[Tensor, ...] = ()

    @property
    def count(self) -> int:
        return sum(block.shape[1] for block in self.keys)

    def add(self, new: Tensor) -> tuple[Tensor, Deflation]:
        """PK (λI + KᵀPK)⁻¹ for new keys K, d × m, in float64, and the null space without them.

        Raises EditError as `Ridge.add` does.
        """
        new = compact(new)
        check_finite(new)
        inside = new.to(torch.float64)
        for _ in range(2):  # once leaves a rounding error as large as what was taken away, not as what is left
            for basis in self.bases:
                inside = without(inside, basis.to(torch.float64))
        u, sigma, _ = torch.linalg.svd(inside, full_matrices=False)
        directions = u[:, sigma > self.cut * torch.linalg.matrix_norm(new.to(torch.float64), 2)]
        inside = directions @ (directions.T @ inside)  # or λ = 0 would blow up the rounding of a key that repeats
        solution, _ = Ridge(self.regularisation, self.d).add(inside)
        return solution, replace(self, keys=(*self.keys, new), bases=(*self.bases, compact(directions.to(new))))

    def truncated(self, count: int) -> Deflation:
        """The null space without the first `count` keys only."""
        whole, left = 0, count
        while whole < len(self.keys) and self.keys[whole].shape[1] <= left:
            left -= self.keys[whole].shape[1]
            whole += 1
        first = replace(self, keys=self.keys[:whole], bases=self.bases[:whole])
        return first.add(self.keys[whole][:, :left])[1] if left else first

    def weights(self) -> Tensor:
        """Infinite: what has left the null space is closed."""
        return torch.full((sum(basis.shape[1] for basis in self.bases),), torch.inf, dtype=torch.float64)


@method(
    "evoedit",
    summary="AlphaEdit whose null space loses the keys of each batch",
    source="Lyu et al. 2026, arXiv 2510.13851",
    folder="AlphaEdit",
)
class EvoEdit(AlphaEdit):
    """Δ = R (λI + K1ᵀPK1)⁻¹ K1ᵀP, then P ← P − QQᵀ with the left singular vectors Q of PK1; λ = `L2`.

    Nothing that is written changes what the keys before it are mapped to, and Kp needs no place in the solve. P shrinks
    by a dimension for each key, so once they fill the null space nothing can be written any more; nor can a fact be
    written twice: its key is gone. The same holds for two subjects with nearly the same key. `cut` is the paper's
    threshold τ on singular values, made relative. (The released code takes that of rounding, and skips a batch whose
    ‖PK1‖ is below 1e-3, which here just writes little.)

    Modifiers act on Δ before it is projected onto the first P: what they put on directions of earlier keys stays.
    """

    settings: ClassVar = {"cut": 1e-6}

    def _ridge(self, layer: int) -> Memory:
        return self.memory.get(layer) or Deflation(self.regularisation, self.own["cut"], self.projections[layer].d_in)
