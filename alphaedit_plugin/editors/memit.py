"""MEMIT (Meng et al. 2023, "Mass-Editing Memory in a Transformer"), and the variant that remembers its own edits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..nullspace.covariance import Covariance
from .hyperparameters import Hyperparameters
from .layered import LayeredEditor
from .update import Write
from .whitening import Whitening


class MEMIT(LayeredEditor):
    """Δ = R K1ᵀ (λC + K1K1ᵀ)⁻¹ (eq. 14), in its dual form R (λI + K1ᵀC⁻¹K1)⁻¹ (C⁻¹K1)ᵀ.

    λ = 0 is its limit: of all Δ with ΔK1 = R the one that disturbs preserved keys least.
    """

    sequential = False

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        hyperparameters: Hyperparameters,
        covariances: Mapping[int, Covariance],
        *,
        contexts: Sequence[str] | None = None,
        write: Write | None = None,
        progress: bool = False,
    ) -> None:
        super().__init__(model, tokenizer, hyperparameters, contexts=contexts, write=write, progress=progress)
        self.whitening = Whitening(covariances, self.projections)

    @property
    def _weight(self) -> float:
        return self.hyperparameters.mom2_update_weight

    def _into(self, layer: int, keys: Tensor) -> Tensor:
        return self.whitening.whiten(layer, keys)

    def _out_of(self, layer: int, solution: Tensor) -> Tensor:
        return self.whitening.unwhiten(layer, solution)


class MEMITSequential(MEMIT):
    """Δ = R K1ᵀ (λC + KpKpᵀ + K1K1ᵀ)⁻¹: the keys Kp of facts written before count as preserved too."""

    sequential = True
