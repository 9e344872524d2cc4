"""The judge, against one that runs on this machine."""

from __future__ import annotations

import json
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.judging import judging

from alphaedit_plugin.errors import JudgeError
from alphaedit_plugin.evaluation.judge import INSTRUCTION, KEY, Judge, Question

RIGHT = Question("The capital of France is", ("Rome",), " Rome, in Italy.")
WRONG = Question("The capital of France is", ("Rome", "Roma"), " Paris.")


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def by_text(question: str) -> str:
    return "Correct." if question.endswith("Rome, in Italy.") else " **incorrect**\n"


def test_each_question_is_asked_once_and_the_verdicts_come_in_order():
    with judging(by_text) as judge:
        found = Judge(f"{judge.address}/", "mark")([RIGHT, WRONG, RIGHT, RIGHT, WRONG])
    assert found == [True, False, True, True, False]
    assert len(judge.asked) == 2
    for body in judge.asked:
        assert body["model"] == "mark"
        assert body["temperature"] == 0
        assert [turn["role"] for turn in body["messages"]] == ["system", "user"]
        assert body["messages"][0]["content"] == INSTRUCTION
    (wrong,) = (each for each in judge.questions if "Roma" in each)
    assert all(part in wrong for part in (WRONG.prompt, *WRONG.answers, WRONG.written))


def test_the_key_comes_from_the_environment_alone_and_stays_out_of_identity_and_errors(monkeypatch):
    monkeypatch.setenv(KEY, "sk-hidden")
    with judging() as judge:
        asked = Judge(judge.address, "mark")
        assert asked([RIGHT]) == [True]
        assert judge.keys == ["Bearer sk-hidden"]
        assert "hidden" not in json.dumps(asked.identity())
        judge.status, judge.body = 401, b'{"error": "wrong key: sk-hidden"}'
        with pytest.raises(JudgeError, match=f"401.*wrong key.*{KEY}") as failure:
            asked([RIGHT])
        assert "hidden" not in str(failure.value)
        monkeypatch.delenv(KEY)
        judge.status, judge.body = 200, None
        asked([RIGHT])
        assert judge.keys[-1] is None


def test_a_key_is_not_carried_to_another_address(monkeypatch):
    monkeypatch.setenv(KEY, "sk-hidden")
    with judging() as other, judging() as judge:
        judge.status, judge.location = 302, f"{other.address}/chat/completions"
        with pytest.raises(JudgeError, match="302"):
            Judge(judge.address, "mark")([RIGHT])
        assert other.asked == []


@pytest.mark.parametrize("said", ["", "yes", "correct or incorrect", "It is correct", "B"])
def test_what_is_no_verdict_is_an_error_that_names_fact_and_remedy(said):
    with (
        judging(lambda question: said) as judge,
        pytest.raises(JudgeError, match=r"mark says .* about 'The capital of France is' → 'Rome'.*name a model"),
    ):
        Judge(judge.address, "mark")([RIGHT])


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": null}}]}', b"\xff"],
)
def test_a_reply_that_is_no_completion_is_an_error_that_names_the_fact(body):
    with judging() as judge:
        judge.body = body
        with pytest.raises(JudgeError, match=r"The capital of France is.*its reply is no completion"):
            Judge(judge.address, "mark")([RIGHT])


def test_a_server_that_refuses_or_fails_or_is_not_there_is_an_error():
    with judging() as judge:
        for status, words in ((404, "404.*no such model"), (500, "500")):
            judge.status, judge.body = status, b'{"error": "no such model"}'
            with pytest.raises(JudgeError, match=words):
                Judge(judge.address, "mark")([RIGHT])
        address = judge.address
    with pytest.raises(JudgeError, match=f"mark at {address} did not answer about .*refused.*See that it runs"):
        Judge(address, "mark")([RIGHT])


def test_a_judge_that_takes_too_long_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(JudgeError, match="timed out"):
        Judge(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", "mark", seconds=0.2)([RIGHT])


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:8000/v1", "is no address"),
        ("file:///etc/passwd", "is no address"),
        ("", "is no address"),
        ("http://", "is no address"),
        ("http://[::1/v1", "is no address"),
        ("http://judge.example:abc/v1", "is no address"),
        ("ftp://me:secret@judge.example/v1?key=secret", "judge.example/v1' is no address"),
        ("https://me:secret@judge.example/v1", f"judge.example.*{KEY}"),
        ("https://judge.example/v1?key=secret", f"judge.example.*{KEY}"),
    ],
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused(address, words):
    with pytest.raises(JudgeError, match=words) as failure:
        Judge(address, "mark")
    assert "secret" not in str(failure.value)


@pytest.mark.parametrize("name", ["", " "])
def test_a_judge_without_a_name_is_refused(name):
    with pytest.raises(JudgeError, match="has no name"):
        Judge("http://127.0.0.1:8000/v1", name)


NAMES = st.text().filter(str.strip)


@given(NAMES, NAMES)
def test_judges_of_other_names_are_others_wherever_they_are(one, other):
    def at(name: str, port: int) -> object:
        return Judge(f"http://localhost:{port}/v1", name).identity()

    assert (at(one, 1) == at(other, 1)) == (one == other)
    assert at(one, 1) == at(one, 2)
    assert json.loads(json.dumps(at(one, 1))) == at(one, 1)
