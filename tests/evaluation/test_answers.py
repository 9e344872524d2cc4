"""Answers without teacher forcing, against transformers' own generation and by counting."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.judging import judging
from support.references import fact
from support.tiny import always, model_of

from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.errors import JudgeError
from alphaedit_plugin.evaluation.answers import TO_SPARE, TOKENS, Answers
from alphaedit_plugin.evaluation.facts import Fact, Probe
from alphaedit_plugin.evaluation.judge import Judge
from alphaedit_plugin.evaluation.likelihood import score_pairs
from alphaedit_plugin.evaluation.metrics import METRICS
from alphaedit_plugin.evaluation.saying import contains, exact, first_clause, normal

END = 2
FACTS = [
    fact("Rome", paraphrases=("France's capital is", "Of France the capital is"), target_true="Paris",
         neighbours=("The capital of Gaul is", "The capital of Spain is", "Madrid")),
    Fact(
        (Request("The capital of {} is", "Spain", "Rome"), Request("{} is in", "Spain", "an ocean")),
        locality={"other": (Probe("Who wrote it?", ("Kafka", "Franz Kafka")),), "more": (Probe("When?", ("1914",)),)},
    ),
    fact("Ghana"),
]  # fmt: skip


def others(model, number=7):
    """The same model, edited: another head."""
    with torch.no_grad():
        model.get_output_embeddings().weight[::number] += 0.5
    return model


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_answer_is_what_transformers_generate_writes_and_every_number_is_counted(name, tokenizer):
    model = model_of(name, torch.float32)
    before = Answers()(model, tokenizer, FACTS, None)
    found = Answers()(others(model), tokenizer, FACTS, before)
    for case, then, record in zip(FACTS, before.records, found.records, strict=True):
        asked = [each for each in record["answers"] if each["kind"] != "locality"]
        assert [(each["kind"], each["prompt"], tuple(each["accepted"])) for each in asked] == [
            *(("efficacy", r.text, (r.target_new,)) for r in case.requests),
            *(("generalization", prompt, (case.request.target_new,)) for prompt in case.paraphrases),
            *(("specificity", prompt, (case.target_true,)) for prompt in case.neighbours),
            *(("specificity", p.prompt, p.answers) for probes in case.locality.values() for p in probes),
        ]
        for each in asked:
            ids = torch.tensor([tokenizer(each["prompt"])["input_ids"]])
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=TOKENS,
                do_sample=False,
                eos_token_id=END,
                pad_token_id=0,
                suppress_tokens=sorted({*tokenizer.all_special_ids, *range(len(tokenizer), 512)} - {END}),
            )
            assert each["prompt"] + each["text"] == tokenizer.decode(out[0], skip_special_tokens=True)
            scored = score_pairs(model, tokenizer, [(each["prompt"], answer) for answer in each["accepted"]])
            assert each["forced"] == scored.accuracy.max()
            assert each["written"] is contains(each["text"], each["accepted"])
            assert each["exact"] is exact(each["text"], each["accepted"])
            assert each["judged"] is None
        kept = [each for each in record["answers"] if each["kind"] == "locality"]
        now = [each for each in asked if each["kind"] == "specificity"]
        earlier = [each for each in then["answers"] if each["kind"] == "specificity"]
        for each, new, old in zip(kept, now, earlier, strict=True):
            assert each["forced"] == np.mean([a == b for a, b in zip(new["tokens"], old["tokens"], strict=True)])
            assert each["written"] is (normal(first_clause(new["text"])) == normal(first_clause(old["text"])))
        for kind in ("efficacy", "generalization", "specificity", "locality"):
            of = [each for each in record["answers"] if each["kind"] == kind]
            for how in ("forced", "written"):
                expected = np.mean([each[how] for each in of]) if of else None
                assert record[f"{how}_{kind}"] == pytest.approx(expected)
            gap = record[f"forced_{kind}"] - record[f"written_{kind}"] if of else None
            assert record[f"gap_{kind}"] == pytest.approx(gap)
        assert record["written"] == asked[0]["text"]
    for metric, estimate in found.estimates.items():
        known = [record[metric] for record in found.records if record[metric] is not None]
        assert estimate.value == pytest.approx(np.mean(known))
    groups = {name for name, of in METRICS.items() if of.group == "answers"}
    assert found.estimates.keys() == {name for name in groups if "judged" not in name}
    assert before.estimates.keys() == {name for name in found.estimates if "locality" not in name}
    assert json.loads(json.dumps(found.records)) == found.records


def test_nothing_is_forgotten_where_nothing_was_edited(tokenizer):
    model = model_of(dtype=torch.float32)
    before = Answers()(model, tokenizer, FACTS, None)
    found = Answers()(model, tokenizer, FACTS, before)
    assert {name: of.value for name, of in found.estimates.items() if "locality" in name} == {
        "forced_locality": 1.0,
        "written_locality": 1.0,
        "gap_locality": 0.0,
    }
    assert [record["written"] for record in found.records] == [record["written"] for record in before.records]


def test_teacher_forcing_counts_what_the_model_does_not_write(tokenizer):
    """After each true token it knows the next, but it never says the first one."""
    first, second = tokenizer(" Paris Rome", add_special_tokens=False)["input_ids"][-2:]
    model = always(model_of(dtype=torch.float32), {second: 1.0})
    found = Answers()(model, tokenizer, [fact("Paris Rome")], None)
    length = len(tokenizer(" Paris Rome", add_special_tokens=False)["input_ids"])
    assert first != second
    assert found.estimates["forced_efficacy"].value == pytest.approx(1 / length)
    assert found.estimates["written_efficacy"].value == 0.0
    assert found.estimates["gap_efficacy"].value == pytest.approx(1 / length)


def test_the_model_goes_on_over_newlines_until_it_ends_the_text_or_has_no_room_left(tokenizer):
    (line,) = tokenizer("\n", add_special_tokens=False)["input_ids"]
    (paris,) = tokenizer(" Paris", add_special_tokens=False)["input_ids"]
    (answered,) = Answers()(always(model_of(dtype=torch.float32), {line: 1.0}), tokenizer, [fact()], None).records
    assert answered["written"] == "\n" * TOKENS
    ends = always(model_of(dtype=torch.float32), {END: 1.0, paris: 0.5})
    (answered,) = Answers()(ends, tokenizer, [fact()], None).records
    assert answered["written"] == ""
    long = " ".join(["Paris"] * (TOKENS + 9))
    model = always(model_of(dtype=torch.float32), {paris: 1.0})
    (answered,) = Answers()(model, tokenizer, [fact(long)], None).records
    assert answered["written"] == f" {long}" + " Paris" * TO_SPARE
    assert answered["written_efficacy"] == 1.0
    assert answered["exact_efficacy"] == 0.0


def test_all_checkpoints_are_asked_about_the_same_first_facts(tokenizer):
    model = model_of(dtype=torch.float32)
    before = Answers(limit=2)(model, tokenizer, FACTS, None)
    assert before == Answers(limit=2)(model, tokenizer, FACTS[:2], None)
    assert len(before.records) == 2
    one = Answers(limit=2)(model, tokenizer, FACTS[:1], before)
    assert one.records == Answers(limit=2)(model, tokenizer, FACTS, before).records[:1]
    whole = Answers(limit=None)(model, tokenizer, FACTS, None)
    assert [record["number"] for record in whole.records] == [0, 1, 2]


def test_a_judge_marks_every_answer_and_its_verdicts_stay_in_the_records(tokenizer, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    model = model_of(dtype=torch.float32)
    alone = Answers()(model, tokenizer, FACTS, None)
    with judging(lambda question: "correct" if "Spain" in question else "incorrect") as judge:
        found = Answers(judge=Judge(judge.address, "mark"))(model, tokenizer, FACTS, alone)
    marked = [each for record in found.records for each in record["answers"] if each["kind"] != "locality"]
    assert [each["judged"] for each in marked] == ["Spain" in each["prompt"] for each in marked]
    assert [record["judged_efficacy"] for record in found.records] == [0.0, 1.0, 0.0]
    assert found.estimates["judged_specificity"].value == pytest.approx(np.mean([1 / 3, 0]))
    for name in alone.estimates:
        assert found.estimates[name] == alone.estimates[name]
    assert len(judge.asked) == len({(e["prompt"], *e["accepted"]) for e in marked})
    for each in marked:
        assert any(each["prompt"] in question and each["text"] in question for question in judge.questions)


def test_one_verdict_that_is_missing_is_an_error_and_no_measurement(tokenizer, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    model = model_of(dtype=torch.float32)
    with (
        judging(lambda question: "who knows" if "ocean" in question else "correct") as judge,
        pytest.raises(JudgeError, match=r"Spain is in.*an ocean"),
    ):
        Answers(judge=Judge(judge.address, "mark"))(model, tokenizer, FACTS, None)


def test_the_identity_is_json_and_tells_settings_apart():
    judge = Judge("http://localhost:1/v1", "mark")
    identities = [Answers().identity(), Answers(limit=3).identity(), Answers(judge=judge).identity()]
    assert all(json.loads(json.dumps(identity)) == identity for identity in identities)
    assert len({json.dumps(identity, sort_keys=True) for identity in identities}) == 3


def test_a_fact_of_nothing_but_a_request_has_nothing_else(tokenizer):
    bare = replace(fact("Rome"), target_true="")
    found = Answers()(model_of(dtype=torch.float32), tokenizer, [bare], None)
    assert found.estimates.keys() == {f"{how}_efficacy" for how in ("forced", "written", "exact", "gap")}
