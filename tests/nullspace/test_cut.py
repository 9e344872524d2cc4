"""The cut in float32 against a full decomposition in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.spaces import matrix_with
from support.tries import tries

from alphaedit_plugin.nullspace import cut as cut_module
from alphaedit_plugin.nullspace.projection import Criterion, NullSpace

LARGE = 520  # float32 is tried from 512 on
THRESHOLD = 2e-2


def logspace(low, high, count=LARGE):
    return torch.logspace(low, high, count, dtype=torch.float64)


def check(matrix, criterion):
    """The same split as by a full decomposition, and a projection that lets through as much of C."""
    space = NullSpace.of(matrix, criterion)
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    nullity = criterion.nullity_of(eigenvalues)
    null = vectors[:, :nullity]
    assert space.nullity == nullity
    assert space.factor.shape == (len(matrix), min(nullity, len(matrix) - nullity))
    p = space.dense()
    torch.testing.assert_close(p @ p, p, rtol=0, atol=1e-6)
    # Eigenvectors whose eigenvalues all but agree may mix across the cut: what P does to C says how much that matters.
    held, rounding = null.T @ matrix @ null, 1e-12 * float(eigenvalues[-1])
    found = p @ matrix @ p
    assert float(torch.linalg.matrix_norm(found, 2)) == pytest.approx(float(eigenvalues[nullity - 1]), 1e-5, rounding)
    assert float(found.trace()) == pytest.approx(float(held.trace()), 1e-4, len(matrix) * rounding)
    assert space.leakage() == pytest.approx(float(held.trace() / matrix.trace()), 1e-4, len(matrix) * rounding)
    torch.testing.assert_close(space.eigenvalues, eigenvalues, rtol=0, atol=1e-6 * float(eigenvalues[-2]))
    # What is known to 1e-6 of the spectrum decides by 1e-9 of it near the cut.
    near = slice(max(0, nullity - 8), nullity + 8)
    torch.testing.assert_close(
        space.eigenvalues[near], eigenvalues[near], rtol=1e-6, atol=max(rounding, 1e-9 * float(eigenvalues[-2]))
    )


@pytest.fixture
def ways(monkeypatch):
    """For each cut, whether float32 was good enough; fills as cuts are made."""
    taken, quick = [], cut_module._in_float32

    def spy(matrix, count):
        found = quick(matrix, count)
        taken.append(found is not None)
        return found

    monkeypatch.setattr(cut_module, "_in_float32", spy)
    return taken


SPECTRA = {
    "a layer's": logspace(-4, 1),
    "with a sink": torch.cat([logspace(-4, 1, LARGE - 1), torch.tensor([4e4]).double()]),
    "with three sinks": torch.cat([logspace(-4, 1, LARGE - 3), torch.tensor([3e3, 7e3, 1e6]).double()]),
    "close at the threshold": torch.cat(
        [logspace(-3, -2, 300), THRESHOLD * (1 + torch.linspace(-1e-5, 1e-5, 60).double()), logspace(-1, 1, 160)]
    ),
    "of any scale": 1e-40 * logspace(-4, 1),
}


@pytest.mark.parametrize(
    "criterion", [Criterion(energy=0.05), Criterion(nullity=0.45), Criterion(nullity=500)], ids=str
)
@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
def test_a_large_covariance_is_cut_in_float32_where_float64_would(spectrum, criterion, ways):
    check(matrix_with(spectrum), criterion)
    assert ways == [True]


@pytest.mark.parametrize("spectrum", list(SPECTRA.values())[:-1], ids=list(SPECTRA)[:-1])
def test_a_threshold_splits_a_large_covariance_as_in_float64(spectrum, ways):
    check(matrix_with(spectrum), Criterion(threshold=THRESHOLD))
    assert ways == [True]


UNCLEAR = {
    "equal": (torch.ones(LARGE), Criterion(nullity=0.5)),
    "two values": (torch.cat([torch.full((200,), 1e-3), torch.ones(LARGE - 200)]), Criterion(threshold=THRESHOLD)),
    "few tokens": (torch.cat([torch.zeros(400), torch.linspace(1, 9, LARGE - 400)]), Criterion(threshold=THRESHOLD)),
    "a handful of tokens": (torch.cat([torch.zeros(LARGE - 3), torch.ones(3)]), Criterion(threshold=THRESHOLD)),
    "cut inside zeros": (torch.cat([torch.zeros(400), torch.ones(LARGE - 400)]), Criterion(nullity=300)),
    "a cluster": (torch.cat([1e-2 + 1e-9 * torch.arange(300), torch.ones(220)]).double(), Criterion(nullity=150)),
    "too wide": (logspace(-6, 5), Criterion(threshold=THRESHOLD)),
    "many sinks": (torch.cat([logspace(-4, 1, 490), 1e4 + torch.arange(30).double()]), Criterion(threshold=THRESHOLD)),
}


@pytest.mark.parametrize(("spectrum", "criterion"), UNCLEAR.values(), ids=UNCLEAR)
def test_what_float32_cannot_tell_apart_is_left_to_float64(spectrum, criterion, ways):
    matrix = matrix_with(spectrum)
    space = NullSpace.of(matrix, criterion)
    assert ways == [False]
    torch.testing.assert_close(
        space.eigenvalues, torch.linalg.eigvalsh(matrix), rtol=0, atol=1e-12 * float(matrix.trace())
    )


@st.composite
def spectra(draw):
    """Of LARGE eigenvalues: log-uniform, some at the threshold or zero, and up to three sinks."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    low, high = draw(st.floats(-6, -2)), draw(st.floats(-1, 3))
    values = 10 ** (low + (high - low) * torch.rand(LARGE, dtype=torch.float64, generator=generator))
    near = draw(st.integers(0, 150))
    spread = 10 ** draw(st.floats(-4, -1))
    values[:near] = THRESHOLD * (1 + spread * (2 * torch.rand(near, dtype=torch.float64, generator=generator) - 1))
    zeros = draw(st.sampled_from([0, 0, 5, 100, 300]))
    values[near : near + zeros] = 0
    sinks = draw(st.lists(st.floats(3, 6), max_size=3))
    values[LARGE - len(sinks) :] = 10 ** torch.tensor(sinks, dtype=torch.float64)
    return values.sort().values


@tries(12)
@given(values=spectra(), criterion=st.sampled_from([Criterion(threshold=THRESHOLD), Criterion(nullity=0.4)]))
def test_any_spectrum_is_split_as_in_float64(values, criterion):
    check(matrix_with(values), criterion)


@pytest.mark.parametrize("d", [511, 512, 1001])
def test_the_split_is_the_same_around_the_size_where_float32_begins(d, ways):
    check(matrix_with(logspace(-4, 1, d)), Criterion(threshold=THRESHOLD))
    assert ways == [True] * (d >= 512)


def test_a_large_diagonal_covariance_is_split_along_its_axes():
    diagonal = logspace(-4, 1)[torch.randperm(LARGE, generator=torch.Generator().manual_seed(0))]
    p = NullSpace.of(diagonal.diag()).dense()
    torch.testing.assert_close(p, (diagonal < THRESHOLD).double().diag(), rtol=0, atol=1e-6)


def test_rounding_that_is_not_symmetric_does_no_harm():
    matrix = matrix_with(logspace(-4, 1))
    noise = 1e-13 * torch.randn(LARGE, LARGE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert NullSpace.of(matrix + noise).nullity == NullSpace.of(matrix).nullity


def test_a_cut_does_the_same_twice_and_leaves_the_matrix_and_torchs_random_numbers_alone():
    matrix = matrix_with(logspace(-4, 1))
    before, state = matrix.clone(), torch.get_rng_state()
    once, again = NullSpace.of(matrix), NullSpace.of(matrix)
    assert torch.equal(once.factor, again.factor)
    assert torch.equal(matrix, before)
    assert torch.equal(torch.get_rng_state(), state)
