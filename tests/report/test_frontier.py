"""The area between two frontiers, against a sum over a fine grid, and as properties."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.comparisons import comparison

from alphaedit_plugin.errors import CompareError
from alphaedit_plugin.report.frontier import Frontier, gain
from alphaedit_plugin.report.frontier_section import KEPT, WRITTEN, frontier
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
@given(one=frontiers(4), other=frontiers(4))
def test_it_is_the_mean_difference_of_the_most_that_is_written_while_so_much_is_kept(one, other):
    found = gain(one, other)
    if found is None:
        assert max(one.mean[0][1:]) == max(other.mean[0][1:]) == 0 or 1.0 in (one.mean[1].min(), other.mean[1].min())
        return
    low, high = found.kept_least, found.kept_most
    assert high == 1.0 > low
    at = low + (high - low) * (np.arange(4000) + 0.5) / 4000
    expected = np.mean(heights(one, at) - heights(other, at))
    assert found.value == pytest.approx(expected, abs=2e-3)
    assert found.low <= found.high
    assert found.items == FACTS
    back = gain(other, one)
    assert (back.value, back.low, back.high, back.p) == pytest.approx((-found.value, -found.high, -found.low, found.p))


@settings(max_examples=40)
@given(of=frontiers(4))
def test_a_frontier_is_level_with_itself_whatever_the_facts(of):
    found = gain(of, of)
    assert found is None or (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)


@settings(max_examples=40)
@given(of=frontiers(3), over=frontiers(4), place=st.integers(0, 3))
def test_a_setting_that_another_equals_changes_nothing(of, over, place):
    def twice(place: int) -> Frontier:
        return Frontier(*(np.insert(values, 4, values[:, place], 1) for values in (of.written, of.kept)))

    found, again = gain(twice(place), over), gain(twice(0), over)
    assert (again is None) == (found is None)
    if found is not None:
        assert list(vars(again).values()) == pytest.approx(list(vars(found).values()))
    assert len(twice(place).on_it) == len(of.on_it)


@settings(max_examples=5)
@given(of=frontiers(3), over=frontiers(4))
def test_frontiers_of_different_numbers_of_settings_are_not_compared(of, over):
    with pytest.raises(CompareError, match="as many"):
        gain(of, over)


def test_methods_that_are_alike_are_seldom_told_apart():
    """Also where a frontier is made of the luckiest of many settings."""
    random = np.random.default_rng(0)
    told = 0
    for _ in range(60):
        hard = random.random((80, 1))
        sides = []
        for _ in range(2):
            write, keep = np.linspace(0.2, 0.9, 8), np.linspace(0.95, 0.6, 8)
            written, kept = ((hard + 0.3 * random.random((80, 8))) / 1.3 < share for share in (write, keep))
            sides.append(Frontier(np.insert(written * 1.0, 0, 0, 1), np.insert(kept * 1.0, 0, 1, 1)))
        told += gain(*sides).p <= 0.05
    assert told <= 8


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


def swept(facts: int):
    names = [f"memit@mom2_update_weight={each}" for each in (0, 10, 100)]
    with_p = [f"{name}@nullspace_threshold={t}+P" for name in names for t in (0.01, 0.02)]
    alone = [f"alphaedit@L2={each}@nullspace_threshold=0.02" for each in (1, 10, 100)]
    return comparison([*names, *with_p, *alone], (facts,), facts=facts, study="frontier")


def test_the_section_compares_each_method_with_itself_under_p_at_each_threshold():
    made = swept(60)
    found = {section.id: section for section in sections(made, styles([made]))}
    assert set(found) == {"frontier", "cases", "all", "settings"}
    section = found["frontier"]
    panels = section.pictures[0].panels
    assert len(panels) == len(WRITTEN) * len(KEPT)
    (gains,) = section.grids
    assert {first.text for first, _ in gains.rows} == {
        "memit@nullspace_threshold=0.01+P against memit",
        "memit@nullspace_threshold=0.02+P against memit",
        "alphaedit@nullspace_threshold=0.02 against memit",
    }
    assert len(gains.rows) == 3 * len(panels)
    assert section.text.startswith("The frontier of memit@nullspace_threshold=0.01+P lies above that of memit")
    ((_, chosen),) = section.folded
    assert all(first.text in made.variants for first, _ in chosen.rows)


def test_with_few_facts_nothing_is_told_apart():
    made = swept(19)
    section = sections(made, styles([made]))[0]
    (gains,) = section.grids
    assert {cells[-1].text for _, cells in gains.rows} == {"cannot be told"}
    assert not any(cell.best for _, cells in gains.rows for cell in cells)
    assert "lies" not in section.text


def test_settings_are_compared_on_the_facts_that_all_were_asked_about():
    made = swept(60)
    before, *rows = [made.before, *(row for row in made.rows if row.variant.startswith("memit@"))][:3]
    records = rows[0].measured["facts"].records
    for number, record in enumerate(records):
        record["number"] = number
    fewer = replace(rows[1], measured={"facts": replace(rows[1].measured["facts"], records=records[30:])})
    found = frontier(before, [rows[0], fewer], "exact", "locality")
    assert found.written.shape == (30, 3)
    assert np.array_equal(found.written[:, 1], found.written[:, 2])


def test_other_studies_have_no_frontier():
    made = comparison(("memit", "memit+P"), (60,), facts=24)
    assert "frontier" not in {section.id for section in sections(made, styles([made]))}
