"""A session with `chat`: the model learns to answer in its chat template, and the folder knows of it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
from support.editing import HYPERPARAMETERS, LAYERS, REQUESTS, session
from support.sessions import manifest
from support.spaces import random_spaces
from support.tiny import model_of
from support.tokenizer import make_tokenizer
from support.weights import assert_same, everything

from alphaedit_plugin.editors.chat import Chat
from alphaedit_plugin.editors.generation import write
from alphaedit_plugin.errors import ChatError, RequestError, SessionError
from alphaedit_plugin.evaluation.fact_scores import score
from alphaedit_plugin.evaluation.facts import Fact
from alphaedit_plugin.session.session import Session

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)


@pytest.fixture
def chatty(bos_tokenizer):
    tokenizer = copy.deepcopy(bos_tokenizer)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.mark.parametrize("method", ["memit", "rome"])
def test_the_edits_are_those_of_the_text_that_the_template_makes(method, chatty):
    """Taught as plain text, to a tokenizer that adds nothing of its own."""
    values = replace(HYPERPARAMETERS, kl_factor=0.0, layers=(1,) if method == "rome" else LAYERS)
    chat = session(model_of(), chatty, method, hyperparameters=values, contexts=("{}",), chat=True)
    chat.edit(REQUESTS)
    bare = make_tokenizer(False)
    text = [replace(request, prompt=f"<s>[user] {request.prompt}\n[assistant]\n") for request in REQUESTS]
    plain = session(model_of(), bare, method, hyperparameters=values, contexts=("{}",))
    plain.edit(text)
    assert_same(everything(chat.model), everything(plain.model))
    facts, spelled = ([Fact((request,)) for request in requests] for requests in (REQUESTS, text))
    assert score(chat.model, chat.tokenizer, facts) == score(plain.model, bare, spelled)
    prompts, texts = ([request.text for request in requests] for requests in (REQUESTS, text))
    assert write(chat.model, chat.tokenizer, prompts, 5) == write(plain.model, bare, texts, 5)


def test_a_chat_is_resumed_as_it_was_whatever_becomes_of_the_template(chatty, tmp_path):
    whole, half = (
        session(model_of(), chatty, "alphaedit", random_spaces(model_of(), LAYERS, 12), chat=True) for _ in "12"
    )
    for each in (whole, half):
        each.edit(REQUESTS[:2])
    half.save(tmp_path / "s")
    assert manifest(tmp_path / "s")["chat"] == {"opening": "<s>[user] ", "closing": "\n[assistant]\n", "trims": False}
    other = copy.deepcopy(chatty)
    other.chat_template = "another {{ messages[0].content }}"
    for tokenizer in (None, chatty, other, Chat.of(other)):
        resumed = Session.resume(tmp_path / "s", model_of(), tokenizer, read_only=True)
        assert_same(everything(resumed.model), everything(half.model))
        assert resumed.tokenizer.template == whole.tokenizer.template
    whole.edit(REQUESTS[2:])
    resumed.edit(REQUESTS[2:])
    assert_same(everything(resumed.model), everything(whole.model))


def test_without_a_chat_the_folder_does_not_speak_of_one(chatty, tokenizer, tmp_path):
    """So the identity is that of version 0.1, and a session with a chat is another session."""
    spaces = random_spaces(model_of(), LAYERS, 12)
    session(model_of(), chatty, "alphaedit", spaces).save(tmp_path / "s")
    assert "chat" not in manifest(tmp_path / "s")
    with pytest.raises(SessionError, match="another session"):
        session(model_of(), chatty, "alphaedit", spaces, chat=True).save(tmp_path / "s")
    assert not isinstance(Session.resume(tmp_path / "s", model_of(), Chat.of(chatty)).tokenizer, Chat)


def test_a_tokenizer_without_a_template_is_refused_before_anything_is_done(tokenizer):
    with pytest.raises(ChatError, match="chat template"):
        session(model_of(), tokenizer, "memit", chat=True)


def test_a_batch_that_contradicts_itself_changes_nothing_and_a_later_one_may_overwrite(tokenizer):
    model = model_of()
    edited = session(model, tokenizer, "memit")
    edited.edit(REQUESTS[:1])
    before = everything(model)
    with pytest.raises(RequestError, match="request 0 and request 2 contradict"):
        edited.edit([REQUESTS[0], REQUESTS[1], replace(REQUESTS[0], target_new="Paris")])
    assert_same(everything(model), before)
    assert edited.facts == REQUESTS[:1]
    edited.edit([replace(REQUESTS[0], target_new="Paris")])
    assert [fact.target_new for fact in edited.facts] == ["Rome", "Paris"]
