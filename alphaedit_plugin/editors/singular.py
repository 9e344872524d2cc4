"""The leading singular directions of a weight."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..model.precision import float64_device


def leading(matrix: Tensor, enough: Callable[[Tensor], int]) -> tuple[Tensor, Tensor]:
    """Orthonormal bases of the left and right singular subspaces of the k = `enough`(σ) largest singular values σ.

    `matrix` is m × n, in any precision; `enough` is given all σ, descending. The bases are m × k and n × k, float64.
    They come from the Gram matrix of the shorter side, in float64: much cheaper than an SVD, and as good for large σ.
    (Of σ below 1e-8 · σ_max only the size is known.)
    """
    matrix = matrix.to(float64_device(matrix.device), torch.float64)
    wide = matrix.shape[0] <= matrix.shape[1]
    thin = matrix if wide else matrix.T
    squares, vectors = torch.linalg.eigh(thin @ thin.T)
    sigma = squares.flip(0).clamp_min(0).sqrt()
    near = vectors[:, len(sigma) - enough(sigma) :].flip(1)
    far = torch.linalg.qr(thin.T @ near).Q
    return (near, far) if wide else (far, near)


def without(factor: Tensor, basis: Tensor, share: float = 1.0) -> Tensor:
    """(I − share · BBᵀ) factor, in the factor's type; factor is d × r, B an orthonormal d × k, float64."""
    exact = factor.to(basis)
    return (exact - share * (basis @ (basis.T @ exact))).to(factor)
