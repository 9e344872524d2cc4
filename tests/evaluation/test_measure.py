"""Means and their intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tries import tries

from alphaedit_plugin.evaluation.measure import estimate, mean_of


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
@tries(25)
def test_an_interval_holds_the_mean_and_lies_within_the_values(values):
    found = mean_of([*values, math.nan])
    assert found.value == pytest.approx(sum(values) / len(values))
    assert min(values) - 1e-12 <= found.low <= found.value + 1e-9
    assert found.value - 1e-9 <= found.high <= max(values) + 1e-12
    assert mean_of(values) == found
    assert mean_of([math.nan]) is None


def test_an_interval_of_many_values_is_that_of_the_normal_distribution():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = mean_of(values.tolist())
    half = 1.96 * float(values.std()) / 20
    assert found.low == pytest.approx(float(values.mean()) - half, abs=0.02)
    assert found.high == pytest.approx(float(values.mean()) + half, abs=0.02)


def test_a_statistic_of_items_is_resampled_item_by_item():
    """The ratio of two sums, against a loop over resamples."""
    items = np.abs(np.random.default_rng(1).normal(size=(30, 2))) + 1
    found = estimate(items, lambda sample: sample[..., 0].sum(-1) / sample[..., 1].sum(-1))
    draws = np.random.default_rng(5)
    slow = []
    for _ in range(4000):
        rows = items[draws.integers(0, 30, 30)]
        slow.append(rows[:, 0].sum() / rows[:, 1].sum())
    assert found.value == pytest.approx(items[:, 0].sum() / items[:, 1].sum())
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=0.02)


@given(st.lists(st.sampled_from([1.0, 2.0, math.inf]), min_size=1, max_size=9))
def test_an_interval_is_finite_or_absent(values):
    found = estimate(np.asarray(values), lambda sample: sample.mean(-1))
    assert found.value == np.mean(values)
    assert (found.low is None) == (found.high is None) == (math.inf in values)
