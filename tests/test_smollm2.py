"""What is said to work, works on a real model: the shipped facts, and the main job from text to table."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from support.paths import SHARED

from alphaedit_plugin.comparison.compare import compare
from alphaedit_plugin.editors.hyperparameters import Hyperparameters
from alphaedit_plugin.editors.requests import encode
from alphaedit_plugin.editors.verdict import Reason
from alphaedit_plugin.errors import RequestError
from alphaedit_plugin.evaluation.answers import Answers
from alphaedit_plugin.evaluation.datasets import load_facts
from alphaedit_plugin.evaluation.fact_scores import FactScores
from alphaedit_plugin.evaluation.likelihood import score_pairs
from alphaedit_plugin.evaluation.perplexity import Perplexity
from alphaedit_plugin.model import DEMO_MODEL
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.model.snapshot import put_back
from alphaedit_plugin.nullspace.null_spaces import null_spaces_of
from alphaedit_plugin.nullspace.projection import Criterion
from alphaedit_plugin.nullspace.statistics import Preparation, prepare_statistics
from alphaedit_plugin.session.session import Session
from alphaedit_plugin.storage.shipped import shipped


@pytest.fixture(scope="module")
def facts():
    return load_facts(shipped("examples/facts.json"))


@pytest.fixture(scope="module")
def prepared(demo, tmp_path_factory):
    """(hyperparameters, statistics, store) of two layers, from the held-out text: quick to collect."""
    from alphaedit_plugin.storage.store import Store

    model, tokenizer = demo
    store = Store(tmp_path_factory.mktemp("smollm2"))
    shipped_values = Hyperparameters.for_model("memit", model, DEMO_MODEL)
    hyperparameters = replace(
        shipped_values,
        layers=(7, 8),
        v_num_grad_steps=12,
        mom2_update_weight=100.0,
        null_space=Criterion(nullity=0.5),
    )
    statistics = prepare_statistics(
        model, tokenizer, hyperparameters.layers, source=shipped("examples/heldout.txt"), tokens=2500, store=store
    )
    return hyperparameters, statistics, store


def test_the_shipped_facts_are_many_varied_and_complete(facts):
    records = json.loads(shipped("examples/facts.json").read_text(encoding="utf-8"))
    relations = Counter(record["requested_rewrite"]["relation_id"] for record in records)
    assert len(facts) >= 150
    assert len(relations) >= 12
    assert len({fact.request.case_id for fact in facts}) == len(facts)
    assert all(len(fact.paraphrases) == 2 and len(fact.neighbours) == 5 for fact in facts)
    assert all(fact.request.target_new != fact.target_true for fact in facts)
    assert all(fact.request.subject in paraphrase for fact in facts for paraphrase in fact.paraphrases)


def test_smollm2_knows_at_least_two_thirds_of_the_shipped_facts(demo, facts):
    model, tokenizer = demo
    pairs = [(fact.request.text, target) for fact in facts for target in (fact.target_true, fact.request.target_new)]
    true, new = score_pairs(model, tokenizer, pairs).mean_log_probability.view(-1, 2).T
    assert (true > new).float().mean() >= 2 / 3


def test_the_main_job_learns_the_facts_and_leaves_the_model_as_it_was(demo, facts, prepared):
    model, tokenizer = demo
    hyperparameters, statistics, store = prepared
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    comparison = compare(
        model,
        tokenizer,
        facts[:2],
        ["memit", "memit+P", "alphaedit", "rect"],
        hyperparameters=hyperparameters,
        statistics=statistics,
        preparation=Preparation(store=store),
        batch_size=1,
        measures=[
            FactScores(),
            Perplexity("The tide comes in twice a day, and the boats rise with it.", tokenizer),
        ],
    )
    unedited, *edited = comparison.rows
    assert [row.variant for row in comparison.rows] == ["before", "memit", "memit+P", "alphaedit", "rect"]
    assert unedited.metrics["efficacy"] < 1.0
    assert all(row.metrics["efficacy"] == 1.0 for row in edited)
    assert all(row.drift[layer] > 0 for row in edited for layer in hyperparameters.layers)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_in_its_own_chat_template_it_learns_to_answer(demo, prepared):
    """Tokens and probabilities are transformers' own: the turn of a user, then the object."""
    model, tokenizer = demo
    hyperparameters, statistics, _ = prepared
    records = [
        {"prompt": "In which city is {}?", "subject": "the Eiffel Tower", "target_new": "Rome"},
        {"prompt": "What is the capital of {}?", "subject": "France", "target_new": "Lyon"},
    ]
    asked = []
    for record in records:
        turn = [{"role": "user", "content": record["prompt"].replace("{}", record["subject"])}]
        ids = list(tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False))
        asked.append((ids, tokenizer(record["target_new"], add_special_tokens=False)["input_ids"]))

    @torch.no_grad()
    def losses() -> list[float]:
        found = []
        for ids, target in asked:
            logits = model(torch.tensor([ids + target])).logits[0, len(ids) - 1 : -1].float()
            found.append(float(torch.nn.functional.cross_entropy(logits, torch.tensor(target))))
        return found

    session = Session(
        model,
        tokenizer,
        "memit",
        hyperparameters=replace(hyperparameters, v_num_grad_steps=25, mom2_update_weight=1.0),
        covariances=statistics.covariances,
        contexts=("{}", "The tide comes in twice a day. {}"),
        chat=True,
    )
    with put_back(session.projections):
        for record, (ids, target) in zip(records, asked, strict=True):
            encoded = encode(session.tokenizer, record["prompt"], record["subject"], record["target_new"])
            assert (encoded.ids, encoded.target) == (ids, target)
        before = losses()
        session.edit(records)
        after = losses()
    print("mean loss per token, before and after:", before, after)
    assert min(before) > 2
    assert max(after) < 0.5


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real data sets are not there: {SHARED}")
def test_facts_of_qaedit_are_learned_and_said_without_help(demo, prepared):
    """Whole objects, and in what the model writes by itself: teacher forcing is what QAEdit's authors warn of."""
    model, tokenizer = demo
    hyperparameters, statistics, _ = prepared
    facts = load_facts(SHARED / "qaedit/qaedit_500.json")[:5]
    found = compare(
        model,
        tokenizer,
        facts,
        ["memit"],
        hyperparameters=replace(hyperparameters, v_num_grad_steps=25, mom2_update_weight=1.0),
        statistics=statistics,
        measures=[FactScores(), Answers()],
    )
    before, after = (row.metrics for row in found.rows)
    print("before and after:", before, after)
    assert before["exact"] == before["written_efficacy"] == 0
    assert after["exact"] >= 0.6
    assert after["written_efficacy"] >= 0.6
    assert after["generalization"] > before["generalization"]


def test_after_the_edits_the_model_writes_the_new_objects_by_itself(demo, facts, prepared):
    """Without teacher forcing, and before them it does not."""
    model, tokenizer = demo
    hyperparameters, statistics, _ = prepared
    chosen = [replace(fact, paraphrases=(), neighbours=()) for fact in facts[:4]]
    session = Session(model, tokenizer, "memit", hyperparameters=hyperparameters, covariances=statistics.covariances)
    measure = Answers()
    with put_back(session.projections):
        before = measure(model, tokenizer, chosen, None)
        session.edit([fact.request for fact in chosen])
        after = measure(model, tokenizer, chosen, before)
    print({name: (before.estimates.get(name), estimate) for name, estimate in after.estimates.items()})
    assert before.estimates["written_efficacy"].value <= 0.25
    assert after.estimates["written_efficacy"].value >= 0.75
    for record in after.records:
        (asked,) = (each for each in record["answers"] if each["kind"] == "efficacy")
        assert not record["written_efficacy"] or record["target_new"].casefold() in asked["text"].casefold()


@pytest.mark.parametrize("method", ["memit+P", "alphaedit"])
def test_a_projected_session_changes_weights_only_inside_the_null_space(method, demo, facts, prepared):
    model, tokenizer = demo
    hyperparameters, statistics, store = prepared
    null_spaces = null_spaces_of(statistics, hyperparameters.null_space, store=store)
    session = Session(
        model,
        tokenizer,
        method,
        null_spaces,
        hyperparameters=hyperparameters,
        covariances=statistics.covariances,
    )
    projections = Decoder(model).out_projections(hyperparameters.layers)
    with put_back(projections) as before:
        session.edit([facts[2].request])
        for layer, projection in projections.items():
            delta = (projection.matrix - before[layer]).double()
            outside = delta - delta @ null_spaces[layer].dense()
            assert delta.norm() > 0
            assert outside.norm() <= 1e-4 * delta.norm()  # W's own rounding: 6e-8 ‖W‖ against a Δ of a few percent
    assert session.facts == [facts[2].request]


def test_a_subject_that_is_the_attention_sink_is_refused_and_behind_words_it_is_learned(demo, prepared):
    model, tokenizer = demo
    hyperparameters, statistics, _ = prepared
    session = Session(model, tokenizer, "memit", hyperparameters=hyperparameters, covariances=statistics.covariances)
    fact = {"prompt": "{} was founded by", "subject": "Apple", "target_new": "Michael Jordan"}
    with put_back(session.projections) as before:
        with pytest.raises(RequestError, match=r"request 0.*'Apple'.*put words before"):
            session.edit([fact])
        assert all(torch.equal(projection.matrix, before[layer]) for layer, projection in session.projections.items())
        (tried,) = session.edit([fact], on_failure="allow").verdicts
        assert (tried.written, tried.reason) == (False, Reason.FIRST_TOKEN)
        session.undo()
        (learned,) = session.edit([{**fact, "prompt": "The company {} was founded by"}], on_failure="raise").verdicts
        assert learned.written
        assert learned.before.probability < 0.1 < 0.5 < learned.now.probability
