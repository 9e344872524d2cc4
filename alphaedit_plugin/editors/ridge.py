"""Regularised least squares over a growing set of keys: n × n or d × d, whichever is smaller."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from ..errors import EditError
from ..model.precision import compact

_ROWS = 512  # of keys kept in float32 are converted to float64 at a time
_NEGLIGIBLE = 1e-10  # without regularisation, a direction of this relative size is rounding, not a key


class Memory(Protocol):
    """The keys of all edits of one layer, and what solves the next batch with them in mind. An instance never
    changes.
    """

    @property
    def count(self) -> int:
        """How many keys it holds."""

    def add(self, new: Tensor) -> tuple[Tensor, Self]:
        """(the solution for new keys, d × m, in float64; the memory that also holds them)."""

    def truncated(self, count: int) -> Self:
        """The memory of the first `count` keys only; of whole batches, as it was after them, bit for bit."""

    def weights(self) -> Tensor:
        """s/λ for every direction that it keeps (`Capacity.of`), float64."""


@dataclass(frozen=True)
class Ridge:
    """(λI + KKᵀ)⁻¹ for the keys K of all edits so far, d × n; each new batch is solved together with them.

    Invariant: `keys` are the blocks of K, one per batch, and `rows` the block rows of the lower Cholesky factor of λI +
    KᵀK, float64: row block i is m_i × (m_1 + … + m_i). A batch of m keys adds a block and leaves the others unchanged:
    it costs O(d·n·m + n²·m), never O(d³), copies nothing, and dropping it restores the previous state. When n would
    exceed d, the d × d matrix λI + KKᵀ replaces the rows (`primal`).

    With λ = 0 only keys are kept, and the pseudo-inverse replaces the inverse.
    """

    regularisation: float
    d: int
    keys: tuple[Tensor, ...] = ()
    rows: tuple[Tensor, ...] = ()
    primal: Tensor | None = None

    @property
    def count(self) -> int:
        return sum(block.shape[1] for block in self.keys)

    def add(self, new: Tensor) -> tuple[Tensor, Ridge]:
        """(λI + KKᵀ + kkᵀ)⁻¹ k for new keys k, d × m, in float64, and the ridge that also holds them.

        Keys are kept in the type they come in. With A = λI + KᵀK, B = Kᵀk and the Schur complement S = λI + kᵀk −
        BᵀA⁻¹B the solution is (k − K A⁻¹B) S⁻¹: what each key adds to those before, and a system of the size of the
        batch. Raises EditError if a key is not finite, or if λ is too small to tell keys apart.
        """
        new = compact(new)
        check_finite(new)
        if self.regularisation == 0:
            return self._interpolated(new.to(torch.float64)), replace(self, keys=(*self.keys, new))
        if self.count + new.shape[1] > self.d:
            return self._add_primal(new.to(torch.float64), new)
        half = torch.cat([product(block, new) for block in (*self.keys, new)])
        half, schur = half[: self.count], half[self.count :]
        self._forward(half)
        schur.addmm_(half.T, half, alpha=-1).diagonal().add_(self.regularisation)
        corner, failed = torch.linalg.cholesky_ex(schur)
        if int(failed):
            raise EditError(
                f"λ = {self.regularisation:g} is too small for keys that all but repeat: raise it (mom2_update_weight, "
                "L2), or set it to 0"
            )
        rows = (*self.rows, torch.cat([half.T, corner], 1))
        self._backward(half)
        return self._solution(new, half, corner), replace(self, keys=(*self.keys, new), rows=rows)

    def truncated(self, count: int) -> Ridge:
        """The ridge of the first `count` keys only."""
        result, left = Ridge(self.regularisation, self.d), count
        for i, block in enumerate(self.keys):
            if left == 0:
                break
            size = min(left, block.shape[1])
            start = result.count
            keys = (*result.keys, block[:, :size])
            if self.primal is None:
                rows = (*result.rows, *(row[:size, : start + size] for row in self.rows[i : i + 1]))
                result = replace(result, keys=keys, rows=rows)
            else:
                result = result.add(block[:, :size])[1]
            left -= size
        return result

    def weights(self) -> Tensor:
        """The eigenvalues of KKᵀ over λ, of which there are as many as keys, or d: ascending, float64."""
        if not self.keys:
            return torch.zeros(0, dtype=torch.float64)
        keys = torch.cat(self.keys, 1)
        gram = product(keys, keys) if keys.shape[1] <= self.d else product(keys.T, keys.T)
        kept = torch.linalg.eigvalsh(gram).clamp_min(0)
        if self.regularisation == 0:  # a key is kept for good
            return torch.where(kept > _NEGLIGIBLE * kept[-1], torch.inf, 0.0).to(kept)
        return kept / self.regularisation

    def _forward(self, right: Tensor) -> None:
        """`right` becomes L⁻¹ right."""
        for start, row in self._starts():
            part = right[start : row.shape[1]]
            part.addmm_(row[:, :start], right[:start], alpha=-1)
            part.copy_(torch.linalg.solve_triangular(row[:, start:], part, upper=False))

    def _backward(self, right: Tensor) -> None:
        """`right` becomes L⁻ᵀ right."""
        for start, row in reversed(self._starts()):
            part = right[start : row.shape[1]]
            part.copy_(torch.linalg.solve_triangular(row[:, start:].T, part, upper=True))
            right[:start].addmm_(row[:, :start].T, part, alpha=-1)

    def _starts(self) -> list[tuple[int, Tensor]]:
        return [(row.shape[1] - row.shape[0], row) for row in self.rows]

    def _solution(self, new: Tensor, coefficients: Tensor, corner: Tensor) -> Tensor:
        """(k − K coefficients) S⁻¹, d × m, by S's Cholesky factor. By rows: in float64 keys are a lot of memory."""
        result = torch.empty(new.shape, dtype=torch.float64, device=new.device)
        for row in range(0, self.d, _ROWS):
            part, start = slice(row, row + _ROWS), 0
            rest = new[part].to(torch.float64, copy=True)
            for block in self.keys:
                end = start + block.shape[1]
                rest.addmm_(block[part].to(torch.float64), coefficients[start:end], alpha=-1)
                start = end
            result[part] = torch.cholesky_solve(rest.T, corner).T
        return result

    def _add_primal(self, k: Tensor, new: Tensor) -> tuple[Tensor, Ridge]:
        """(M + kkᵀ)⁻¹ k = M⁻¹k (I + kᵀM⁻¹k)⁻¹ with M = λI + KKᵀ."""
        primal = self.primal
        if primal is None:
            primal = self.regularisation * torch.eye(self.d, dtype=torch.float64, device=k.device)
            for block in self.keys:
                primal += product(block.T, block.T)
        inside = torch.cholesky_solve(k, torch.linalg.cholesky(primal))
        gram = k.T @ inside
        gram.diagonal().add_(1.0)
        solution = torch.linalg.solve(gram, inside.T).T
        return solution, replace(self, keys=(*self.keys, new), rows=(), primal=primal + k @ k.T)

    def _interpolated(self, k: Tensor) -> Tensor:
        """The limit of the solution as λ goes to 0; keys may repeat or outnumber the dimensions."""
        together = torch.cat([*(block.to(torch.float64) for block in self.keys), k], 1)
        inverse = torch.linalg.pinv(product(together, together), rtol=_NEGLIGIBLE, hermitian=True)
        return together @ inverse[:, -k.shape[1] :]


def check_finite(keys: Tensor) -> None:
    """Raises EditError for a key that is not finite."""
    if not torch.isfinite(keys).all():
        raise EditError("a key is not finite: load the model in float32")


def product(a: Tensor, b: Tensor) -> Tensor:
    """aᵀb in float64, for a and b of any type, without a second copy of either."""
    result = torch.zeros(a.shape[1], b.shape[1], dtype=torch.float64, device=a.device)
    for row in range(0, a.shape[0], _ROWS):
        part = slice(row, row + _ROWS)
        result.addmm_(a[part].to(torch.float64).T, b[part].to(torch.float64))
    return result
