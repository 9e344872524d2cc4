"""Questions over several facts, against asking them one at a time."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
import torch
from support.paths import SHARED
from support.tiny import always, model_of

from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.evaluation import multihop
from alphaedit_plugin.evaluation.datasets import load_facts
from alphaedit_plugin.evaluation.facts import Fact, Probe
from alphaedit_plugin.evaluation.multihop import ANSWER_TOKENS, EXAMPLES, THOUGHT_TOKENS, MultiHop
from alphaedit_plugin.evaluation.saying import says

MQUAKE = SHARED / "mquake" / "MQuAKE-hard.json"
REQUEST = Request("The capital of {} is", "France", "Rome")
CASE = Fact(
    (REQUEST, Request("{} is a citizen of", "Curie", "France")),
    questions=tuple(
        Probe(question, ("Rome", "Roma"))
        for question in ("What is the capital of Curie's country?", "Which city rules where Curie lives?")
    ),
    hops=(Probe("Curie is a citizen of", ("France",)), Probe("What is the capital of France?", ("Rome",))),
)


def with_room(name: str = "llama"):
    """For prompts as long as the examples make them."""
    return model_of(name, torch.float32, **{"n_positions" if name == "gpt2" else "max_position_embeddings": 1024})


@torch.no_grad()
def slow_text(model, tokenizer, prompt: str, tokens: int, stop: str) -> str:
    """One token at a time, cut where the stop begins."""
    ids = tokenizer(prompt)["input_ids"]
    for _ in range(tokens):
        logits = model(torch.tensor([ids])).logits[0, -1]
        logits[[token for token in tokenizer.all_special_ids if token != tokenizer.eos_token_id]] = -torch.inf
        token = int(logits.argmax())
        if token == tokenizer.eos_token_id:
            break
        ids.append(token)
    return tokenizer.decode(ids, skip_special_tokens=True)[len(prompt) :].split(stop)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "bloom", "opt"])
def test_each_question_is_asked_after_the_examples_with_and_without_thoughts(name, tokenizer, monkeypatch):
    monkeypatch.setattr(multihop, "THOUGHT_TOKENS", 5)
    monkeypatch.setattr(multihop, "ANSWER_TOKENS", 4)
    model = with_room(name)
    (record,) = MultiHop()(model, tokenizer, [CASE], None).records
    plain = "".join(f"Question: {q}\nAnswer: {a}\n\n" for q, _, a in EXAMPLES)
    thoughtful = "".join(f"Question: {q}\nThoughts: {t}\nAnswer: {a}\n\n" for q, t, a in EXAMPLES)
    for asked, question in zip(record["questions"], CASE.questions, strict=True):
        prompt = f"Question: {question.prompt}\n"
        assert asked["question"] == question.prompt
        assert asked["written"] == slow_text(model, tokenizer, f"{plain}{prompt}Answer:", 4, "\n")
        assert asked["thoughts"] == slow_text(model, tokenizer, f"{thoughtful}{prompt}Thoughts:", 5, "\n\n")
    statement, question = record["single_hops"]
    assert statement["written"] == slow_text(model, tokenizer, "Curie is a citizen of", 4, "\n")
    asked = f"{plain}Question: What is the capital of France?\nAnswer:"
    assert question["written"] == slow_text(model, tokenizer, asked, 4, "\n")


def answering(monkeypatch, answers: dict[str, str]):
    """Instead of a model: what it would write, by the last line of the prompt that is not about what to write."""

    def write(model, tokenizer, prompts, tokens, *, stop, progress):
        assert (tokens, stop) in ((ANSWER_TOKENS, "\n"), (THOUGHT_TOKENS, "\n\n"))
        return [
            next(text for end, text in answers.items() if prompt.endswith(end)).partition(stop)[0] for prompt in prompts
        ]

    monkeypatch.setattr(multihop, "write", write)


@pytest.mark.parametrize("seed", range(20))
def test_a_case_counts_when_any_of_its_questions_is_answered_right(monkeypatch, seed):
    """Definitions of the paper, §2.3 and §4.1, over invented answers."""
    chooser = random.Random(seed)
    cases, answers, any_plain, any_cot, hops = [], {}, [], [], []
    for case in range(6):
        right = [chooser.random() < 0.3 for _ in range(3)]
        right_cot = [chooser.random() < 0.3 for _ in range(3)]
        known = [chooser.random() < 0.5 for _ in range(chooser.randint(1, 4))]
        for i in range(3):
            answers[f"Question: q{case}.{i}?\nAnswer:"] = f" Roma, of course{case}" if right[i] else " Paris or Rome"
            said = "Rome" if right_cot[i] else chooser.choice(["Romeo", "Paris", ""])
            answers[f"Question: q{case}.{i}?\nThoughts:"] = chooser.choice(
                [f" Rome is old.\nAnswer: {said}\nRome"] if said else [" Rome, Rome.", " Rome\n\nAnswer: Rome"]
            )
        for i, knows in enumerate(known):
            answers[f"h{case}.{i} is in"] = " the Rome of old" if knows else " Verona"
        cases.append(
            Fact(
                (REQUEST,),
                questions=tuple(Probe(f"q{case}.{i}?", ("Rome", "Roma")) for i in range(3)),
                hops=tuple(Probe(f"h{case}.{i} is in", ("Rome",)) for i in range(len(known))),
            )
        )
        any_plain.append(any(right))
        any_cot.append(any(right_cot))
        hops.append(known)
    answering(monkeypatch, answers)
    found = MultiHop()(None, None, cases, None)
    assert [record["multihop"] for record in found.records] == any_plain
    assert [record["multihop_cot"] for record in found.records] == any_cot
    assert [record["hops"] for record in found.records] == pytest.approx([sum(known) / len(known) for known in hops])
    assert [record["all_hops"] for record in found.records] == [all(known) for known in hops]
    assert found.estimates["multihop"].value == pytest.approx(sum(any_plain) / 6)
    assert found.estimates["multihop_cot"].value == pytest.approx(sum(any_cot) / 6)
    assert found.estimates["hops"].value == pytest.approx(sum(sum(known) / len(known) for known in hops) / 6)
    assert json.loads(json.dumps(found.records)) == found.records


def test_facts_without_questions_are_left_out_and_so_are_estimates_of_nothing(tokenizer):
    model = with_room()
    plain = Fact((REQUEST,))
    nothing = MultiHop()(model, tokenizer, [plain], None)
    assert (nothing.estimates, nothing.records) == ({}, [])
    only_hops = Fact((REQUEST,), hops=(Probe("Curie is a citizen of", ("France",)),))
    found = MultiHop()(model, tokenizer, [plain, only_hops, plain], None)
    assert found.estimates.keys() == {"hops"}
    assert len(found.records) == 1


def test_a_limit_counts_cases_with_questions(monkeypatch):
    answering(monkeypatch, {"": " Rome"})
    cases = [Fact((Request("The capital of {} is", name, "Rome"),), hops=(Probe("x", ("Rome",)),)) for name in "abc"]
    facts = [Fact((REQUEST,)), *cases]
    found = [MultiHop(limit=limit)(None, None, facts, None).records for limit in (2, None)]
    assert [[record["subject"] for record in records] for records in found] == [["a", "b"], ["a", "b", "c"]]


def test_a_model_that_always_says_the_answer_is_right_without_thoughts_and_comes_to_no_conclusion(tokenizer):
    (paris,) = tokenizer(" Paris", add_special_tokens=False)["input_ids"]
    case = Fact(
        (REQUEST,),
        questions=(Probe("Where to?", ("Rome", "Paris")), Probe("Whence?", ("Rome",))),
        hops=(Probe("Off to", ("Paris",)), Probe("Back to", ("Rome",))),
    )
    found = MultiHop()(always(with_room(), {paris: 9.0}), tokenizer, [case], None)
    values = {metric: estimate.value for metric, estimate in found.estimates.items()}
    assert values == {"multihop": 1.0, "multihop_cot": 0.0, "hops": 0.5}


@pytest.mark.slow
def test_model_and_random_states_are_left_alone(tokenizer):
    model = with_room("gpt2").train()
    case = replace(CASE, questions=CASE.questions[:1])
    states = random.getstate(), torch.get_rng_state()
    first, second = (MultiHop()(model, tokenizer, [case], None) for _ in range(2))
    assert first == second
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert all(module.training for module in model.modules())


def test_the_examples_reason_their_way_to_their_answers():
    for question, thoughts, answer in EXAMPLES:
        assert question.endswith("?")
        assert thoughts.endswith(f"{answer}.") or f" {answer}." in thoughts
        assert says(answer, [answer])


def test_the_identity_is_json_and_holds_the_prompts():
    identity = MultiHop().identity()
    assert json.loads(json.dumps(identity)) == json.loads(json.dumps(MultiHop(limit=50).identity()))
    assert identity != MultiHop(limit=None).identity()
    assert EXAMPLES[0][0] in json.dumps(identity)


@pytest.mark.skipif(not MQUAKE.exists(), reason="the steering repository's data are not beside the checkout")
def test_mquakes_cases_are_asked_all_their_questions_and_hops(monkeypatch):
    for fact in load_facts(MQUAKE)[:40]:
        ends = {hop.prompt: f" {hop.answers[-1]}." for hop in fact.hops}
        for question in fact.questions:
            ends[f"{question.prompt}\nAnswer:"] = f" {question.answers[0]}\n"
            ends[f"{question.prompt}\nThoughts:"] = f" Well.\nAnswer: {question.answers[-1]}\n\nQuestion"
        answering(monkeypatch, ends)
        (record,) = MultiHop()(None, None, [fact], None).records
        assert (len(record["questions"]), len(record["single_hops"])) == (3, 4)
        assert all(record[metric] == 1.0 for metric in ("multihop", "multihop_cot", "hops", "all_hops"))
