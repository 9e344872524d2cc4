"""What a session says without its edits and with them: against two models, one of which was never edited."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import taught
from support.sessions import assert_state, edited, model_of_kind, raised, reference, session_of, state, write
from support.tries import tries
from support.weights import assert_same, everything

from alphaedit_plugin.editors.generation import write as written_by
from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.editors.verdict import answers
from alphaedit_plugin.errors import ChatError, RequestError
from alphaedit_plugin.session import asking
from alphaedit_plugin.session.asking import about

TEMPLATE = "[{{ messages[0].role }}] {{ messages[0].content }} [assistant]"
PROMPTS = ["They spoke of Marie Curie", "The river flows", "Today Michael Jordan is in", "They spoke of the old town"]


def test_a_reply_is_what_an_unedited_model_says_and_what_the_edited_one_says(tokenizer):
    session, unedited = taught.twice(tokenizer), model_of_kind(taught.KIND)
    replies = session.ask(PROMPTS, tokens=7)
    assert [reply.prompt for reply in replies] == PROMPTS
    assert [reply.before for reply in replies] == written_by(unedited, tokenizer, PROMPTS, 7)
    assert [reply.after for reply in replies] == written_by(session.model, tokenizer, PROMPTS, 7)
    assert replies[0].before != replies[0].after
    assert replies[0].after.split()[0] == taught.OBJECTS[2]


def test_chances_are_those_of_both_models_for_the_facts_in_force(tokenizer):
    session, unedited = taught.twice(tokenizer), model_of_kind(taught.KIND)
    replies = session.ask(PROMPTS)
    facts = {0: session.facts[2], 2: session.facts[1]}
    for place, reply in enumerate(replies):
        assert [chance.new for chance in reply.chances] == ([False, True] if place in facts else [])
        if place in facts:
            (said,) = answers(unedited, tokenizer, [facts[place]])
            assert [chance.object for chance in reply.chances] == [said.words, facts[place].target_new]
        for chance in reply.chances:
            question = [Request("{}", reply.prompt, chance.object)]
            (before,), (after,) = (answers(model, tokenizer, question) for model in (unedited, session.model))
            assert chance.before == pytest.approx(before.probability, rel=1e-4)
            assert chance.after == pytest.approx(after.probability, rel=1e-4)
    old, new = replies[0].chances
    assert new.before < 0.5 < new.after
    assert old.before > old.after


@pytest.mark.parametrize("method", ["memit", "prune+P", "alphaedit", "rome", "memit-seq+rect+aligned+P"])
def test_asking_leaves_the_session_as_it_was_and_it_goes_on_bit_for_bit(method, tokenizer):
    session, drawn = edited("llama", tokenizer, method, 0, 1), torch.random.get_rng_state()
    session.finish()
    before = state(session)
    session.ask(["The river flows", session.facts[0].text], tokens=3)
    assert_state(session, before)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    write(session, 2)
    assert_same(everything(session.model), everything(reference("llama", tokenizer, method, 0, 1, 2).model))


@pytest.mark.parametrize("at", range(4))
def test_an_interrupt_while_it_is_asked_leaves_the_session_as_it_was(at, tokenizer, monkeypatch):
    """At each of the times that a model is asked: the unedited one thrice, then the edited one."""
    session = taught.twice(tokenizer)
    before, calls = state(session), []

    def breaking(real):
        def call(*arguments, **options):
            calls.append(real)
            if len(calls) > at:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        return call

    for name in ("write", "answers"):
        monkeypatch.setattr(asking, name, breaking(getattr(asking, name)))
    assert isinstance(raised(lambda: session.ask(PROMPTS)), KeyboardInterrupt)
    assert_state(session, before)


def test_a_chat_is_asked_in_its_template_and_any_other_session_on_demand(tokenizer):
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = TEMPLATE
    plain, chat = (session_of(model_of_kind(), chatty, "memit", chat=chat) for chat in (False, True))
    spelled = plain.ask([f"[user] {prompt} [assistant]" for prompt in PROMPTS])
    texts = [(reply.before, reply.after) for reply in spelled]
    for found in (plain.ask(PROMPTS, chat=True), chat.ask(PROMPTS), chat.ask(PROMPTS, chat=True)):
        assert [(reply.before, reply.after) for reply in found] == texts
    assert [(reply.before, reply.after) for reply in plain.ask(PROMPTS)] != texts
    with pytest.raises(ChatError, match="chat template"):
        session_of(model_of_kind(), tokenizer, "memit").ask("The river", chat=True)


@pytest.mark.parametrize(
    ("prompts", "options", "said"),
    [
        (["The river", ""], {}, "prompt 1"),
        ([" \n"], {}, "prompt 0"),
        ([None], {}, "prompt 0"),
        (["The river " * 200], {}, "positions"),
        (["The river"], {"tokens": 0}, "tokens"),
        (["The river"], {"tokens": True}, "tokens"),
    ],
)
def test_what_cannot_be_asked_is_refused_and_nothing_is_changed(prompts, options, said, tokenizer):
    session = taught.twice(tokenizer)
    before = state(session)
    with pytest.raises(RequestError, match=said):
        session.ask(prompts, **options)
    assert_state(session, before)


def test_a_session_without_edits_says_the_same_twice(tokenizer):
    (reply,) = taught.session(tokenizer).ask("The river flows")
    assert (reply.before, reply.chances) == (reply.after, ())


FACT = Request("The capital of {} is", "France", "Lyon")


@pytest.mark.parametrize(
    ("prompt", "subject", "found"),
    [
        ("The capital of France is", "France", True),
        ("I heard that the capital of France is", "France", True),
        ("In France, people", "France", True),
        ("France", "France", True),
        ("The Frances of this world", "France", False),
        ("Also sprach", "Al", False),
        ("法国首都巴黎是", "巴黎", True),
        ("C++ is", "C++", True),
        ("What is C++?", "C++", True),
        ("(France) is", "France", True),
        ("france is", "France", False),
    ],
)
def test_a_prompt_is_about_a_fact_if_it_holds_its_text_or_its_subject_as_a_word(prompt, subject, found):
    fact = replace(FACT, subject=subject)
    assert about(prompt, [fact]) == ([fact] if found else [])


@given(st.text(max_size=5), st.text(max_size=5), st.text(min_size=1, max_size=4).filter(str.strip))
@tries(50)
def test_a_prompt_that_asks_for_a_fact_word_by_word_is_about_no_other_fact_of_its_subject(before, after, subject):
    fact, other = replace(FACT, subject=subject.strip()), Request("{} is spoken in", subject.strip(), "Nice")
    assert fact in about(f"{before}{fact.text}{after}", [fact, other])
    assert about(fact.text, [fact, other]) == [fact]
    assert about(other.text, [fact, other]) == [other]


def test_replies_are_shown_side_by_side(tokenizer):
    replies = taught.twice(tokenizer).ask(PROMPTS[:2], tokens=3)
    said = repr(replies)
    assert repr(replies[0]).splitlines()[0] == said.splitlines()[0]
    for word in ("They spoke of", "new object: they", "before the edits", "after the edits"):
        assert word in said
    assert said.count("new object") == 1


def test_near_the_last_position_an_object_without_room_has_no_chance(tokenizer):
    """Up to the longest prompt that can be asked at all."""
    session = session_of(model_of_kind("gpt2"), tokenizer, "memit", "gpt2")
    session.edit([{"prompt": "{} is in", "subject": "Rome", "target_new": "the old town of the river"}])
    room, counts = session.model.config.max_position_embeddings, set()
    for words in range(room // 2, room):
        try:
            (reply,) = session.ask(["Rome" + " old" * words], tokens=1)
        except RequestError:
            break
        counts.add(len(reply.chances))
    assert len(counts) > 1
    assert words > room // 2


def test_half_a_character_cannot_be_asked(tokenizer):
    with pytest.raises(RequestError, match="half a character"):
        edited("llama", tokenizer, "memit", 0).ask(["\ud800"])
