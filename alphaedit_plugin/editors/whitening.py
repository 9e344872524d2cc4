"""Keys measured by the covariance of preserved ones: C = LLᵀ is factored once per layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..errors import StatisticsError
from ..model.decoder import OutProjection
from ..model.precision import float64_device
from ..nullspace.covariance import Covariance


class Whitening:
    """L⁻¹ and L⁻ᵀ of the covariances C = LLᵀ of some layers, so that C⁻¹ is never formed.

    C belongs to the base model: it is factored at the first use of a layer, and kept.
    """

    def __init__(
        self,
        covariances: Mapping[int, Covariance],
        projections: Mapping[int, OutProjection],
        metric: Callable[[Tensor], Tensor] = lambda covariance: covariance,
    ) -> None:
        """`metric` makes of C, float64, what is factored in its place. Raises what `check_covariances` raises."""
        check_covariances(covariances, projections)
        self._covariances, self._projections, self._metric = covariances, projections, metric
        self._factors: dict[int, Tensor] = {}

    def whiten(self, layer: int, keys: Tensor) -> Tensor:
        """L⁻¹ keys, d_in × n, float64."""
        factor = self._factor(layer)
        return torch.linalg.solve_triangular(factor, keys.to(factor), upper=False)

    def unwhiten(self, layer: int, white: Tensor) -> Tensor:
        """L⁻ᵀ white, d_in × n, float64: after `whiten`, C⁻¹ keys."""
        factor = self._factor(layer)
        return torch.linalg.solve_triangular(factor.T, white.to(factor), upper=True)

    def _factor(self, layer: int) -> Tensor:
        if layer not in self._factors:
            projection = self._projections[layer]
            matrix = self._covariances[layer].matrix.to(float64_device(projection.stored.device))
            self._factors[layer] = cholesky(self._metric(matrix), projection.name)
        return self._factors[layer]


def check_covariances(covariances: Mapping[int, Covariance], projections: Mapping[int, OutProjection]) -> None:
    """Raises StatisticsError if a layer's covariance is missing or has another width."""
    missing = [layer for layer in projections if layer not in covariances]
    if missing:
        raise StatisticsError(f"the covariances of layers {missing} are needed: prepare them first")
    for layer, projection in projections.items():
        if covariances[layer].d_in != projection.d_in:
            raise StatisticsError(
                f"the covariance of layer {layer} has {covariances[layer].d_in} dimensions, {projection.name} "
                f"{projection.d_in}: it is another model's"
            )


def cholesky(covariance: Tensor, name: str) -> Tensor:
    """Lower factor of C, float64. Raises StatisticsError if C is not positive definite."""
    factor, failed = torch.linalg.cholesky_ex(covariance.to(torch.float64))
    if int(failed):
        dead = int((covariance.diagonal() == 0).sum())
        cause = (
            f"{dead} of its keys' dimensions are always zero (dead neurons), so choose another layer"
            if dead
            else f"it was made from too few tokens, so use at least 10 × d_in = {10 * len(covariance)}"
        )
        raise StatisticsError(f"the covariance of {name} is singular: {cause}")
    return factor
