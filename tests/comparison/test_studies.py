"""What the presets of `alphaedit compare` stand for."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alphaedit_plugin.comparison.contenders import contender
from alphaedit_plugin.comparison.studies import STUDIES, Plan, of_frequent_relations, sampled, study_named
from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.editors.variant import Variant
from alphaedit_plugin.errors import CompareError
from alphaedit_plugin.evaluation.facts import Fact


def facts_of(relations) -> list[Fact]:
    return [Fact((Request("{} is", f"s{i}", "o", i),), relation=relation) for i, relation in enumerate(relations)]


@pytest.mark.parametrize("name", list(STUDIES))
def test_every_study_makes_different_variants_that_exist(name):
    study = study_named(name)
    methods = study.methods(study.plan.methods or ("memit+P", "rect"), 10_000)
    names = [contender(method).name for method in methods]
    assert len(set(names)) == len(names) > 1


@pytest.mark.parametrize(
    ("study", "key"), [("threshold", "nullspace_threshold"), ("L2", "L2"), ("corpus-size", "tokens")]
)
@pytest.mark.parametrize("method", ["alphaedit", "memit+P", "memit@L2=3+rect+P", "alphaedit+prune"])
def test_a_sweep_changes_one_hyperparameter_and_nothing_else(study, key, method):
    before = Variant.parse(method)
    values = []
    for name in STUDIES[study].methods([method], 5000):
        variant = Variant.parse(name)
        changes = dict(variant.changes)
        values.append(float(changes.pop(key)))
        assert {k: v for k, v in changes.items() if k != key} == {k: v for k, v in before.changes if k != key}
        assert replace(variant, changes=before.changes) == before
    assert values == sorted(set(values))
    if study == "corpus-size":
        assert (values[0], values[-1]) == (500, 5000)


@pytest.mark.parametrize(
    ("method", "said"),
    [("rome", "rome has none"), ("memit@clamp_norm_factor=0.5+P", "sweeps clamp_norm_factor by itself")],
)
def test_a_frontier_is_swept_over_what_the_method_leaves_open(method, said):
    with pytest.raises(CompareError, match=said):
        STUDIES["frontier"].methods([method], 5000)


plans = st.builds(
    Plan,
    methods=st.none() | st.just(("memit",)),
    edits=st.none() | st.integers(1, 9),
    every=st.none() | st.integers(1, 9),
    texts=st.none() | st.integers(0, 9),
)


@given(a=plans, b=plans)
def test_what_the_user_gives_wins_over_the_study(a, b):
    for field, value in vars(a.over(b)).items():
        assert value == (vars(b)[field] if vars(a)[field] is None else vars(a)[field])


@given(relations=st.lists(st.sampled_from(["", "P1", "P2", "P3"]), min_size=1, max_size=60))
def test_relations_keep_the_frequent_ones_and_spread_each(relations):
    facts = facts_of(relations)
    count = Counter(relation for relation in relations if relation)
    frequent = {relation for relation, number in count.items() if number >= 5}
    if not frequent:
        with pytest.raises(CompareError, match="relation"):
            of_frequent_relations(facts)
        return
    found = of_frequent_relations(facts)
    assert sorted(fact.request.case_id for fact in found) == [i for i, r in enumerate(relations) if r in frequent]
    half = [fact.relation for fact in found[: len(found) // 2]]
    for relation in frequent:
        assert abs(half.count(relation) - count[relation] / 2) <= len(frequent)
        assert [fact for fact in found if fact.relation == relation] == [f for f in facts if f.relation == relation]


@given(count=st.integers(1, 30), seed=st.none() | st.integers(0, 5))
def test_a_seed_draws_and_orders_and_none_takes_the_first(count, seed):
    facts = facts_of(["P"] * 30)
    found = sampled(facts, count, seed)
    assert len({fact.request.case_id for fact in found}) == len(found) == count
    assert found == sampled(facts, count, seed)
    if seed is None:
        assert found == facts[:count]
    assert {fact.request.case_id for fact in sampled(facts, 30, seed)} == set(range(30))


def test_an_unknown_study_is_named_with_the_known_ones():
    with pytest.raises(CompareError, match=r"'magic'.*sequential"):
        study_named("magic")
