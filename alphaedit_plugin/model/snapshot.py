"""Restore weights, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from ..restoring import restoring
from .decoder import OutProjection


@restoring
def put_back(projections: Mapping[int, OutProjection], *, only_on_error: bool = False) -> Iterator[dict[int, Tensor]]:
    """Restore the weights, bit for bit, when the block ends (or only when it raises).

    Yields copies of the weights before the block, layer → d_out × d_in.
    """
    before = {layer: projection.matrix.clone() for layer, projection in projections.items()}
    failed = True
    try:
        yield before
        failed = False
    finally:
        if failed or not only_on_error:
            copy_into(before, projections)


def copy_into(weights: Mapping[int, Tensor], projections: Mapping[int, OutProjection]) -> None:
    for layer, projection in projections.items():
        projection.matrix.copy_(weights[layer])
