"""In a chat every prompt is the turn of a user: the tokens are those of the template, and the answer follows it."""

from __future__ import annotations

import copy

import pytest
from support.tokenizer import make_tokenizer
from support.tokenizers_of_many_kinds import MAKERS

from alphaedit_plugin.editors.chat import Chat, ChatTemplate, plain
from alphaedit_plugin.editors.keys import context_templates, in_context
from alphaedit_plugin.editors.requests import Request, encode
from alphaedit_plugin.errors import ChatError
from alphaedit_plugin.evaluation.likelihood import encode_pair
from alphaedit_plugin.evaluation.perplexity import Perplexity

TEMPLATES = {
    "ChatML": "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}",
    "with BOS and a system turn": "{{ bos_token }}be brief {} I say\n{% for m in messages %}[{{ m.role }}] "
    "{{ m.content | trim }}\n{% endfor %}{% if add_generation_prompt %}[me]{% endif %}",
    "ending in a special token": "{% for m in messages %}{{ m.content }}{% endfor %}<s>",
}
PROMPTS = (("The capital of {} is", "France"), ("{}\n", "Marie Curie"), (" Who wrote {}? ", "The Trial"), ("{}", "a"))
every_template = pytest.mark.parametrize("template", TEMPLATES)


def chat_of(template: str, bos: bool = True) -> Chat:
    tokenizer = make_tokenizer(bos)
    tokenizer.bos_token = "<s>"
    tokenizer.chat_template = TEMPLATES[template]
    return Chat.of(tokenizer)


def turn(tokenizer, prompt: str) -> list[int]:
    """transformers' own tokens of a user's turn, up to where the answer begins."""
    messages = [{"role": "user", "content": prompt}]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


@every_template
@pytest.mark.parametrize("bos", [True, False], ids=["adds a BOS", "adds none"])
@pytest.mark.parametrize(("prompt", "subject"), PROMPTS)
@pytest.mark.parametrize("target", ["Lyon", " Lyon", "\nLyon", ", he said", "罗马"])
def test_what_is_taught_is_the_users_turn_and_then_the_target(template, bos, prompt, subject, target):
    chat = chat_of(template, bos)
    encoded = encode(chat, prompt, subject, target)
    assert encoded.ids == turn(chat.tokenizer, prompt.replace("{}", subject))
    assert encoded.target == chat.tokenizer(target, add_special_tokens=False)["input_ids"]
    read = chat.tokenizer.decode(encoded.ids[: encoded.subject_last + 1])
    assert read.endswith(subject)
    assert not chat.tokenizer.decode(encoded.ids[: encoded.subject_last]).endswith(subject)


@every_template
def test_what_is_asked_is_what_was_taught(template):
    chat = chat_of(template)
    request = Request.parse({"prompt": "The capital of {} is", "subject": "France", "target_new": "Lyon"}, "r")
    taught = encode(chat, request.prompt, request.subject, request.target_new)
    assert encode_pair(chat, request.text, request.target_new) == (taught.ids, taught.target)
    assert encode(chat, "{}", request.text).ids == taught.ids


@every_template
def test_an_opening_goes_before_the_users_words_inside_the_turn(template):
    chat = chat_of(template)
    request = Request.parse({"prompt": "The capital of {} is", "subject": "France", "target_new": "Lyon"}, "r")
    encoded = encode(chat, in_context("The river flows. {}", request), request.subject, request.target_new)
    assert encoded.ids == turn(chat.tokenizer, "The river flows. The capital of France is")


def test_text_that_is_only_read_stays_as_it_is(tokenizer):
    from support.tiny import model_of

    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = TEMPLATES["ending in a special token"]
    chat, model = Chat.of(tokenizer), model_of()
    assert Perplexity("The river flows to the sea.", chat).identity() == (
        Perplexity("The river flows to the sea.", tokenizer).identity()
    )
    assert context_templates(model, chat) == context_templates(model, tokenizer)


def test_a_chat_of_a_chat_is_the_same_and_can_be_copied():
    chat = chat_of("ChatML")
    assert Chat.of(chat) is chat
    assert plain(chat) is chat.tokenizer is plain(plain(chat))
    twin = copy.deepcopy(chat)
    assert encode(twin, "{} is", "Rome", "old") == encode(chat, "{} is", "Rome", "old")
    assert len(twin) == len(chat.tokenizer)


@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_of_tokenizer_can_chat(kind):
    tokenizer = MAKERS[kind]()
    tokenizer.chat_template = "<s>Marie was {% for m in messages %}{{ m.content }}{% endfor %} the city. "
    chat = Chat.of(tokenizer)
    encoded = encode(chat, "The city of {} is", "Paris", "Warsaw")
    assert encoded.ids.count(tokenizer.bos_token_id) == 1, "the template's BOS, and no second one"
    said = tokenizer.decode(encoded.ids + encoded.target, skip_special_tokens=True)
    assert said.split() == ["Marie", "was", "The", "city", "of", "Paris", "is", "the", "city.", "Warsaw"]
    assert tokenizer.decode(encoded.target, skip_special_tokens=True).strip() == "Warsaw"
    assert tokenizer.decode(encoded.ids[: encoded.subject_last + 1], skip_special_tokens=True).endswith("Paris")


def test_a_tokenizer_without_a_chat_template_is_refused(tokenizer):
    with pytest.raises(ChatError, match="has no chat template: leave out chat"):
        Chat.of(tokenizer)


@pytest.mark.parametrize(
    "template",
    ["no words at all", "{{ messages[0].content | upper }}", "{{ raise_exception('system first') }}", "{{ 1/0 }}"],
)
def test_a_template_that_cannot_hold_a_prompt_is_refused(template):
    tokenizer = make_tokenizer(False)
    tokenizer.chat_template = template
    with pytest.raises(ChatError, match="the chat template"):
        Chat.of(tokenizer)


def test_a_template_that_tells_the_time_tells_all_facts_the_same():
    template = ChatTemplate("It is noon. ", " Answer:", trims=True)
    chat = Chat(make_tokenizer(False), template)
    assert chat.tokenizer.decode(encode(chat, "Who is {}? ", "Leo", "He").ids) == "It is noon. Who is Leo? Answer:"
    assert template.around("\n Who?") == ("It is noon. Who? Answer:", 10)
