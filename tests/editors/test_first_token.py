"""Subjects that have the attention sink's key: found by measuring, refused before anything is written."""

from __future__ import annotations

import pytest
import torch
from support.sessions import assert_state, model_of_kind, session_of, state
from support.tiny import NAMES, model_of

from alphaedit_plugin.editors.first_token import first_tokens
from alphaedit_plugin.editors.requests import encode, parse_requests
from alphaedit_plugin.editors.verdict import Reason
from alphaedit_plugin.errors import RequestError
from alphaedit_plugin.model.decoder import Decoder

FIRST = {"prompt": "{} was founded by", "subject": "Michael", "target_new": "French", "case_id": 7}
LATER = {"prompt": "The {} was founded by", "subject": "Paris", "target_new": "French"}
TWO = {"prompt": "{} was founded by", "subject": "the Paris", "target_new": "French"}


@torch.no_grad()
def with_sink(kind: str = "gpt2"):
    """Its first position adds so much to whatever token stands there that all keys there are alike."""
    model = model_of_kind(kind)
    model.transformer.wpe.weight[0] *= 100
    return model


def found(model, tokenizer, *records) -> tuple[int, ...]:
    return first_tokens(model, tokenizer, parse_requests(records), Decoder(model).out_projection(1))


def test_only_a_subject_that_is_the_sink_is_found(tokenizer, bos_tokenizer):
    assert encode(tokenizer, FIRST["prompt"], FIRST["subject"]).subject_last == 0
    assert found(with_sink(), tokenizer, LATER, FIRST, TWO, {**FIRST, "subject": "Mic"}) == (1, 3)
    assert found(with_sink(), bos_tokenizer, FIRST) == ()
    assert found(model_of_kind("gpt2"), tokenizer, FIRST) == ()


@pytest.mark.parametrize("name", NAMES)
def test_a_model_without_a_sink_is_edited_as_before(name, tokenizer):
    assert found(model_of(name), tokenizer, FIRST, LATER) == ()


def test_nothing_is_run_unless_a_subject_comes_first(tokenizer):
    model = with_sink()
    model.forward = None
    assert found(model, tokenizer, LATER, TWO) == ()


@pytest.mark.parametrize("on_failure", ["report", "raise"])
def test_it_is_refused_before_anything_is_written(on_failure, tokenizer):
    session = session_of(with_sink(), tokenizer, "memit", "gpt2")
    session.edit([LATER], on_failure="allow")
    before = state(session)
    with pytest.raises(RequestError, match=r"request 1 \(case_id 7\).*'Michael'.*words before.*BOS.*--allow-failures"):
        session.edit([LATER, FIRST], on_failure=on_failure)
    with pytest.raises(RequestError, match="request 0"):
        session.check([FIRST])
    assert session.check([LATER]) == parse_requests([LATER])
    assert_state(session, before)


def test_whoever_allows_it_is_told_why_it_failed(tokenizer):
    session = session_of(with_sink(), tokenizer, "memit", "gpt2")
    (verdict,) = session.edit([FIRST], on_failure="allow").failed
    assert verdict.reason is Reason.FIRST_TOKEN
    assert session.edit([FIRST], on_failure="ignore") == parse_requests([FIRST])
