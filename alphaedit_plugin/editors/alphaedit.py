"""AlphaEdit (Fang et al. 2025, "Null-Space Constrained Knowledge Editing for Language Models")."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import NullSpaceError
from ..model.precision import float64_device
from .layered import LayeredEditor
from .preserved import Preserved
from .registry import method


@method(
    "alphaedit",
    summary="solves inside the null space, keeps the keys of earlier edits",
    source="Fang et al. 2025, arXiv 2410.02355",
    folder="AlphaEdit",
)
class AlphaEdit(LayeredEditor):
    """Δ = R K1ᵀP (KpKpᵀP + K1K1ᵀP + λI)⁻¹ (eq. 14 with the authors' λ, `L2`); Kp: keys of facts written before.

    P is symmetric and idempotent, so with K' = P[Kp K1] the same Δ is [0 R] (λI + K'ᵀK')⁻¹ K'ᵀ: a system of the
    size of the number of facts, and an update that lies in the null space by itself.
    """

    needs_covariances = False
    needs_null_spaces = True
    sequential = True
    regularised_by = "L2"

    def prepare(self, preserved: Preserved) -> None:
        """Raises NullSpaceError if a layer's null space is missing or has another width."""
        null_spaces = preserved.null_spaces
        for layer, projection in self.projections.items():
            if layer not in null_spaces:
                raise NullSpaceError(f"there is no null space of layer {layer}, which is to be edited: prepare it")
            null_spaces[layer].check_fits(projection)
        self.null_spaces = {
            layer: null_spaces[layer].to(float64_device(projection.stored.device))
            for layer, projection in self.projections.items()
        }

    @property
    def regularisation(self) -> float:
        return self.hyperparameters.L2

    def dimensions(self, layer: int) -> int:
        return self.null_spaces[layer].nullity

    def transform_keys(self, layer: int, keys: Tensor) -> Tensor:
        space = self.null_spaces[layer]
        # In the precision in which keys are kept: P is well conditioned, and this is most of a batch's arithmetic.
        precision = torch.promote_types(self.projections[layer].matrix.dtype, torch.float32)
        return space.project(keys.to(space.factor.device, precision).T).T

    def restore_solution(self, layer: int, solution: Tensor) -> Tensor:
        return solution
