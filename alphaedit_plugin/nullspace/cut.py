"""A cut through the spectrum of a symmetric matrix: all of its eigenvalues, and a basis of the thinner side."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.linalg import lapack
from torch import Tensor

_SMALL = 512  # below this dimension, eigenvectors of everything cost nothing
_TOP = 16  # as many of the largest eigenvalues are looked at, to find giants among them
_PRODUCTS = 6  # with the matrix: enough for an eigenvalue that is thirty times the 16th
_WINDOW = 128  # eigenvectors on either side of the cut are computed in float64
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
    """Cut a symmetric, positive semidefinite matrix, d × d, float64, where `count` says: of ascending eigenvalues, how
    many are below.

    A large matrix on the CPU is reduced in float32, which takes a third of the time. Wherever that could put an
    eigenvector on the wrong side, float64 decides.
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
    """None if float32 cannot tell the two sides apart.

    The rounding of float32 is a share of the largest eigenvalue. So the giants (attention sinks) are found in float64
    and lowered first; then the matrix is made tridiagonal; and at last the eigenvectors around the cut are turned into
    those of the float64 matrix, within their span (Rayleigh and Ritz).
    """
    d = len(matrix)
    giants, sizes, ceiling = _giants(matrix)
    if not ceiling > 0:
        return None
    lowered = _lowered(matrix, giants, sizes, ceiling)
    reflectors, diagonal, beside, scales, _ = lapack.ssytrd(lowered.numpy().T, lower=1, lwork=32 * d, overwrite_a=1)
    values = torch.from_numpy(lapack.dstevd(diagonal, beside, compute_v=0)[0]) * ceiling
    others = d - len(sizes)
    values[others:] = sizes
    below = min(count(values), d)
    low, high = max(0, below - _WINDOW), min(d, below + _WINDOW)
    if not _settled(values, below, low, high, 8 * _EPS * ceiling, count):
        return None

    first, last = (0, high) if 2 * below <= d else (low, d)
    vectors = torch.from_numpy(lapack.sstevd(diagonal, beside)[1])[:, first:last]
    vectors[1:] = torch.ormqr(torch.from_numpy(reflectors)[1:, :-1], torch.from_numpy(scales), vectors[1:])
    plain, v = vectors[:, : others - first], giants.to(torch.float32)
    plain -= v @ (v.T @ plain)
    vectors[:, others - first :] = v[:, : max(0, last - others)]

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

    By subspace iteration. An eigenvector is a giant if it is exact enough to be taken out of the matrix without a trace
    in float32.
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
    ceiling = 2 * float(following[-1])  # Ritz values may be too small
    giants = sizes > ceiling
    return vectors[:, giants], sizes[giants], ceiling


def _lowered(matrix: Tensor, giants: Tensor, sizes: Tensor, ceiling: float) -> Tensor:
    """The matrix in units of `ceiling`, with each giant at 1, float32."""
    result = torch.empty(matrix.shape, dtype=torch.float32)
    for row in range(0, len(matrix), _ROWS):
        part = slice(row, row + _ROWS)
        result[part] = (matrix[part] - (giants[part] * (sizes - ceiling)) @ giants.T) / ceiling
    return (result + result.T).div_(2)


def _settled(values: Tensor, below: int, low: int, high: int, rounding: float, count: Callable[[Tensor], int]) -> bool:
    """Whether all that rounding may bring across the cut lies between the `low`-th eigenvalue and the `high`-th."""
    d = len(values)
    if not low <= count(values + rounding) or not min(count(values - rounding), d) <= high:
        return False
    left_out_below = low == 0 or below == d or float(values[below] - values[low - 1]) > 2 * rounding
    left_out_above = high == d or below == 0 or float(values[high] - values[below - 1]) > 2 * rounding
    return left_out_below and left_out_above
