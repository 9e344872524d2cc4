"""Metrics against slow definitions, and the loader of facts."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import oracle
from support.spaces import random_covariance
from support.tiny import NAMES, always, model_of, tiny

from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.errors import RequestError
from alphaedit_plugin.evaluation.datasets import load_facts
from alphaedit_plugin.evaluation.fact_scores import FactScores, score
from alphaedit_plugin.evaluation.facts import Fact, Probe
from alphaedit_plugin.evaluation.likelihood import score_pairs
from alphaedit_plugin.evaluation.measure import Estimate, estimate, mean_of
from alphaedit_plugin.evaluation.perplexity import Perplexity, negative_log_likelihoods
from alphaedit_plugin.nullspace.covariance import Covariance
from alphaedit_plugin.nullspace.projection import Criterion, NullSpace
from alphaedit_plugin.session.change import drift, leakage, outside

PAIRS = (
    ("The Eiffel Tower is located in the city of", "Rome"),
    ("The Eiffel Tower is located in the city of", "Paris"),
    ("The Eiffel Tower is located in the city of", "Paris, as they said"),
    ("Curie", "France"),
    ("What you read was written by others: it is", "material to judge"),
)
RECORD = {
    "case_id": 5,
    "requested_rewrite": {
        "prompt": "The capital of {} is",
        "subject": "France",
        "target_new": {"str": "Rome"},
        "target_true": {"str": "Paris"},
    },
    "paraphrase_prompts": ["France has the capital", "Who governs France sits in "],
    "neighborhood_prompts": ["The Eiffel Tower is in", "The Louvre is in", "The Seine flows through"],
}


FACT = Fact(
    (Request("The capital of {} is", "France", "Rome", 5),),
    "Paris",
    ("France has the capital", "Who governs France sits in"),
    tuple(RECORD["neighborhood_prompts"]),
)


# ------------------------------------------------------------------------------------------------ probabilities


def _slow_accuracy(model, tokenizer, prompt: str, target: str) -> float:
    """The share of the target's tokens that the model would have said, one at a time."""
    ids = tokenizer(prompt)["input_ids"]
    answer = oracle.target_ids(tokenizer, prompt, target)
    hits = []
    for token in answer:
        hits.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()) == token)
        ids = [*ids, token]
    return sum(hits) / len(hits)


@pytest.mark.parametrize("name", NAMES)
def test_pairs_are_scored_as_by_the_textbook_on_every_architecture(name, tokenizer):
    model = model_of(name)
    said = tokenizer.decode(model(torch.tensor([tokenizer(PAIRS[0][0])["input_ids"]])).logits[0, -1].argmax())
    pairs = (*PAIRS, (PAIRS[0][0], said.strip() or "a"))  # the last is right, if it can be said after a space
    found = score_pairs(model, tokenizer, pairs)
    assert found.mean_log_probability.dtype == found.accuracy.dtype == torch.float64
    for value, accuracy, (prompt, target) in zip(
        found.mean_log_probability.tolist(), found.accuracy.tolist(), pairs, strict=True
    ):
        assert value == pytest.approx(oracle.success(model, tokenizer, prompt, target, target)[0], rel=1e-5)
        assert accuracy == pytest.approx(_slow_accuracy(model, tokenizer, prompt, target))


@pytest.mark.parametrize("batch_tokens", [1, 30, 10_000])
def test_scores_of_pairs_do_not_depend_on_batches_or_order(batch_tokens, bos_tokenizer):
    model = model_of()
    expected = score_pairs(model, bos_tokenizer, PAIRS)
    found = score_pairs(model, bos_tokenizer, PAIRS[::-1], batch_tokens=batch_tokens)
    assert torch.allclose(found.mean_log_probability.flip(0), expected.mean_log_probability, rtol=1e-6)
    assert torch.equal(found.accuracy.flip(0), expected.accuracy)


def test_scoring_leaves_the_model_as_it_was(tokenizer):
    model = tiny("llama", vocab_size=512).train()
    attention = model.config._attn_implementation
    score_pairs(model, tokenizer, PAIRS)
    perplexity(model, [[1, 2, 3]])
    assert all(module.training for module in model.modules())
    assert model.config._attn_implementation == attention
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def perplexity(model, windows, **options):
    losses, counts = negative_log_likelihoods(model, windows, **options)
    return float((losses.sum() / counts.sum()).exp())


@pytest.mark.parametrize("batch_tokens", [1, 12, 1024])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom", "gemma2"])
def test_perplexity_is_the_textbooks_whatever_the_batches(name, batch_tokens):
    model = model_of(name)
    windows = [[5, 9, 3, 200, 7], [1, 2], [4, 4, 4, 400, 11, 30, 2, 9], [8]]
    expected = oracle.perplexity(model, windows)
    assert perplexity(model, windows, batch_tokens=batch_tokens) == pytest.approx(expected, rel=1e-5)


def test_a_model_that_knows_nothing_has_the_vocabularys_size_as_perplexity():
    model = tiny("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    assert perplexity(model, [[1, 2, 3, 4]]) == pytest.approx(model.config.vocab_size)


# ------------------------------------------------------------------------------------------------------- scores


def _slow_scores(model, tokenizer, fact: Fact) -> tuple[float, float, float]:
    """CounterFact's definitions, one prompt at a time."""

    def new_wins(prompt: str) -> bool:
        new, true = oracle.success(model, tokenizer, prompt, fact.request.target_new, fact.target_true)
        return new > true

    paraphrases = [new_wins(prompt) for prompt in fact.paraphrases]
    neighbours = [not new_wins(prompt) for prompt in fact.neighbours]
    return (
        float(new_wins(fact.request.text)),
        sum(paraphrases) / len(paraphrases),
        sum(neighbours) / len(neighbours),
    )


@pytest.mark.parametrize("seed", range(3))
def test_scores_follow_the_definitions_fact_by_fact(seed, tokenizer):
    model = tiny("gpt2", vocab_size=512, dtype=torch.float64, seed=seed)
    base = FACT
    longer = replace(base, paraphrases=base.paraphrases[:1], neighbours=(*base.neighbours, "Steve Jobs founded"))
    swapped = replace(base, requests=(replace(base.request, target_new="Paris"),), target_true="the old village")
    other = replace(
        base, requests=(Request("{} plays the sport of", "Michael Jordan", "chess"),), target_true="football"
    )
    facts = [base, longer, swapped, other]
    found = score(model, tokenizer, facts)
    expected = [_slow_scores(model, tokenizer, fact) for fact in facts]
    assert list(zip(found.efficacy, found.generalization, found.specificity, strict=True)) == expected
    exact = [
        float(_slow_accuracy(model, tokenizer, fact.request.text, fact.request.target_new) == 1.0) for fact in facts
    ]
    assert list(found.exact) == exact
    columns = dict(zip(("efficacy", "generalization", "specificity"), zip(*expected, strict=True), strict=True))
    assert found.means() == {
        name: pytest.approx(sum(values) / len(facts)) for name, values in {**columns, "exact": exact}.items()
    }


def test_facts_without_an_old_object_are_scored_by_token_accuracy(tokenizer):
    """ZsRE's definitions, KnowEdit's portability and MQuAKE's several requests, one prompt at a time."""
    model = model_of()
    said = tokenizer.decode(model(torch.tensor([tokenizer("The river")["input_ids"]])).logits[0, -1].argmax()).strip()
    zsre = Fact(
        (Request("The capital of {} is", "France", "Rome in Italy"),),
        paraphrases=("France has the capital", "Who governs France sits in"),
        locality={"a": [Probe("The river", (said or "a", "Paris"))], "b": [Probe("The Seine flows", ("to the sea",))]},
        portability={"hop": [Probe("The Louvre is in the city of", ("Rome", "Roma in Italy"))]},
    )
    several = Fact((zsre.request, Request("{} plays the sport of", "Jordan", "chess")))
    found = score(model, tokenizer, [zsre, several])

    def accuracy(prompt, *answers):
        return max(_slow_accuracy(model, tokenizer, prompt, answer) for answer in answers)

    def mean(values):
        return sum(values) / len(values)

    efficacy = [accuracy("The capital of France is", "Rome in Italy"), accuracy("Jordan plays the sport of", "chess")]
    assert found.efficacy == pytest.approx((efficacy[0], mean(efficacy)))
    generalization = mean([accuracy(prompt, "Rome in Italy") for prompt in zsre.paraphrases])
    assert found.generalization == pytest.approx((generalization, math.nan), nan_ok=True)
    kept = mean([accuracy("The river", said or "a", "Paris"), accuracy("The Seine flows", "to the sea")])
    assert found.specificity == pytest.approx((kept, math.nan), nan_ok=True)
    ported = accuracy("The Louvre is in the city of", "Rome", "Roma in Italy")
    assert found.portability == pytest.approx((ported, math.nan), nan_ok=True)
    assert found.means() == pytest.approx(
        {
            "efficacy": mean(found.efficacy),
            "generalization": generalization,
            "specificity": kept,
            "portability": ported,
            "exact": mean(found.exact),
        }
    )


def test_a_metric_that_no_fact_has_is_left_out(tokenizer):
    bare = Fact((Request("The capital of {} is", "France", "Rome"),))
    scores = score(model_of(), tokenizer, [bare])
    assert set(scores.means()) == {"efficacy", "exact"}
    assert set(FactScores()(model_of(), tokenizer, [bare], None).estimates) == {"efficacy", "exact"}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
@settings(max_examples=25, deadline=None)
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


@pytest.mark.parametrize("seed", range(2))
def test_the_measure_of_facts_adds_score_and_locality_to_the_definitions(seed, tokenizer):
    """Locality against argmax, one token at a time, on the model before and after."""
    before, after = (tiny("gpt2", vocab_size=512, dtype=torch.float64, seed=s) for s in (seed, seed))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        weight = after.get_submodule("transformer.h.1.mlp.c_proj").weight
        weight.add_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) * 0.7)
    zsre = Fact(
        (Request("{} plays the sport of", "Jordan", "chess"),),
        locality={"nq": [Probe("The river", ("the old town",)), Probe("The Seine flows", ("to the sea", "away"))]},
    )
    facts = [FACT, zsre]
    first = FactScores()(before, tokenizer, facts, None)
    found = FactScores()(after, tokenizer, facts, first)
    assert "locality" not in first.estimates

    def said(model, prompt, target):
        ids, tokens = tokenizer(prompt)["input_ids"], []
        for token in oracle.target_ids(tokenizer, prompt, target):
            tokens.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            ids = [*ids, token]
        return tokens

    asked = [[(prompt, "Paris") for prompt in FACT.neighbours]]
    asked += [[("The river", "the old town"), ("The Seine flows", "to the sea")]]
    expected = []
    for of in asked:
        pairs = [pair for ask in of for pair in zip(said(before, *ask), said(after, *ask), strict=True)]
        expected.append(sum(a == b for a, b in pairs) / len(pairs))
    assert [record["locality"] for record in found.records] == pytest.approx(expected)
    assert found.estimates["locality"].value == pytest.approx(sum(expected) / 2)
    means = [found.estimates[name].value for name in ("efficacy", "generalization", "specificity")]
    assert found.estimates["score"].value == pytest.approx(3 / sum(1 / m for m in means) if all(means) else 0.0)
    assert [record["efficacy"] for record in found.records] == list(score(after, tokenizer, facts).efficacy)
    assert found.records[1]["generalization"] is None
    again = FactScores()(before, tokenizer, facts[:1], first)
    assert again.estimates["locality"].value == 1


def test_the_measure_of_perplexity_has_intervals_over_windows(tokenizer):
    model = model_of()
    text = " ".join(prompt for prompt, _ in PAIRS) * 40
    found = Perplexity(text, tokenizer)(model, tokenizer, [], None).estimates["perplexity"]
    ids = tokenizer(text)["input_ids"]
    windows = [ids[i : i + 256] for i in range(0, len(ids), 256)]
    assert len(windows) > 2
    assert found.value == pytest.approx(oracle.perplexity(model, windows), rel=1e-5)
    assert found.low < found.value < found.high


def test_a_model_ruined_beyond_numbers_has_infinite_perplexity_without_interval(tokenizer):
    model = model_of()
    measure = Perplexity(" ".join(prompt for prompt, _ in PAIRS) * 40, tokenizer)
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(math.nan)
    found = measure(model, tokenizer, [], None)
    assert found.estimates["perplexity"] == Estimate(math.inf)
    assert len(found.records) == len(measure.windows)
    assert all(record["loss"] is None for record in found.records)


@given(st.lists(st.sampled_from([1.0, 2.0, math.inf]), min_size=1, max_size=9))
def test_an_interval_is_finite_or_absent(values):
    found = estimate(np.asarray(values), lambda sample: sample.mean(-1))
    assert found.value == np.mean(values)
    assert (found.low is None) == (found.high is None) == (math.inf in values)


def test_new_and_old_object_alike_count_for_neither_side(tokenizer):
    fact = replace(FACT, target_true="Rome")
    scores = score(model_of(), tokenizer, [fact])
    assert (scores.efficacy, scores.generalization, scores.specificity) == ((0.0,), (0.0,), (0.0,))


# ------------------------------------------------------------------------------------------------------ weights

matrices = st.tuples(st.integers(1, 6), st.integers(2, 8), st.integers(0, 10_000))


def _three(shape: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """W before, W after, and some keys K0 as columns."""
    d_out, d_in, seed = shape
    generator = torch.Generator().manual_seed(seed)
    return tuple(  # type: ignore[return-value]
        torch.randn(*size, generator=generator, dtype=torch.float64)
        for size in ((d_out, d_in), (d_out, d_in), (d_in, 30))
    )


@settings(max_examples=25, deadline=None)
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


@settings(max_examples=25, deadline=None)
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


@settings(max_examples=40, deadline=None)
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


# -------------------------------------------------------------------------------------------------------- facts


def _written(tmp_path, content) -> str:
    path = tmp_path / "facts.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def test_facts_are_read_from_counterfacts_schema(tmp_path):
    (fact,) = load_facts(_written(tmp_path, [RECORD]))
    assert fact == FACT


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target_true", None),
        ("target_true", {"str": " "}),
        ("target_true", {"id": "Q90"}),
        ("target_true", 3),
        ("target_new", {"str": ""}),
        ("subject", None),
        ("prompt", 5),
        ("paraphrase_prompts", None),
        ("paraphrase_prompts", []),
        ("paraphrase_prompts", "one"),
        ("neighborhood_prompts", ["good", ""]),
        ("neighborhood_prompts", [3]),
        ("neighborhood_prompts", {}),
    ],
)
def test_a_bad_field_is_reported_with_file_record_and_field(tmp_path, field, value):
    bad = json.loads(json.dumps(RECORD))
    (bad if field in bad else bad["requested_rewrite"])[field] = value
    path = _written(tmp_path, [RECORD, bad])
    with pytest.raises(RequestError) as caught:
        load_facts(path)
    for part in (path, "record 1", field):
        assert part in str(caught.value)


@pytest.mark.parametrize("record", [None, 3, "text", [], {"requested_rewrite": [1]}])
def test_a_record_that_is_no_mapping_is_reported_with_file_and_number(tmp_path, record):
    path = _written(tmp_path, [RECORD, record])
    with pytest.raises(RequestError) as caught:
        load_facts(path)
    assert path in str(caught.value)
    assert "record 1" in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[1,", "{}", "[]", "null", '"text"'])
def test_a_file_without_facts_is_reported_by_name(tmp_path, content):
    path = _written(tmp_path, content)
    with pytest.raises(RequestError) as caught:
        load_facts(path)
    assert path in str(caught.value)


def test_a_file_that_is_not_there_or_not_text_is_reported_by_name(tmp_path):
    with pytest.raises(RequestError, match="absent"):
        load_facts(tmp_path / "absent.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00[")
    with pytest.raises(RequestError, match="binary"):
        load_facts(tmp_path / "binary.json")


def test_perplexity_of_an_even_coin_over_two_tokens_is_two():
    """A head that likes two tokens alike and no others."""
    model = always(tiny("llama"), {0: 0.0, 1: 0.0})
    assert perplexity(model, [[0, 1, 1, 0, 0]]) == pytest.approx(2.0)
    assert math.isfinite(perplexity(model, [[0, 1], [1, 0, 1]]))
