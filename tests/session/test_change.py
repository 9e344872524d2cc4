"""How far weights have moved, against dense formulas."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.spaces import random_covariance
from support.tries import tries

from alphaedit_plugin.nullspace.covariance import Covariance
from alphaedit_plugin.nullspace.projection import Criterion, NullSpace
from alphaedit_plugin.session.change import drift, leakage, outside

matrices = st.tuples(st.integers(1, 6), st.integers(2, 8), st.integers(0, 10_000))


def _three(shape: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """W before, W after, and some keys K0 as columns."""
    d_out, d_in, seed = shape
    generator = torch.Generator().manual_seed(seed)
    return tuple(  # type: ignore[return-value]
        torch.randn(*size, generator=generator, dtype=torch.float64)
        for size in ((d_out, d_in), (d_out, d_in), (d_in, 30))
    )


@tries(25)
@given(shape=matrices)
def test_drift_and_leakage_are_their_dense_formulas(shape):
    before, after, keys = _three(shape)
    covariance = Covariance.empty(keys.shape[0])
    covariance.add(keys.T)
    assert drift(before, after) == pytest.approx(float((after - before).norm() / before.norm()))
    expected = float(((after - before) @ keys).norm() / (before @ keys).norm())
    assert leakage(before, after, covariance) == pytest.approx(expected, rel=1e-9)


def test_nothing_changed_is_no_drift_no_leakage_and_nothing_outside():
    before = _three((4, 6, 0))[0]
    assert drift(before, before.clone()) == 0
    assert leakage(before, before.clone(), random_covariance(6)) == 0
    assert outside(before, before.clone(), NullSpace.of(random_covariance(6), Criterion(nullity=3))) == 0


@tries(25)
@given(shape=matrices, nullity=st.integers(1, 7))
def test_what_is_outside_a_null_space_is_its_dense_formula(shape, nullity):
    """1 for an update of the preserved directions alone, 0 for one of the null ones alone."""
    before, after, _ = _three(shape)
    d = before.shape[1]
    space = NullSpace.of(random_covariance(d), Criterion(nullity=min(nullity, d - 1)))
    delta, inside = after - before, space.dense()
    expected = float((delta - delta @ inside).norm() / delta.norm())
    assert outside(before, after, space) == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert outside(before, before + delta @ inside, space) == pytest.approx(0, abs=1e-6)
    assert outside(before, before + delta - delta @ inside, space) == pytest.approx(1, abs=1e-6)


@tries(40)
@given(seed=st.integers(0, 10_000))
def test_a_perfect_null_space_leaks_nothing(seed):
    """Keys that span half of the space: what rounding leaves may have either sign, the leakage may not."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(50, 4, generator=generator, dtype=torch.float64) @ torch.randn(
        4, 8, generator=generator, dtype=torch.float64
    )
    covariance = Covariance.empty(8)
    covariance.add(keys)
    space = NullSpace.of(covariance, Criterion(nullity=4))
    before = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    vectors = torch.linalg.eigh(covariance.matrix)[1][:, : space.nullity]
    after = before + torch.randn(3, 8, generator=generator, dtype=torch.float64) @ vectors @ vectors.T
    value = leakage(before, after, covariance)
    assert isinstance(value, float)
    assert 0 <= value < 1e-6
