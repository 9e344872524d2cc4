"""BetaEdit (Liu et al. 2026, "BetaEdit: Null-Space Constrained Sequential Model Editing", arXiv 2605.09285)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import HyperparameterError
from ..model.precision import float64_device
from ..nullspace.projection import Criterion, NullSpace
from .alphaedit import AlphaEdit
from .hyperparameters import Hyperparameters
from .preserved import Preserved
from .registry import method
from .ridge import Memory, Ridge
from .whitening import check_covariances, cholesky


@method(
    "betaedit",
    summary="alphaedit that also pays for what leaks out of the null space, and chooses it anew as facts come in",
    source="Liu et al. 2026, arXiv 2605.09285",
    folder="AlphaEdit",
)
class BetaEdit(AlphaEdit):
    """Δ = R K1ᵀP (P(K1K1ᵀ + KpKpᵀ + λ₁C)P + λ₂I)⁻¹: λ₁ = `leakage` prices what P lets through of C, λ₂ = `L2`.

    The transpose of the authors' (P(K1K1ᵀ + KpKpᵀ + λ₁C) + λ₂I)X = P K1 Rᵀ: X lies in the null space, where a P more on
    the right changes nothing. With LLᵀ = λ₁PCP + λ₂I it is R (I + K'pK'pᵀ + K'1K'1ᵀ)⁻¹K'1 in the keys K' = L⁻¹PK.

    Every `refresh` facts (τ; 0 for never) P becomes the null space of

        (KpKpᵀ / n + λ₁C) / (λ₁ + 1),    n facts written so far,

    by the criterion of `null_space`. All this is as in the authors' code (github.com/lbq8942/BetaEdit,
    `algs/betaedit/betaedit_main.py`), with its λ₁ = 3000, λ₂ = 10 and τ = 1000 by default. 3000 is a fifth of
    MEMIT's λ on Llama-3-8B; choose it so on a narrower model. The code ends a run when ‖Δ‖ > 20 √d_in; we do not. C
    stays that of the unedited model, and Kp the keys that were written: nothing is read again. What modifiers change
    is projected by the first P.
    """

    needs_covariances = True
    settings: ClassVar[Mapping[str, Any]] = {**AlphaEdit.settings, "leakage": 3000.0, "refresh": 1000}

    @classmethod
    def adapted(cls, hyperparameters: Hyperparameters, name: str) -> Hyperparameters:
        for key in ("leakage", "refresh"):
            if hyperparameters.own.get(key, 0) < 0:
                raise HyperparameterError(f"{name}: {key} must not be negative, not {hyperparameters.own[key]:g}")
        if hyperparameters.L2 == hyperparameters.own.get("leakage") == 0:
            raise HyperparameterError(f"{name}: leakage and L2 cannot both be 0: nothing would bound the update")
        return super().adapted(hyperparameters, name)

    def prepare(self, preserved: Preserved) -> None:
        """Raises NullSpaceError or StatisticsError if a layer's is missing or has another width."""
        super().prepare(preserved)
        check_covariances(preserved.covariances, self.projections)
        self._starts = {
            layer: Rules(
                preserved.covariances[layer].matrix.to(float64_device(projection.stored.device)),
                self.null_spaces[layer],
                self.hyperparameters.null_space,
                self.own["leakage"],
                self.hyperparameters.L2,
                self.own["refresh"],
                projection.name,
            )
            for layer, projection in self.projections.items()
        }

    def transform_keys(self, layer: int, keys: Tensor) -> Tensor:
        return keys.to(self.null_spaces[layer].factor.device)  # as they are: a later P needs them again

    def dimensions(self, layer: int) -> int:
        known = self.memory.get(layer)
        frame = known.frame if isinstance(known, LeakageMemory) else None
        return (frame.space if frame else self.null_spaces[layer]).nullity

    def _ridge(self, layer: int) -> Memory:
        return self.memory.get(layer) or LeakageMemory(self._starts[layer])


@dataclass(frozen=True)
class Frame:
    """A null space, and L with LLᵀ = λ₁PCP + λ₂P + (I − P), d_in × d_in, float64.

    What stands outside of the null space decides nothing there: with I − P in the place of λ₂(I − P), λ₂ may be 0.
    """

    space: NullSpace
    lower: Tensor

    @classmethod
    def of(cls, space: NullSpace, rules: Rules) -> Frame:
        metric = rules.leakage * space.project(space.project(rules.covariance).T)
        metric += (rules.regularisation - 1) * space.project(torch.eye(space.d_in).to(metric))
        metric.diagonal().add_(1.0)
        return cls(space, cholesky((metric + metric.T) / 2, rules.name))

    def whiten(self, keys: Tensor) -> Tensor:
        """L⁻¹PK, in the keys' type."""
        inside = self.space.project(keys.to(self.lower).T).T
        return torch.linalg.solve_triangular(self.lower, inside, upper=False).to(keys.dtype)

    def unwhiten(self, white: Tensor) -> Tensor:
        """P L⁻ᵀ white, float64."""
        outside = torch.linalg.solve_triangular(self.lower.T, white.to(self.lower), upper=True)
        return self.space.project(outside.T).T


@dataclass(frozen=True, eq=False)
class Rules:
    """What a layer's memory begins with: C, d_in × d_in, float64; P; and how a next P is chosen."""

    covariance: Tensor
    space: NullSpace
    criterion: Criterion
    leakage: float
    regularisation: float
    refresh: int
    name: str

    @cached_property
    def first(self) -> Frame:
        return Frame.of(self.space, self)

    def next(self, blocks: tuple[Tensor, ...]) -> Frame:
        """The frame once the keys in `blocks`, d_in × m each, are written. Raises NullSpaceError if nothing is null."""
        count = sum(block.shape[1] for block in blocks)
        total = torch.zeros_like(self.covariance)
        for block in blocks:
            keys = block.to(total)
            total.addmm_(keys, keys.T)
        protected = (total / count + self.leakage * self.covariance) / (self.leakage + 1)
        return Frame.of(NullSpace.of((protected + protected.T) / 2, self.criterion, name=self.name), self)


@dataclass(frozen=True, eq=False)
class LeakageMemory:
    """The keys of all facts so far, d_in × m each batch, and their ridge in the frame of the last refresh.

    Invariant: frame and ridge follow from `rules` and `blocks` alone, bit for bit, so that undoing and resuming lead to
    the same ones.
    """

    rules: Rules
    blocks: tuple[Tensor, ...] = ()
    refreshed: int = 0
    frame: Frame | None = None
    ridge: Ridge | None = None

    @property
    def count(self) -> int:
        return sum(block.shape[1] for block in self.blocks)

    def add(self, new: Tensor) -> tuple[Tensor, LeakageMemory]:
        """(P(KKᵀ + kkᵀ + λ₁C)P + λ₂I)⁻¹Pk, d_in × m, float64; and the memory that also holds the new keys k."""
        known = self._refreshed() if self._due else self
        frame, ridge = known.frame or self.rules.first, known.ridge or Ridge(1.0, len(self.rules.covariance))
        solution, ridge = ridge.add(frame.whiten(new))
        grown = replace(known, blocks=(*self.blocks, new), frame=frame, ridge=ridge)
        return frame.unwhiten(solution), grown

    @property
    def _due(self) -> bool:
        return 0 < self.rules.refresh <= self.count - self.refreshed

    def _refreshed(self) -> LeakageMemory:
        frame = self.rules.next(self.blocks)
        ridge = Ridge(1.0, len(self.rules.covariance)).add(frame.whiten(torch.cat(self.blocks, 1)))[1]
        return replace(self, refreshed=self.count, frame=frame, ridge=ridge)

    def truncated(self, count: int) -> LeakageMemory:
        """The memory after the batches that hold the first `count` keys; of a batch that holds more, a part.

        Before the last refresh another frame was in force: there it is made again from the beginning.
        """
        blocks, left = [], count
        for block in self.blocks:
            blocks += [block[:, :left]] if left > 0 else []
            left -= block.shape[1]
        if self.ridge is not None and count >= self.refreshed:
            return replace(self, blocks=tuple(blocks), ridge=self.ridge.truncated(count))
        known = LeakageMemory(self.rules)
        for block in blocks:
            known = known.add(block)[1]
        return known

    def weights(self) -> Tensor:
        """Those in the frame of the last refresh."""
        return (self.ridge or Ridge(1.0, len(self.rules.covariance))).weights()
