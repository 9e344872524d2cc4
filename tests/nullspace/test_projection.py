"""The factored projection against dense float64 algebra."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.oracle import projection
from support.spaces import matrix_with
from support.tries import tries

from alphaedit_plugin.errors import NullSpaceError
from alphaedit_plugin.nullspace.covariance import Covariance
from alphaedit_plugin.nullspace.projection import PAPER, Criterion, NullSpace

THRESHOLD = 2e-2


@st.composite
def covariances(draw):
    """(C, how many eigenvalues are below THRESHOLD), with both kinds and a gap between them."""
    null = draw(st.lists(st.floats(1e-7, 1e-2), min_size=1, max_size=12))
    kept = draw(st.lists(st.floats(5e-2, 1e4), min_size=1, max_size=12))
    return matrix_with(null + kept, draw(st.integers(0, 99))), len(null)


def both_sides(matrix, nullity):
    """The same projection from either basis, whichever is thinner."""
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    vectors = vectors.float()
    return [
        NullSpace(vectors[:, :nullity].contiguous(), "null", eigenvalues),
        NullSpace(vectors[:, nullity:].contiguous(), "range", eigenvalues),
    ]


# ---------------------------------------------------------------------------------------------- the projection


@tries(25)
@given(case=covariances())
def test_p_is_the_oracles_and_an_orthogonal_projection(case):
    matrix, nullity = case
    space = NullSpace.of(matrix, Criterion(threshold=THRESHOLD))
    p = space.dense()
    assert space.nullity == nullity
    assert p.dtype == torch.float64
    assert torch.equal(p, p.T)
    torch.testing.assert_close(p @ p, p, rtol=0, atol=1e-6)
    torch.testing.assert_close(p, projection(matrix, THRESHOLD), rtol=0, atol=1e-6)
    assert abs(float(p.trace()) - nullity) < 1e-5


@tries(25)
@given(case=covariances(), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 9))
def test_preserved_keys_are_as_small_after_projection_as_the_threshold_promises(case, scale, seed):
    """C = K0 K0ᵀ/N below the threshold means ‖PK0‖² ≤ N · nullity · threshold, and ‖Pk‖² ≤ N · threshold for each."""
    matrix, nullity = case
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    d = len(matrix)
    n = 3 * d
    mixing = torch.linalg.qr(torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).Q
    keys = n**0.5 * (vectors * eigenvalues.clamp_min(0).sqrt()) @ mixing.T
    torch.testing.assert_close(keys @ keys.T / n, matrix)
    projected = NullSpace.of(matrix).project(keys.T)
    rounding = 1e-6 * float(keys.norm())
    assert float(projected.norm()) <= (n * nullity * PAPER.threshold) ** 0.5 + rounding
    assert float(projected.norm(dim=1).max()) <= (n * PAPER.threshold) ** 0.5 + rounding


@tries(25)
@given(case=covariances(), rows=st.integers(1, 5))
def test_either_side_is_the_same_projection(case, rows):
    matrix, nullity = case
    null, range_ = both_sides(matrix, nullity)
    delta = torch.randn(rows, len(matrix), generator=torch.Generator().manual_seed(rows))
    assert null.nullity == range_.nullity == nullity
    assert null.d_in == range_.d_in == len(matrix)
    torch.testing.assert_close(null.dense(), range_.dense(), rtol=0, atol=1e-6)
    torch.testing.assert_close(null.project(delta), range_.project(delta), rtol=0, atol=1e-5)
    assert null.leakage(matrix) == pytest.approx(range_.leakage(matrix), abs=1e-5)


@tries(15)
@given(case=covariances())
def test_only_the_thinner_side_is_kept(case):
    matrix, nullity = case
    space = NullSpace.of(matrix)
    assert space.factor.shape == (len(matrix), min(nullity, len(matrix) - nullity))
    assert space.factor.dtype == torch.float32
    assert space.factor.is_contiguous()


@pytest.mark.parametrize(
    ("dtype", "rounding"), [("float64", 0), ("float32", 0), ("bfloat16", 2**-8), ("float16", 2**-11)]
)
@pytest.mark.parametrize("shape", [(24,), (3, 24), (2, 3, 24)])
@pytest.mark.parametrize("nullity", [5, 19])
def test_an_update_is_projected_in_its_own_type_and_rounded_once(dtype, rounding, shape, nullity):
    matrix = matrix_with([1e-4] * nullity + [3.0] * (24 - nullity))
    delta = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(
        getattr(torch, dtype)
    )
    before = delta.clone()
    found = NullSpace.of(matrix).project(delta)
    expected = delta.double() @ projection(matrix, THRESHOLD)
    assert found.dtype == delta.dtype
    assert found.shape == delta.shape
    assert ((found.double() - expected).abs() <= rounding * expected.abs() + 2e-6).all()
    assert torch.equal(delta, before)


def test_projecting_twice_is_projecting_once():
    space = NullSpace.of(matrix_with([1e-4] * 9 + [3.0] * 7))
    once = space.project(torch.randn(4, 16))
    torch.testing.assert_close(space.project(once), once, rtol=0, atol=1e-6)


def test_an_update_of_another_width_is_refused():
    space = NullSpace.of(matrix_with([1e-4, 1.0, 2.0]))
    with pytest.raises(NullSpaceError, match=r"\(3, 4\).*d_in = 3"):
        space.project(torch.zeros(3, 4))


def test_a_covariance_object_serves_as_well_as_its_matrix():
    covariance = Covariance.empty(6)
    covariance.add(torch.randn(50, 6) * torch.tensor([1e-3, 1e-3, 1.0, 1.0, 1.0, 1.0]))
    from_object, from_matrix = NullSpace.of(covariance), NullSpace.of(covariance.matrix)
    assert torch.equal(from_object.factor, from_matrix.factor)
    assert from_object.leakage(covariance) == from_matrix.leakage(covariance.matrix)


@tries(25)
@given(case=covariances(), seed=st.integers(100, 199))
def test_leakage_is_the_energy_of_other_keys_that_p_lets_through(case, seed):
    matrix, nullity = case
    d = len(matrix)
    other = matrix_with(torch.linspace(0.1, 2.0, d), seed)
    p = projection(matrix, THRESHOLD)
    for space in both_sides(matrix, nullity):
        assert space.leakage(other) == pytest.approx(float((p @ other @ p).trace() / other.trace()), abs=1e-6)


@tries(25)
@given(covariances(), st.data())
def test_leakage_for_its_own_covariance_needs_only_the_eigenvalues(case, data):
    matrix, _ = case
    nullity = data.draw(st.integers(1, len(matrix) - 1))
    for space in both_sides(matrix, nullity):
        assert space.leakage() == pytest.approx(space.leakage(matrix), abs=1e-5)
        p = space.dense()
        assert space.leakage() == pytest.approx(float((p @ matrix @ p).trace() / matrix.trace()), abs=1e-5)


@pytest.mark.parametrize("nullity", [3, 5])
def test_leakage_of_a_true_null_space_is_a_share_and_nearly_zero(nullity):
    for seed in range(5):
        matrix = matrix_with([0.0] * nullity + [100.0] * (8 - nullity), seed)
        for space in both_sides(matrix, nullity):
            assert 0 <= space.leakage(matrix) < 1e-6


def test_a_null_space_cannot_be_changed():
    space = NullSpace.of(matrix_with([1e-4, 1.0]))
    with pytest.raises(dataclasses.FrozenInstanceError):
        space.side = "range"


# --------------------------------------------------------------------------------------------------- criteria


@pytest.mark.parametrize(
    "settings_",
    [
        {},
        {"threshold": 1.0, "energy": 0.1},
        *(
            {name: value}
            for name in ("threshold", "energy", "nullity")
            for value in (0, -1, float("nan"), True, "2e-2")
        ),
        {"threshold": float("inf")},
        {"energy": 1.0},
        {"energy": 7},
        {"nullity": 2.5},
        {"nullity": float("inf")},
    ],
    ids=str,
)
def test_a_senseless_criterion_is_refused(settings_):
    with pytest.raises(NullSpaceError, match=next(iter(settings_), "exactly one")):
        Criterion(**settings_)


@tries(25)
@given(values=st.lists(st.integers(0, 50), min_size=2, max_size=20), share=st.sampled_from([0.01, 0.1, 0.25, 0.5, 0.9]))
def test_energy_takes_as_many_of_the_smallest_as_hold_the_share_outside_the_largest(values, share):
    values = sorted(values)
    allowed = share * sum(values[:-1])
    expected = max(n for n in range(len(values)) if sum(values[:n]) <= allowed)
    assert Criterion(energy=share).nullity_of(torch.tensor(values, dtype=torch.float64)) == expected


def test_energy_is_not_decided_by_an_attention_sink():
    calm, with_sink = [0.1, 0.2, 0.3, 0.4, 0.5, 1.0], [0.1, 0.2, 0.3, 0.4, 0.5, 1e6]
    criterion = Criterion(energy=0.5)
    assert NullSpace.of(matrix_with(calm), criterion).nullity == NullSpace.of(matrix_with(with_sink), criterion).nullity


@pytest.mark.parametrize(("nullity", "expected"), [(0.25, 5), (0.5, 10), (1, 1), (7, 7), (7.0, 7), (19, 19)])
def test_nullity_is_a_share_or_a_number_of_the_smallest_dimensions(nullity, expected):
    matrix = matrix_with(torch.logspace(-3, 3, 20))
    space = NullSpace.of(matrix, Criterion(nullity=nullity))
    assert space.nullity == expected
    boundary = torch.linalg.eigvalsh(matrix)[expected - 1 : expected + 1].mean()
    torch.testing.assert_close(space.dense(), projection(matrix, float(boundary)), rtol=0, atol=1e-6)


@tries(15)
@given(d=st.integers(4, 20), scale=st.sampled_from([1e-6, 1e6]), seed=st.integers(0, 99))
@pytest.mark.parametrize("criterion", [Criterion(energy=0.4537), Criterion(nullity=0.4), Criterion(nullity=3)], ids=str)
def test_relative_criteria_mean_the_same_at_any_scale(d, scale, seed, criterion):
    matrix = matrix_with(torch.linspace(1, 2, d), seed)
    once, scaled = (NullSpace.of(m, criterion) for m in (matrix, matrix * scale))
    assert once.nullity == scaled.nullity
    torch.testing.assert_close(once.dense(), scaled.dense(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("eigenvalues", "criterion", "message"),
    [
        ([1.0, 2.0, 3.0], PAPER, "nothing is null in layer 7 at threshold 0.02"),
        ([1e-3, 1e-4, 1e-5], PAPER, "everything is null in layer 7 at threshold 0.02"),
        ([0.0, 0.0, 0.0], PAPER, "everything is null in layer 7"),
        ([1.0, 1.0, 1.0], Criterion(energy=0.1), "nothing is null in layer 7 at energy 0.1"),
        ([1.0, 2.0, 3.0], Criterion(nullity=0.1), "nothing is null in layer 7 at nullity 0.1"),
        ([1.0, 2.0, 3.0], Criterion(nullity=3), "everything is null in layer 7 at nullity 3"),
        ([1.0, 2.0, 3.0], Criterion(nullity=100), "everything is null in layer 7 at nullity 100"),
        ([5.0], PAPER, "nothing is null in layer 7"),
        ([1e-5], PAPER, "everything is null in layer 7"),
    ],
)
def test_nothing_or_everything_null_is_an_error_that_names_layer_criterion_and_remedy(eigenvalues, criterion, message):
    with pytest.raises(NullSpaceError, match=rf"{message}.*[Cc]hoose"):
        NullSpace.of(matrix_with(eigenvalues), criterion, name="layer 7")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_covariance_that_is_not_finite_is_refused(value):
    with pytest.raises(NullSpaceError, match="layer 7 is not finite"):
        NullSpace.of(torch.full((3, 3), value), name="layer 7")
