"""Contenders that are taught, and models that are asked, in a chat template; and runs that are not confused by it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
from support.comparing import compared, facts_of, fresh, statistics_of, timeless
from support.editing import HYPERPARAMETERS

from alphaedit_plugin.comparison.compare import compare
from alphaedit_plugin.comparison.run_folder import read_run
from alphaedit_plugin.errors import ChatError, CompareError, RequestError
from alphaedit_plugin.evaluation.fact_scores import FactScores
from alphaedit_plugin.evaluation.texts import Texts
from alphaedit_plugin.session.session import Session

TEMPLATE = "{{ bos_token }}{% for m in messages %}user: {{ m.content }}\n{% endfor %}me: <s>"


@pytest.fixture
def chatty(bos_tokenizer):
    tokenizer = copy.deepcopy(bos_tokenizer)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_a_chat_is_another_comparison_and_goes_on_where_it_was(chatty, tmp_path, monkeypatch):
    model, edits = fresh(), []
    edit = Session.edit
    monkeypatch.setattr(Session, "edit", lambda self, *args, **options: edits.append(0) or edit(self, *args, **options))
    options = {"folder": tmp_path / "run", "facts": 2, "measures": [FactScores(), Texts(limit=1)]}
    plain = compared(model, chatty, ["memit"], **options)
    chat = compared(model, chatty, ["memit"], chat=True, **options)
    assert len(edits) == 2
    assert [row.metrics for row in chat.rows] != [row.metrics for row in plain.rows]
    again = compared(model, chatty, ["memit"], chat=True, **options)
    assert len(edits) == 2
    assert list(map(timeless, again.rows)) == list(map(timeless, chat.rows))
    (found,) = read_run(tmp_path)
    assert found.settings["chat"] == {"opening": "<s>user: ", "closing": "\nme: <s>", "trims": False}
    assert "chat" not in plain.settings


def test_an_editor_of_the_users_is_given_the_turn_as_text(chatty):
    seen = []

    def editor(model, tokenizer, requests):
        seen.extend((request.text + request.completion, tokenizer(request.text)["input_ids"]) for request in requests)
        next(model.parameters()).data.add_(1e-3)

    options = {"hyperparameters": HYPERPARAMETERS, "measures": [FactScores()]}
    model = fresh()
    compare(model, chatty, facts_of(1), {"mine": editor}, statistics=statistics_of(model), chat=True, **options)
    (text, ids), request = seen[0], facts_of(1)[0].request
    assert text == f"user: {request.text}\nme: <s>{request.target_new}"
    turn = [{"role": "user", "content": request.text}]
    assert ids == list(chatty.apply_chat_template(turn, return_dict=False)), "with one BOS"


def test_easyedits_methods_and_models_without_a_template_are_refused(chatty, tokenizer):
    with pytest.raises(CompareError, match="easyedit:FT cannot take part in a chat"):
        compare_one(chatty, "easyedit:FT")
    with pytest.raises(ChatError, match="no chat template"):
        compare_one(tokenizer, "memit")


def compare_one(tokenizer, name: str) -> None:
    compare(fresh(), tokenizer, facts_of(1), [name], measures=[FactScores()], chat=True)


def test_two_facts_of_one_batch_that_contradict_each_other_are_named_and_of_two_batches_are_not(tokenizer):
    facts = facts_of(2)
    facts.append(replace(facts[0], requests=(replace(facts[0].request, target_new="Oslo", case_id="x"),)))
    with pytest.raises(RequestError, match=r"fact 0 \(case_id 0\) and fact 2 \(case_id x\) contradict"):
        compared(fresh(), tokenizer, ["memit"], facts=facts, batch_size=3)
    assert len(compared(fresh(), tokenizer, ["memit"], facts=facts, batch_size=2).rows) == 2
