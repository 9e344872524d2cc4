"""Answers and their judge in a run: kept edits suffice, nothing is asked twice, a judge that fails costs no row."""

from __future__ import annotations

import copy

import pytest
import torch
from support.comparing import compared, facts_of, fresh, statistics_of
from support.editing import HYPERPARAMETERS
from support.judging import judging

from alphaedit_plugin.comparison.compare import compare
from alphaedit_plugin.comparison.results import Comparison
from alphaedit_plugin.editors.chat import Chat
from alphaedit_plugin.errors import JudgeError
from alphaedit_plugin.evaluation.answers import TOKENS, Answers
from alphaedit_plugin.evaluation.fact_scores import FactScores
from alphaedit_plugin.evaluation.judge import KEY, Judge
from alphaedit_plugin.session.session import Session


@pytest.fixture
def judge(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv(KEY, "sk-hidden")
    with judging() as running:
        yield running


def test_on_kept_edits_nothing_is_edited_and_no_verdict_is_asked_for_twice(tokenizer, tmp_path, judge, monkeypatch):
    methods, options = ["memit", "alphaedit"], {"folder": tmp_path / "run", "keep_sessions": True}
    compared(fresh(), tokenizer, methods, measures=[FactScores()], **options)
    monkeypatch.setattr(Session, "edit", lambda *_, **__: pytest.fail("edited again"))
    measures = [FactScores(), Answers(judge=Judge(judge.address, "mark"))]
    found = compared(fresh(), tokenizer, methods, measures=measures, **options)
    assert [row.metrics["judged_efficacy"] for row in found.rows] == [1.0] * 3
    assert "gap_generalization" in found.rows[1].metrics
    asked = len(judge.asked)
    assert asked > 0
    again = compared(fresh(), tokenizer, methods, measures=measures, **options)
    assert len(judge.asked) == asked
    assert [row.measured for row in again.rows] == [row.measured for row in found.rows]
    assert set(judge.keys) == {"Bearer sk-hidden"}
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"sk-hidden" in path.read_bytes()]


def elsewhere(model, tokenizer, requests):
    """An editor that leaves the model alone and edits one of its own."""
    edited = copy.deepcopy(model)
    next(edited.parameters()).data.add_(1e-2)
    return edited


def test_a_judge_that_fails_ends_the_run_and_the_next_one_goes_on_without_a_lost_row(tokenizer, tmp_path, judge):
    def run() -> Comparison:
        model, measures = fresh(), [FactScores(), Answers(judge=Judge(judge.address, "mark"))]
        options = {"measures": measures, "statistics": statistics_of(model), "hyperparameters": HYPERPARAMETERS}
        options["folder"] = tmp_path / "run"
        return compare(model, tokenizer, facts_of(2), {"elsewhere": elsewhere}, **options)

    judge.says = lambda question: "correct" if len(judge.asked) <= 3 else "no idea"
    with pytest.raises(JudgeError, match="no idea"):
        run()
    assert not list(tmp_path.rglob("answers.json*"))
    unedited = len({each["prompt"] for record in alone(tokenizer) for each in record["answers"]})
    judge.asked.clear()
    judge.says = lambda question: "correct" if len(judge.asked) <= unedited else "no idea"
    with pytest.raises(JudgeError, match="no idea"):
        run()
    assert {path.parent.parent.name for path in tmp_path.rglob("answers.json")} == {"before"}
    judge.says = lambda question: "correct"
    found = run()
    assert found.failed == {}
    assert found.rows[-1].metrics["judged_efficacy"] == 1.0


def alone(tokenizer):
    return Answers()(fresh(), tokenizer, facts_of(2), None).records


def test_in_a_chat_the_prompt_is_the_turn_of_a_user(bos_tokenizer):
    chatty = copy.deepcopy(bos_tokenizer)
    chatty.chat_template = "{{ bos_token }}{% for m in messages %}user: {{ m.content }}\n{% endfor %}me:"
    model, (fact,) = fresh(), facts_of(1)
    (record,) = Answers()(model, Chat.of(chatty), [fact], None).records
    turn = [{"role": "user", "content": fact.request.text}]
    ids = torch.tensor([list(chatty.apply_chat_template(turn, add_generation_prompt=True, return_dict=False))])
    banned = sorted({*chatty.all_special_ids, *range(len(chatty), model.config.vocab_size)} - {chatty.eos_token_id})
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=TOKENS,
        do_sample=False,
        eos_token_id=chatty.eos_token_id,
        pad_token_id=0,
        suppress_tokens=banned,
    )
    prompt, whole = (chatty.decode(of, skip_special_tokens=True) for of in (ids[0], out[0]))
    assert prompt + record["written"] == whole
