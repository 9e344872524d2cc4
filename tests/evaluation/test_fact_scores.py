"""The scores of facts against their definitions, one prompt at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from support import oracle
from support.scoring import FACT, slow_accuracy
from support.tiny import model_of, tiny

from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.evaluation.fact_scores import FactScores, score
from alphaedit_plugin.evaluation.facts import Fact, Probe


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
        float(slow_accuracy(model, tokenizer, fact.request.text, fact.request.target_new) == 1.0) for fact in facts
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
        return max(slow_accuracy(model, tokenizer, prompt, answer) for answer in answers)

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


def test_new_and_old_object_alike_count_for_neither_side(tokenizer):
    fact = replace(FACT, target_true="Rome")
    scores = score(model_of(), tokenizer, [fact])
    assert (scores.efficacy, scores.generalization, scores.specificity) == ((0.0,), (0.0,), (0.0,))
