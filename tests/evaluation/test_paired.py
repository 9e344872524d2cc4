"""Differences between variants that were asked about the same facts: intervals, p-values, Holm, facts needed."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tries import tries

from alphaedit_plugin.evaluation.fact_scores import harmonic
from alphaedit_plugin.evaluation.paired import DRAWS, difference, holm

VALUES = st.floats(0, 1, allow_subnormal=False)
PAIRS = st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=30)


def sides(pairs) -> tuple[dict[int, tuple[float]], dict[int, tuple[float]]]:
    one, other = zip(*pairs, strict=True)
    return {item: (float(value),) for item, value in enumerate(one)}, dict(enumerate((float(v),) for v in other))


@tries(40)
@given(pairs=PAIRS)
def test_exchanging_the_sides_changes_the_signs_and_nothing_else(pairs):
    one, other = sides(pairs)
    there, back = difference(one, other), difference(other, one)
    assert there.value == pytest.approx(np.mean([a - b for a, b in pairs]), abs=1e-12)
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low), abs=1e-12)
    assert (there.p, there.error) == pytest.approx((back.p, back.error), abs=1e-12)
    assert there.low - 1e-12 <= there.value <= there.high + 1e-12


@tries(40)
@given(pairs=PAIRS, data=st.data())
def test_the_order_of_facts_is_nothing_to_it(pairs, data):
    one, other = sides(pairs)
    order = data.draw(st.permutations(range(len(pairs))))
    assert difference({item: one[item] for item in order}, other) == difference(one, other)


def test_a_variant_does_not_differ_from_itself():
    found = difference({0: (1.0,), 1: (0.0,)}, {0: (1.0,), 1: (0.0,)})
    assert (found.value, found.low, found.high, found.p, found.error) == (0, 0, 0, 1, 0)
    assert found.needed() is None


def test_equal_means_need_no_number_of_facts_to_tell_them_apart():
    """The same thirds in another order: their means differ by rounding alone, and their spread is large."""
    thirds = np.random.default_rng(1).integers(0, 4, 100) / 3
    found = difference(*sides(zip(thirds, np.roll(thirds, 1), strict=True)))
    rounded = replace(found, value=1e-16)
    assert rounded.error > 1e-3
    assert rounded.needed() is None
    assert replace(found, value=1e-3).needed() > 100


def test_only_what_both_know_is_compared():
    one = {0: (1.0, nan), 1: (1.0, 0.5), 2: (0.0, 1.0), 9: (0.0, 0.0)}
    other = {0: (0.5, 0.0), 1: (0.5, 0.5), 2: (nan, 0.5)}
    assert difference(one, other).value == pytest.approx(0.5)
    assert difference(one, other, lambda means: means[..., 1]).value == pytest.approx(0.25)
    assert difference(one, {7: (1.0, 1.0)}) is None
    assert difference({0: (1.0, nan)}, {0: (1.0, nan)}) is None


def test_a_statistic_of_several_values_is_taken_after_the_means():
    random = np.random.default_rng(0)
    values = random.random((2, 40, 3))
    one, other = ({item: tuple(row) for item, row in enumerate(side)} for side in values)
    found = difference(one, other, harmonic)
    assert found.value == pytest.approx(harmonic(values[0].mean(0)) - harmonic(values[1].mean(0)))
    assert found.low < found.value < found.high


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Paired shares, most of them equal: 95 % of 400 intervals, within what chance leaves of 400."""
    random = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        easy, gained = random.random(120) < 0.6, random.random(120) < 0.1
        found = difference(*sides(zip(easy | gained, easy, strict=True)))
        held += found.low <= 0.4 * 0.1 <= found.high
    assert 0.91 <= held / 400 <= 0.98


def test_what_is_no_difference_is_seldom_called_one():
    random = np.random.default_rng(4)
    p = np.asarray([difference(*sides(random.random((25, 2)))).p for _ in range(400)])
    for level in (0.05, 0.5):
        assert np.mean(p <= level) == pytest.approx(level, abs=3 * (level * (1 - level) / 400) ** 0.5)
    few = np.asarray([difference(*sides(random.random((25, 2)) < 0.2)).p for _ in range(400)])
    assert np.mean(few <= 0.05) <= 0.06  # where most facts are level the bootstrap alone would be too sure


def test_the_p_value_is_that_of_all_ways_to_exchange_the_sides():
    pairs = [(0.9, 0.2), (0.7, 0.6), (0.4, 0.5), (0.8, 0.1), (0.6, 0.55), (0.3, 0.35), (0.9, 0.4), (0.5, 0.2)]
    less = np.asarray([a - b for a, b in pairs])
    every = np.asarray([np.dot(signs, less) for signs in product((-1, 1), repeat=len(less))])
    exact = np.mean(np.abs(every) >= abs(less.sum()) - 1e-12)
    assert difference(*sides(pairs)).p == pytest.approx(exact, abs=4 * (exact / DRAWS) ** 0.5)


def test_as_many_facts_as_it_says_would_tell():
    """Of samples of that size, about four of five find the difference."""
    random = np.random.default_rng(5)

    def sample(count: int):
        easy, gained, lost = random.random(count) < 0.7, random.random(count) < 0.2, random.random(count) < 0.02
        return difference(*sides(zip((easy | gained) & ~lost, easy, strict=True)))

    needed = sample(4000).needed()
    assert 100 < needed < 500
    assert np.mean([sample(needed).p <= 0.05 for _ in range(200)]) == pytest.approx(0.8, abs=0.1)
    assert sample(400).needed(10) > sample(400).needed()


@tries(100)
@given(p=st.lists(st.floats(0, 1), max_size=12), level=st.floats(0.001, 0.5))
def test_holm_rejects_step_by_step(p, level):
    """Against the procedure as it is told: the least p against α/m, the next against α/(m − 1), until one fails."""
    rejected, left = set(), sorted(range(len(p)), key=lambda at: p[at])
    while left and p[left[0]] * len(left) <= level:
        rejected.add(left.pop(0))
    adjusted = holm(p)
    assert {at for at, value in enumerate(adjusted) if value <= level} == rejected
    assert all(one <= value <= 1 for one, value in zip(p, adjusted, strict=True))
    ranked = [adjusted[at] for at in sorted(range(len(p)), key=lambda at: p[at])]
    assert ranked == sorted(ranked)


def test_holm_of_a_textbook_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
