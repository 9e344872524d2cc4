"""PRUNE (Ma et al. 2024, "Perturbation-Restrained Sequential Model Editing"): damp what outgrows the weight."""

from __future__ import annotations

import torch
from torch import Tensor

from .registry import modifier
from .update import Site


def damped(delta: Tensor, weight: Tensor) -> Tensor:
    """The accumulated ΔW, where log σ − log σ_max + σ_max replaces every singular value σ above σ_max(W); float64.

    `weight` is W before the first edit; both are d_out × d_in. The singular vectors stay, so an update in a null space
    remains there. If no σ is that large, ΔW is returned as it is. (The published code adds the damped ΔW to weights
    that already hold ΔW; the paper, and this code, add it to W.)
    """
    delta, weight = delta.to(torch.float64), weight.to(delta.device, torch.float64)
    limit = _squares(weight)[0][-1].sqrt()
    squares, vectors, thin = _squares(delta, vectors=True)
    large = squares > limit**2
    if not large.any():
        return delta
    sigma, u = squares[large].sqrt(), vectors[:, large]
    factor = (sigma.log() - limit.log() + limit) / sigma - 1
    # In the thin direction ΔW = Σ u (uᵀΔW): scaling σ is scaling the projection onto u.
    return delta + (u * factor) @ (u.T @ delta) if thin else delta + ((delta @ u) * factor) @ u.T


def _squares(matrix: Tensor, vectors: bool = False) -> tuple[Tensor, Tensor, bool]:
    """Squared singular values, ascending; their vectors on the matrix's shorter side; whether that is the left side.

    Only the largest values matter here. A Gram matrix in float64 gives those exactly, much cheaper than an SVD.
    """
    left = matrix.shape[0] <= matrix.shape[1]
    gram = matrix @ matrix.T if left else matrix.T @ matrix
    if vectors:
        values, found = torch.linalg.eigh(gram)
        return values, found, left
    return torch.linalg.eigvalsh(gram), gram, left


@modifier(
    "prune",
    summary="at the end, damps the singular values of ΔW above W's largest",
    source="Ma et al. 2024, arXiv 2405.16821",
    acts="end",
    folder="PRUNE",
    alone="memit",
)
def prune(delta: Tensor, site: Site) -> Tensor:
    """Relative to W before the first edit."""
    return damped(delta, site.base)
