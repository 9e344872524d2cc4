"""The area between two frontiers, against a sum over a fine grid, and as properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.comparisons import comparison

from alphaedit_plugin.report.frontier import Frontier, gain
from alphaedit_plugin.report.frontier_section import KEPT, WRITTEN
from alphaedit_plugin.report.sections import sections
from alphaedit_plugin.report.style import styles

FACTS = 12


def frontiers(number):
    """Of facts that are written or not, and kept in tenths; the first setting keeps all and writes little."""
    share = st.integers(0, 10).map(lambda tenths: tenths / 10)
    return st.builds(
        lambda written, kept: Frontier(
            np.column_stack([np.zeros(FACTS), written]), np.column_stack([np.ones(FACTS), kept])
        ),
        arrays(float, (FACTS, number), elements=share),
        arrays(float, (FACTS, number), elements=share),
    )


def heights(frontier: Frontier, least: np.ndarray) -> np.ndarray:
    written, kept = frontier.mean
    return np.where(kept[None] >= least[:, None], written[None], -np.inf).max(1)


@settings(max_examples=40)
@given(one=frontiers(3), other=frontiers(4))
def test_it_is_the_mean_difference_of_the_most_that_is_written_while_so_much_is_kept(one, other):
    found = gain(one, other)
    if found is None:
        assert max(one.mean[0][1:]) == max(other.mean[0][1:]) == 0 or 1.0 in (one.mean[1].min(), other.mean[1].min())
        return
    estimate, (low, high) = found
    assert high == 1.0 > low
    at = low + (high - low) * (np.arange(4000) + 0.5) / 4000
    expected = np.mean(heights(one, at) - heights(other, at))
    assert estimate.value == pytest.approx(expected, abs=2e-3)
    assert estimate.low <= estimate.high
    back, _ = gain(other, one)
    assert (back.value, back.low, back.high) == pytest.approx((-estimate.value, -estimate.high, -estimate.low))


@settings(max_examples=40)
@given(of=frontiers(4))
def test_a_frontier_is_level_with_itself_whatever_the_facts(of):
    found = gain(of, of)
    assert found is None or (found[0].value, found[0].low, found[0].high) == (0, 0, 0)


@settings(max_examples=40)
@given(of=frontiers(3), over=frontiers(3), place=st.integers(0, 3))
def test_a_setting_that_another_equals_changes_nothing(of, over, place):
    twice = Frontier(*(np.insert(values, 4, values[:, place], 1) for values in (of.written, of.kept)))
    again, found = gain(twice, over), gain(of, over)
    assert (again is None) == (found is None)
    if found is not None:
        assert list(vars(again[0]).values()) == pytest.approx(list(vars(found[0]).values()))
    assert len(twice.on_it) == len(of.on_it)


@settings(max_examples=40)
@given(of=frontiers(5))
def test_no_setting_beats_one_that_is_on_it(of):
    written, kept = (np.round(each, 12) for each in of.mean)
    assert of.on_it[0] == int(np.lexsort((-written, -kept))[0])
    for each in of.on_it:
        beaten = (written >= written[each]) & (kept >= kept[each]) & ((written > written[each]) | (kept > kept[each]))
        assert not beaten.any()
    assert written[of.on_it[-1]] == written.max()


def test_facts_without_a_value_do_not_count():
    written = np.array([[0.0, 1.0], [0.0, 1.0], [np.nan, np.nan]])
    kept = np.array([[1.0, 0.5], [1.0, np.nan], [1.0, 0.7]])
    assert Frontier(written, kept).mean[0].tolist() == [0, 1]
    assert Frontier(written, kept).mean[1].tolist() == [1, 0.6]


def test_the_section_compares_each_method_with_itself_under_p():
    names = [f"memit@mom2_update_weight={each}{end}" for each in (0, 10, 100) for end in ("", "+P")]
    made = comparison([*names, "alphaedit@L2=1", "alphaedit@L2=10"], (60,), facts=60, study="frontier")
    found = {section.id: section for section in sections(made, styles([made]))}
    assert set(found) == {"frontier", "cases", "all", "settings"}
    section = found["frontier"]
    panels = section.pictures[0].panels
    assert len(panels) == len(WRITTEN) * len(KEPT)
    (gains,) = section.grids
    assert {first.text for first, _ in gains.rows} == {"memit+P against memit", "alphaedit against memit"}
    assert len(gains.rows) == 2 * len(panels)
    assert section.text.startswith("The frontier of memit+P lies above that of memit")
    ((_, chosen),) = section.folded
    assert all(first.text in made.variants for first, _ in chosen.rows)


def test_other_studies_have_no_frontier():
    made = comparison(("memit", "memit+P"), (60,), facts=24)
    assert "frontier" not in {section.id for section in sections(made, styles([made]))}
