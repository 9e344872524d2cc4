"""A cut through the spectrum of a symmetric matrix: all of its eigenvalues, and a basis of the thinner side."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.linalg import lapack  # torch cannot stop at the tridiagonal form
from torch import Tensor

_SMALL = 512  # below this dimension a full decomposition takes no time
_TOP = 16  # giants are looked for among so many of the largest eigenvalues
_PRODUCTS = 6  # with the matrix: enough to find an eigenvalue that is thirty times the 17th
_WINDOW = 64  # eigenvectors on either side of the cut are computed in float64
_ROWS = 512  # are converted to float32 at a time
_EPS = torch.finfo(torch.float32).eps


class Cut(NamedTuple):
    """The `eigenvalues`, ascending, d, float64; how many of them are below the cut; and orthonormal eigenvectors.

    `basis`, float32, holds the eigenvectors below the cut, d × below, if they are at most half of all, or else those
    above, d × (d − below).
    """

    eigenvalues: Tensor
    below: int
    basis: Tensor


def cut(matrix: Tensor, count: Callable[[Tensor], int]) -> Cut:
    """Cut the spectrum of a symmetric, positive semidefinite matrix, d × d, float64, after as many as `count` says.

    `count` is asked about all eigenvalues, ascending. A large matrix on the CPU is decomposed in float32 where that is
    good enough, in a third of the time: eigenvalues are then exact to 1e-6 of the largest that is no attention sink,
    and those around the cut to 1e-9. Neighbours may mix across the cut by 1e-4, which moves no energy: their
    eigenvalues are alike. Everything else is decomposed in float64.
    """
    if matrix.device.type == "cpu" and len(matrix) >= _SMALL:
        found = _in_float32(matrix, count)
        if found is not None:
            return found
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return _cut(values, vectors, 0, count)


def _cut(values: Tensor, vectors: Tensor, first: int, count: Callable[[Tensor], int]) -> Cut:
    """With `vectors` the eigenvectors from the `first` on."""
    below = min(count(values), len(values))
    side = vectors[:, : below - first] if 2 * below <= len(values) else vectors[:, below - first :]
    return Cut(values.clone(), below, side.to(torch.float32).contiguous())


def _in_float32(matrix: Tensor, count: Callable[[Tensor], int]) -> Cut | None:
    """None if float32 is not good enough for this matrix and this cut.

    Its rounding is a share of the largest eigenvalue, so giants (attention sinks) are found in float64 and lowered to
    the size of the others first. Then the matrix becomes tridiagonal, and only the eigenvectors of the thinner side are
    transformed back. At last those around the cut are turned, within their span, into eigenvectors of the float64
    matrix (Rayleigh and Ritz): rounding mixes neighbours, and here it matters who is on which side.
    """
    d = len(matrix)
    giants, sizes, ceiling = _giants(matrix)
    if not ceiling > 0:
        return None
    lowered = _lowered(matrix, giants, sizes, ceiling)
    reflectors, diagonal, beside, scales, _ = lapack.ssytrd(lowered.numpy().T, lower=1, lwork=32 * d, overwrite_a=1)
    exact, _, failed = lapack.dstevd(diagonal, beside, compute_v=0)
    values, others = torch.from_numpy(exact) * ceiling, d - len(sizes)
    values[others:] = sizes
    below = min(count(values), d)
    low, high = max(0, below - _WINDOW), min(d, below + _WINDOW)
    if failed or not _settled(values, below, low, high, 8 * _EPS * ceiling):
        return None

    first, last = (0, high) if 2 * below <= d else (low, d)
    _, tridiagonal, failed = lapack.sstevd(diagonal, beside)
    if failed:
        return None
    vectors = torch.from_numpy(tridiagonal)[:, first:last]
    vectors[1:] = torch.ormqr(torch.from_numpy(reflectors)[1:, :-1], torch.from_numpy(scales), vectors[1:])
    plain, known = vectors[:, : others - first], giants.to(torch.float32)
    plain -= known @ (known.T @ plain)  # a trace of a giant weighs much
    vectors[:, others - first :] = known[:, : max(0, last - others)]

    window = vectors[:, low - first : high - first]
    span = torch.linalg.qr(window.to(torch.float64)).Q
    inside = span.T @ (matrix @ span)
    values[low:high], turn = torch.linalg.eigh((inside + inside.T) / 2)
    window.copy_(span @ turn)
    refined = min(count(values), d)
    if not low <= refined <= high or (2 * refined <= d) != (2 * below <= d):
        return None
    return _cut(values, vectors, first, count)


def _giants(matrix: Tensor) -> tuple[Tensor, Tensor, float]:
    """The eigenvectors and eigenvalues that stand out at the top, if any, and a bound on the others.

    By subspace iteration: what stands out converges fast. A giant is exact enough to leave no trace in float32 when it
    is taken out of the matrix.
    """
    span = torch.randn(len(matrix), _TOP, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for _ in range(_PRODUCTS - 1):
        span = matrix @ torch.linalg.qr(span).Q
    span = torch.linalg.qr(span).Q
    image = matrix @ span
    inside = span.T @ image
    sizes, turn = torch.linalg.eigh((inside + inside.T) / 2)
    vectors = span @ turn
    exact = (image @ turn - vectors * sizes).norm(dim=0) <= _EPS * sizes[0]
    following = sizes[: _TOP - int(exact.flip(0).cumprod(0)[:-1].sum())]
    ceiling = 2 * float(following[-1])  # Ritz values may be too small, never too large
    giants = sizes > ceiling
    return vectors[:, giants], sizes[giants], ceiling


def _lowered(matrix: Tensor, giants: Tensor, sizes: Tensor, ceiling: float) -> Tensor:
    """The matrix in units of `ceiling`, with each giant lowered to 1, float32."""
    result = torch.empty(matrix.shape, dtype=torch.float32)
    for row in range(0, len(matrix), _ROWS):
        part = slice(row, row + _ROWS)
        result[part] = (matrix[part] - (giants[part] * (sizes - ceiling)) @ giants.T) / ceiling
    return (result + result.T).div_(2)


def _settled(values: Tensor, below: int, low: int, high: int, rounding: float) -> bool:
    """Whether rounding is small beside eigenvalues below the cut, and brings none across from outside the window."""
    d = len(values)
    return (
        0 < below < d
        and 100 * rounding < float(values[:below].mean())  # their sum is the leakage
        and (low == 0 or float(values[below - 1] - values[low - 1]) > 2 * rounding)
        and (high == d or float(values[high] - values[below]) > 2 * rounding)
    )
