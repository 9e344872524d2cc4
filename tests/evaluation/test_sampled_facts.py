"""Facts asked by a sample, and the earliest always: against asking all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.comparing import fresh
from support.tries import tries

from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.errors import RequestError
from alphaedit_plugin.evaluation import fact_scores
from alphaedit_plugin.evaluation.fact_scores import FactScores, evenly
from alphaedit_plugin.evaluation.facts import Fact

PLACES = ("Rome", "Paris", "Warsaw")
FACTS = [
    Fact((Request("{} lives in", f"Leo {number}", PLACES[number % 3]),), PLACES[number % 2], (), ("The Louvre is in",))
    for number in range(12)
]


@tries(200)
@given(count=st.integers(1, 400), sample=st.integers(1, 500))
def test_a_sample_is_spread_evenly_and_holds_the_last(count, sample):
    found = evenly(count, sample)
    assert found == sorted(set(found))
    assert len(found) == min(count, sample)
    assert found[-1] == count - 1
    gaps = {b - a for a, b in zip([-1, *found], found, strict=False)}
    assert max(gaps) - min(gaps) <= 1


def test_a_sample_gives_the_values_of_its_facts_and_the_end_asks_all(tokenizer, monkeypatch):
    monkeypatch.setattr(fact_scores, "EARLIEST", 3)
    model, whole, sampled = fresh(), FactScores(), FactScores(4)
    before = sampled(model, tokenizer, FACTS, None)
    assert [record["number"] for record in before.records] == list(range(12))
    everyone = whole(model, tokenizer, FACTS[:10], before)
    found = sampled(model, tokenizer, FACTS[:10], before)
    assert [record["number"] for record in found.records] == [0, 1, 2, 4, 7, 9]  # the earliest, and 2, 4, 7 and 9
    assert found.records == [everyone.records[record["number"]] for record in found.records]
    of = {record["number"]: record["efficacy"] for record in everyone.records}
    assert found.estimates["efficacy"].value == pytest.approx(sum(of[n] for n in (2, 4, 7, 9)) / 4)
    assert found.estimates["retention"] == everyone.estimates["retention"]
    assert found.estimates["retention"].value == pytest.approx(sum(of[n] for n in range(3)) / 3)
    assert found.estimates["locality"].value == 1
    end = sampled(model, tokenizer, FACTS, before)
    assert end.records == whole(model, tokenizer, FACTS, before).records


def test_there_is_no_retention_before_there_are_later_facts(tokenizer):
    assert "retention" not in FactScores()(fresh(), tokenizer, FACTS, None).estimates


def test_samples_have_results_of_their_own_and_hold_something():
    assert FactScores().identity() == {} != FactScores(5).identity() != FactScores(6).identity()
    with pytest.raises(RequestError, match="at least one fact"):
        FactScores(0)
