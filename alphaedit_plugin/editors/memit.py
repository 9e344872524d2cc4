"""MEMIT (Meng et al. 2023, "Mass-Editing Memory in a Transformer"), and the variant that remembers its own edits."""

from __future__ import annotations

from torch import Tensor

from .layered import LayeredEditor
from .preserved import Preserved
from .registry import method
from .whitening import Whitening

_SOURCE = "Meng et al. 2023, arXiv 2210.07229"


@method("memit", summary="many facts at once, spread over several layers", source=_SOURCE, folder="MEMIT")
class MEMIT(LayeredEditor):
    """Δ = R K1ᵀ (λC + K1K1ᵀ)⁻¹ (eq. 14), in its dual form R (λI + K1ᵀC⁻¹K1)⁻¹ (C⁻¹K1)ᵀ.

    λ = 0 means the limit: the Δ with ΔK1 = R that disturbs preserved keys least.
    """

    sequential = False
    regularised_by = "mom2_update_weight"

    def prepare(self, preserved: Preserved) -> None:
        self.whitening = Whitening(preserved.covariances, self.projections)

    @property
    def regularisation(self) -> float:
        return self.hyperparameters.mom2_update_weight

    def transform_keys(self, layer: int, keys: Tensor) -> Tensor:
        return self.whitening.whiten(layer, keys)

    def restore_solution(self, layer: int, solution: Tensor) -> Tensor:
        return self.whitening.unwhiten(layer, solution)


@method(
    "memit-seq",
    summary="memit that also preserves the keys of facts it wrote before",
    source=f"{_SOURCE}, and as AlphaEdit",
    folder="MEMIT",
)
class MEMITSequential(MEMIT):
    """Δ = R K1ᵀ (λC + KpKpᵀ + K1K1ᵀ)⁻¹: the keys Kp of facts written before count as preserved too."""

    sequential = True
