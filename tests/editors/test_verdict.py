"""What a model answers to a fact's prompt, against one token at a time."""

from __future__ import annotations

import logging

import pytest
import torch
from support.editing import REQUESTS
from support.tiny import always, model_of
from support.weights import assert_same, everything

from alphaedit_plugin.editors.requests import Request, encode
from alphaedit_plugin.editors.verdict import Answer, Reason, Verdict, Verdicts, answers, unusual


@torch.no_grad()
def one_by_one(model, tokenizer, request: Request) -> tuple[float, list[int]]:
    """(probability of the object, as many tokens as it has as the model writes them), from whole texts."""
    encoded = encode(tokenizer, request.prompt, request.subject, request.target_new)
    probability, ids, written = 1.0, list(encoded.ids), []
    for token in encoded.target:
        probability *= float(model(torch.tensor([ids])).logits[0, -1].double().softmax(-1)[token])
        ids.append(token)
    ids = list(encoded.ids)
    for _ in encoded.target:
        written.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        ids.append(written[-1])
    return probability, written


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom", "gemma2"])
def test_answers_are_what_the_model_says_one_token_at_a_time(name, tokenizer):
    model = model_of(name)
    weights, drawn = everything(model), torch.random.get_rng_state()
    for request, answer in zip(REQUESTS, answers(model, tokenizer, REQUESTS), strict=True):
        probability, written = one_by_one(model, tokenizer, request)
        assert answer.probability == pytest.approx(probability, rel=1e-9)
        assert answer.words == tokenizer.decode(written, skip_special_tokens=True).strip()
        assert not answer.agrees
    assert_same(everything(model), weights)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert answers(model, tokenizer, []) == []


def test_a_model_that_says_the_whole_object_agrees(tokenizer):
    (paris,) = tokenizer(" Paris")["input_ids"]
    model = always(model_of(), {paris: 100.0})
    requests = [Request("They went to {}, and", "the sea", target) for target in ("Paris", "Paris Paris", "Paris was")]
    once, twice, other = answers(model, tokenizer, requests)
    assert once == Answer(pytest.approx(1.0), "Paris", True)
    assert twice == Answer(pytest.approx(1.0), "Paris Paris", True)
    assert other == Answer(pytest.approx(0.0), "Paris Paris", False)


def test_the_log_names_what_failed_and_is_quiet_where_nothing_did(caplog):
    request = REQUESTS[0]
    right = Verdict.of(request, None, Answer(0.9, request.target_new, True))
    wrong = Verdict.of(request, Answer(0.01, "Paris", False), Answer(0.02, "Lyon", False))
    assert (right.reason, wrong.reason) == (None, Reason.NOT_REACHED)
    log = logging.getLogger("alphaedit_plugin.test")
    with caplog.at_level(logging.WARNING, logger="alphaedit_plugin.test"):
        Verdicts([request], [right]).log(log, "memit")
        assert caplog.text == ""
        Verdicts([request, request], [right, wrong]).log(log, "memit")
    assert "memit: 1 of 2 facts written" in caplog.text
    assert f"{request.text!r}: 'Lyon' instead of {request.target_new!r} (0.01 → 0.02): not reached" in caplog.text


def test_what_is_usual_is_no_warning_and_what_is_not_finite_is_one():
    assert unusual({3: 0.5, 4: 0.1}, [0.5, 0.0]) == ()
    (drift,) = unusual({3: 0.51, 4: 0.1, 5: float("nan")}, [])
    assert "0.51 on layer 3" in drift
    assert "layer 5" in drift
    assert "layer 4" not in drift
    (missed,) = unusual({}, [0.2, 0.75])
    assert "1 of 2" in missed
    assert "75%" in missed


def test_verdicts_show_every_fact_or_of_many_only_those_that_failed():
    requests = [Request("of {}", f"subject{number}", "Rome") for number in range(51)]
    said, unsaid = Answer(0.9, "Rome", True), Answer(0.1, "Paris", False)
    judged = [Verdict.of(request, None, unsaid if number == 7 else said) for number, request in enumerate(requests)]
    few, many = (repr(Verdicts(requests[:count], judged[:count])) for count in (50, 51))
    assert few.count("subject") == 50
    assert many.count("subject") == 1
    for shown in (few, many):
        assert "subject7" in shown
        assert "not reached" in shown
    assert "50 of 51 facts written" in many
    assert "not asked" in repr(Verdicts(requests))
    assert Verdicts(requests, judged) == requests, "they are still a list"
