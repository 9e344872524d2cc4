"""SPHERE (Liu et al. 2025, "Energy-Regularized Sequential Model Editing on Hyperspheres"): spare main directions."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import HyperparameterError
from ..model.precision import float64_device
from .registry import modifier
from .singular import leading, without
from .update import Site, Update

PAPER_ETA, PAPER_ALPHA = 0.5, 0.5


def principal(weight: Tensor, eta: float) -> Tensor:
    """U, d_in × r, float64: the leading eigenvectors of ŴᵀŴ that together hold more than the share `eta` of its trace.

    The rows of Ŵ are W's neurons on the unit sphere.
    """
    exact = weight.to(float64_device(weight.device), torch.float64)
    neurons = torch.nn.functional.normalize(exact, dim=1)

    def enough(sigma: Tensor) -> int:
        energy = sigma.square()
        return min(len(sigma), 1 + int((energy.cumsum(0) <= eta * energy.sum()).sum()))

    return leading(neurons, enough)[1]


@modifier(
    "sphere",
    summary="weakens Δ by `alpha` in the main directions of W's normed rows (`eta` of their energy)",
    source="Liu et al. 2025, arXiv 2510.01172",
    alone="memit",
    in_factors=True,
)
def sphere(
    update: Update, site: Site, *, eta: float = PAPER_ETA, alpha: float = PAPER_ALPHA, current: bool = False
) -> Update:
    """Δ ← Δ(I − αUUᵀ), U of W before the first edit (paper) or, with `current`, of W as it is now (released code).

    η = α = 0.5 are the authors' settings on AlphaEdit; on MEMIT, PRUNE and RECT they take α = 0.8. Their code, and
    EasyEdit's, changes all layers' Δ after the last is solved; here the next layer sees what is really written, as with
    every modifier.

    Raises HyperparameterError for an `eta` or `alpha` that is no share.
    """
    for name, value in (("eta", eta), ("alpha", alpha)):
        if not 0 <= value <= 1:
            raise HyperparameterError(f"sphere: {name} must be a share from 0 to 1, not {value:g}")
    u = principal(site.weight, eta) if current else site.of_base(principal, eta)
    return Update(update.layer, update.left, without(update.right, u, alpha))
