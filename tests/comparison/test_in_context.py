"""Facts that are told instead of taught: what stands before which prompt, and that nothing is written."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace

import pytest
import torch
from support.comparing import HELD_OUT, LONG, facts_of, fresh, statistics_of, timeless

from alphaedit_plugin.comparison.compare import compare
from alphaedit_plugin.comparison.contenders import contender
from alphaedit_plugin.comparison.in_context import given, nearest, told_of
from alphaedit_plugin.comparison.names import check_name
from alphaedit_plugin.comparison.run_folder import read_run
from alphaedit_plugin.editors.chat import Chat, ChatTemplate, plain
from alphaedit_plugin.editors.reminder import Reminder, unreminded
from alphaedit_plugin.editors.requests import Request, encode
from alphaedit_plugin.errors import AlphaEditError, EditError, HyperparameterError
from alphaedit_plugin.evaluation.answers import Answers
from alphaedit_plugin.evaluation.capability import Capability
from alphaedit_plugin.evaluation.datasets import load_facts
from alphaedit_plugin.evaluation.fact_scores import FactScores
from alphaedit_plugin.evaluation.facts import Fact, Probe
from alphaedit_plugin.evaluation.likelihood import score_pairs
from alphaedit_plugin.evaluation.perplexity import Perplexity
from alphaedit_plugin.evaluation.tasks import Example
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.report.columns import columns
from alphaedit_plugin.report.tables import table
from alphaedit_plugin.storage.shipped import shipped

BOTH = ["in-context", "in-context@retrieve=tfidf"]
TOWER = Request("{} is located in the city of", "The Eiffel Tower", "Rome")
TONGUE = Request("The mother tongue of {} is", "Danielle Darrieux", "English, they said.")
TOLD_TOWER = "New Fact: The Eiffel Tower is located in the city of Rome.\nPrompt: "
TOLD_TONGUE = "New Fact: The mother tongue of Danielle Darrieux is English, they said.\nPrompt: "


def compared(tokenizer, methods=BOTH, *, model=None, facts=3, **options):
    options = {"measures": [FactScores(), Answers(limit=1), Perplexity(HELD_OUT, tokenizer)], **options}
    return compare(model or fresh(), tokenizer, facts_of(facts), methods, batch_size=2, **options)


def test_facts_are_told_as_sentences_a_line_each():
    assert told_of([TOWER]) == TOLD_TOWER
    assert told_of([TONGUE]) == TOLD_TONGUE, "a full stop is not doubled"
    assert told_of([TOWER, TONGUE]) == TOLD_TOWER.removesuffix("Prompt: ") + TOLD_TONGUE


def test_before_each_of_its_prompts_a_fact_is_given_and_before_others_nothing():
    fact = Fact(
        (TOWER,),
        "Paris",
        ("Where is the tower?",),
        ("The Louvre is in",),
        {"kind": [Probe("Water is", ("wet",))]},
        {"kind": [Probe("The tower's country is", ("Italy",))]},
        (Probe("Who rules the city of the tower?", ("Nero",)),),
        (Probe("The tower is in", ("Rome",)),),
        ("About the tower:",),
    )
    told = given([fact])
    assert len(fact.prompts) == 8
    assert {told(prompt) for prompt in fact.prompts} == {TOLD_TOWER}
    assert told("Question: Who rules the city of the tower?\nAnswer:") == TOLD_TOWER, "also behind examples"
    assert told("The Seine flows through") == ""


def test_of_a_prompt_of_several_facts_the_one_that_is_taught_with_it_counts_and_of_these_the_last():
    corrected = replace(TOWER, target_new="Oslo")
    asked = Fact((TONGUE,), paraphrases=(TOWER.text, "Both:"))
    facts = [asked, Fact((TOWER,), paraphrases=("Both:",)), Fact((corrected,))]
    assert given(facts)(TOWER.text) == told_of([corrected])
    assert given(facts)("Both:") == TOLD_TONGUE
    assert nearest(facts)(TOWER.text) == told_of([corrected])


def test_a_prompt_that_several_facts_must_leave_alone_is_told_each_of_them():
    louvre = Probe("The Louvre is in", ("Paris",))
    corrected = replace(TOWER, target_new="Oslo")
    tower = Fact((TOWER,), neighbours=("The Louvre is in", "Both:"))
    facts = [tower, Fact((TONGUE,), paraphrases=("Both:",), locality={"kind": [louvre]})]
    assert given(facts)("The Louvre is in") == told_of([TOWER, TONGUE])
    assert given(facts)("Both:") == TOLD_TONGUE, "it is asked for"
    assert given([*facts, replace(tower, requests=(corrected,))])("The Louvre is in") == told_of([corrected, TONGUE])


def test_the_nearest_fact_is_found_by_its_words():
    told = nearest([Fact((TOWER,)), Fact((TONGUE,))])
    assert told("In which city does one see the tower of Eiffel?") == TOLD_TOWER
    assert told("Which language does Danielle speak?") == TOLD_TONGUE
    assert told("Eiffel Tower, Rome?\n\nQuestion: what does Darrieux speak?\nAnswer:") == TOLD_TONGUE, (
        "not the examples"
    )
    assert told("Bananas grow slowly") == "", "no word in common"
    with pytest.raises(EditError, match="no words in the facts"):
        nearest([Fact((Request("{} =", "?", "!"),))])


def test_an_oracle_the_model_is_asked_the_statement_and_then_the_prompt(tokenizer):
    model = fresh()
    fact = Fact((TOWER,), paraphrases=("One sees The Eiffel Tower in",))
    pairs = [(prompt, "Rome") for prompt in fact.prompts]
    found = score_pairs(model, Reminder(tokenizer, given([fact])), pairs)
    for number, (prompt, target) in enumerate(pairs):
        before = tokenizer(TOLD_TOWER + prompt)["input_ids"]
        ids = tokenizer(f"{TOLD_TOWER}{prompt} {target}")["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        each = [logits[place - 1, ids[place]] for place in range(len(before), len(ids))]
        torch.testing.assert_close(found.mean_log_probability[number], torch.stack(each).mean())
        assert found.predicted[number] == [int(logits[place - 1].argmax()) for place in range(len(before), len(ids))]


def test_the_subject_is_found_behind_what_is_told_whatever_braces_that_holds(tokenizer):
    reminder = Reminder(tokenizer, lambda prompt: "In {} sets, The Eiffel Tower is {}. ")
    encoded = encode(reminder, TOWER.prompt, TOWER.subject, TOWER.target_new)
    subject = tokenizer.decode(encoded.ids[encoded.subject_first : encoded.subject_last + 1])
    assert subject.strip() == TOWER.subject
    assert tokenizer.decode(encoded.ids) == f"In {{}} sets, The Eiffel Tower is {{}}. {TOWER.text}"


def test_in_a_chat_it_is_told_in_the_turn_of_the_user(tokenizer):
    chat = Chat(tokenizer, ChatTemplate("user: ", "\nme: ", trims=False))
    reminder = Reminder(chat, given([Fact((TOWER,))]))
    encoded = encode(reminder, TOWER.prompt, TOWER.subject, TOWER.target_new)
    assert tokenizer.decode(encoded.ids) == f"user: {TOLD_TOWER}{TOWER.text}\nme: "
    assert tokenizer.decode(encoded.target) == "Rome"
    assert unreminded(reminder) is chat
    assert plain(reminder) is tokenizer
    assert len(copy.deepcopy(reminder)) == len(tokenizer)


def test_no_weight_is_ever_written_and_text_that_is_read_is_as_before(tokenizer, monkeypatch):
    model = fresh()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    asked = []
    call = FactScores.__call__

    def watched(self, model, *args, **options):
        asked.append(all(torch.equal(weight, before[name]) for name, weight in model.named_parameters()))
        return call(self, model, *args, **options)

    monkeypatch.setattr(FactScores, "__call__", watched)
    found = compared(tokenizer, model=model, every=2)
    assert asked == [True] * 5
    unedited = found.rows[0]
    assert [(row.variant, row.edits) for row in found.rows[1:]] == [(name, edits) for name in BOTH for edits in (2, 3)]
    for row in found.rows[1:]:
        assert (row.drift, row.leakage) == ({}, {})
        assert row.metrics["perplexity"] == unedited.metrics["perplexity"]
        assert row.measured["facts"].records != unedited.measured["facts"].records
    assert "in-context" in repr(table(found))
    assert not {"drift", "leakage"} & {column.name for column in columns(found.rows)}, "there is none to show"


def test_examples_of_tasks_are_about_no_fact_and_are_asked_as_before(tokenizer):
    tasks = Capability({"sst": [Example(0, TOWER.text, ("Rome", "Paris"), 0)]})
    model = fresh()
    reminder = Reminder(tokenizer, given([Fact((TOWER,))]))
    assert tasks(model, reminder).records == tasks(model, tokenizer).records


def test_only_facts_up_to_the_checkpoint_are_told(tokenizer):
    two, three = compared(tokenizer, facts=2), compared(tokenizer, every=2)
    for name in BOTH:
        assert timeless(three.of(name)[0]) == timeless(two.of(name)[0])


def test_beside_methods_that_write_it_needs_no_statistics_and_a_run_goes_on_without_asking_again(
    tokenizer, tmp_path, monkeypatch
):
    model, asked = fresh(), []
    options = {
        "model": model,
        "folder": tmp_path / "run",
        "hyperparameters": {"memit": LONG},
        "statistics": {"memit": statistics_of(model)},
        "measures": [FactScores()],
        "targets_once": True,
    }
    first = compared(tokenizer, ["memit", *BOTH], **options)
    call = FactScores.__call__
    monkeypatch.setattr(FactScores, "__call__", lambda *args, **said: asked.append(0) or call(*args, **said))
    again = compared(tokenizer, [*BOTH, "memit"], **options)
    assert not asked
    assert [again.of(name) for name in ("memit", *BOTH)] == [first.of(name) for name in ("memit", *BOTH)]
    (read,) = read_run(tmp_path)
    assert read.settings["hyperparameters"]["in-context"] == {"retrieve": "given"}
    assert read.settings["statistics"]["model"] == "tiny"


@pytest.mark.parametrize(
    ("given_", "name"),
    [
        ("in-context", "in-context"),
        (" In-Context@retrieve=given", "in-context"),
        ("in-context@retrieve=tfidf", "in-context@retrieve=tfidf"),
    ],
)
def test_its_names(given_, name):
    check_name(given_)
    assert contender(given_).name == name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("in-context+P", r"in-context writes no weight that \+p could change"),
        ("in-context@retrieve=bm25", "one setting, @retrieve=given or @retrieve=tfidf"),
        ("in-context@top=3", "one setting, @retrieve=given or @retrieve=tfidf"),
    ],
)
def test_what_it_cannot_be_is_said_before_anything_is_loaded(name, said):
    for read in (check_name, contender):
        with pytest.raises(HyperparameterError, match=said):
            read(name)


def test_retrieval_without_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(AlphaEditError, match=r"in-context@retrieve=tfidf needs scikit-learn.*\[evaluation\]"):
        contender("in-context@retrieve=tfidf")
    assert contender("in-context").name == "in-context"


def test_the_layers_that_are_watched_are_the_usual_ones(tokenizer):
    from alphaedit_plugin.comparison.contender import Ground

    ground = Ground(fresh(), tokenizer)
    each = contender("in-context")
    needs = each.needs(ground)
    entry = each.enter(ground, needs, statistics_of(ground.model))
    assert (needs.layers, entry.layers, entry.statistics.covariances) == ((), (), {})
    assert set(entry.watched) <= set(range(len(Decoder(ground.model))))


def test_told_the_shipped_facts_a_real_model_says_them(demo):
    model, tokenizer = demo
    facts = load_facts(shipped("examples/facts.json"))[:6]
    found = compare(model, tokenizer, facts, BOTH, measures=[FactScores(), Answers()])
    before, *told = (row.metrics for row in found.rows)
    print("before and told:", before, *told)
    assert before["efficacy"] == before["written_efficacy"] == 0
    assert all(metrics["efficacy"] >= 0.8 and metrics["written_efficacy"] >= 0.8 for metrics in told)
    assert all(metrics["generalization"] > before["generalization"] for metrics in told)
