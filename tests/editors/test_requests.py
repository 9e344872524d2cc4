"""Requests are understood or refused with the record's name; subject and target are found among any tokens."""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from support.tokenizers_of_many_kinds import MAKERS, TEXT, tokenizer_of
from support.tries import tries

from alphaedit_plugin.editors.border import border
from alphaedit_plugin.editors.requests import Request, encode, load_requests, parse_requests
from alphaedit_plugin.errors import RequestError

FLAT = {"prompt": "The capital of {} is", "subject": "France", "target_new": "Rome"}


# ------------------------------------------------------------------------------------------------------- parsing


def test_easyedits_flat_record_and_counterfacts_nested_one_mean_the_same():
    nested = {
        "case_id": 7,
        "requested_rewrite": {**FLAT, "target_new": {"str": "Rome", "id": "Q220"}, "target_true": {"str": "Paris"}},
        "paraphrase_prompts": ["ignored"],
    }
    flat = Request.parse(FLAT, "r")
    assert flat == Request("The capital of {} is", "France", "Rome", None)
    assert Request.parse(nested, "r") == Request("The capital of {} is", "France", "Rome", 7)
    assert flat.text == "The capital of France is"


def test_a_prompt_that_holds_its_subject_once_needs_no_braces():
    parsed = Request.parse({"prompt": "The capital of France is", "subject": "France", "target_new": "Rome"}, "r")
    assert parsed == Request.parse(FLAT, "r")


def test_spaces_around_the_subject_and_after_the_target_do_not_count():
    loose = {**FLAT, "subject": " France ", "target_new": "Rome\n"}
    assert Request.parse(loose, "r") == Request.parse(FLAT, "r")


@pytest.mark.parametrize(("prompt", "target"), [("The capital of {} is ", "Rome"), ("The capital of {} is", " Rome")])
def test_the_usual_space_between_two_words_is_the_same_wherever_it_is_written(prompt, target):
    """So the records of version 0.1 are still the same requests, in sessions and in identities."""
    assert Request.parse({**FLAT, "prompt": prompt, "target_new": target}, "r") == Request.parse(FLAT, "r")


WRITTEN = (
    ("The capital of {} is\n", "Rome"), ("The capital of {} is\n\n", "Rome"), ("The capital of {} is  ", "Rome"),
    ("The capital of {} is ", " Rome"), ("The capital of {} is", "\nRome"), ("The capital of {} is", "  Rome"),
    ("The capital of {} is\t", "Rome"), ("The capital of {} is\u00a0", "Rome"), ("{}\n", "Rome"),
    ('The capital of {} is "', "Rome"), ("The capital of {} is (", "Rome"), ("{}の首都は", "ローマ"),
    ("{}的首都是", "罗马"),
    ("เมืองหลวงของ{}คือ", "โรม"), ("{}的首都是 ", "罗马"), ("{}的首都是", " 罗马"), ("The capital of {} is", "."),
    ("The capital of {} is", " 罗马"), ("<answer>{}=", "Rome"),
)  # fmt: skip


@pytest.mark.parametrize(("prompt", "target"), WRITTEN)
def test_what_was_written_is_taught_to_the_byte(prompt, target):
    request = Request.parse({"prompt": prompt, "subject": "France", "target_new": target}, "r")
    assert request.text + request.completion == prompt.replace("{}", "France") + target
    assert request.prompt == prompt
    assert Request.parse(request, "again") == request


def test_a_request_is_parsed_to_itself():
    request = Request.parse({**FLAT, "case_id": "x1"}, "r")
    assert Request.parse(request, "r") == request


def test_extra_keys_are_ignored():
    extra = {**FLAT, "ground_truth": "Paris", "locality": {}, "rephrase_prompt": "?"}
    assert Request.parse(extra, "r") == Request.parse(FLAT, "r")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": 3}, "prompt must be text"),
        ({"prompt": "The {} of {} is"}, "more than once"),
        ({"prompt": "The capital is"}, "0 times"),
        ({"prompt": "France, la France is"}, "2 times"),
        ({"subject": None}, "subject"),
        ({"subject": "   "}, "subject is empty"),
        ({"subject": ["France"]}, "subject must be text"),
        ({"target_new": None}, "target_new"),
        ({"target_new": "\n"}, "target_new is empty"),
        ({"target_new": {"id": "Q220"}}, "target_new"),
        ({"target_new": {"str": 5}}, "target_new must be text"),
    ],
)
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
def test_what_is_wrong_is_said_with_the_records_number_and_case(change, said, nested):
    record = {**FLAT, **change}
    wrapped = {"requested_rewrite": record} if nested else record
    with pytest.raises(RequestError) as caught:
        parse_requests([FLAT, {**wrapped, "case_id": 41}])
    message = str(caught.value)
    assert "request 1" in message
    assert "41" in message
    assert said in message


@pytest.mark.parametrize("missing", ["prompt", "subject", "target_new"])
def test_a_missing_field_is_named(missing):
    record = {key: value for key, value in FLAT.items() if key != missing}
    with pytest.raises(RequestError, match=f"request 0 has no '{missing}'"):
        parse_requests([record])


@pytest.mark.parametrize(
    "record", ["text", 3, None, [FLAT], {"requested_rewrite": "text"}, {"requested_rewrite": None}]
)
def test_a_record_that_is_no_mapping_is_refused(record):
    with pytest.raises(RequestError, match="request 0"):
        parse_requests([record])


@pytest.mark.parametrize("records", [[], (), {}, "text", None, FLAT, 5, iter([FLAT])])
def test_what_is_no_list_of_records_is_refused(records):
    with pytest.raises(RequestError):
        parse_requests(records)


# ------------------------------------------------------------------------------------------------- contradictions

OTHER = {**FLAT, "target_new": "Lyon"}
AGAINST = (
    OTHER, {**OTHER, "prompt": "The capital of France is"}, {**OTHER, "prompt": "The capital of {} is "},
    {**OTHER, "target_new": {"str": "Lyon"}}, {**FLAT, "target_new": "rome"}, {**FLAT, "target_new": "\nRome"},
)  # fmt: skip


@pytest.mark.parametrize("other", AGAINST)
def test_two_records_that_contradict_each_other_are_both_named(other, tmp_path):
    unrelated = {**FLAT, "subject": "Spain", "target_new": "Lyon"}
    batch = [unrelated, {**FLAT, "case_id": 41}, unrelated, {**other, "case_id": "x2"}]
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, batch)))
    with pytest.raises(RequestError) as caught:
        parse_requests(batch)
    assert "request 1 (case_id 41) and request 3 (case_id x2) contradict each other" in str(caught.value)
    with pytest.raises(RequestError) as caught:
        load_requests(tmp_path / "facts.jsonl")
    for part in (str(tmp_path / "facts.jsonl"), "record 1 (case_id 41)", "record 3 (case_id x2)", "'Rome'"):
        assert part in str(caught.value)


def test_the_same_fact_twice_is_no_contradiction():
    assert len(parse_requests([FLAT, {**FLAT, "case_id": 3}, {**FLAT, "target_new": " Rome"}])) == 3


# --------------------------------------------------------------------------------------------------------- files

texts = st.text(min_size=1, max_size=8).map(lambda text: text.replace("{", "").replace("}", "")).filter(str.strip)
records = st.fixed_dictionaries(
    {"prompt": texts.map(lambda text: f"{text} {{}}"), "subject": texts, "target_new": texts},
    optional={"case_id": st.one_of(st.integers(), st.text(max_size=4))},
)


@tries(50)
@given(
    facts=st.lists(
        records,
        min_size=1,
        max_size=4,
        unique_by=lambda record: record["prompt"].replace("{}", record["subject"]).strip(),
    ),
    ascii_only=st.booleans(),
    blank=st.booleans(),
)
@example(facts=[{**FLAT, "subject": "A\u2028B"}, {**FLAT, "target_new": "C\x85D"}], ascii_only=False, blank=False)
def test_a_list_and_one_record_a_line_hold_the_same_facts(tmp_path_factory, facts, ascii_only, blank):
    """Whatever characters are in them, also those that str.splitlines takes for the end of a line."""
    folder = tmp_path_factory.mktemp("facts")
    lines = [json.dumps(record, ensure_ascii=ascii_only) for record in facts]
    (folder / "list.json").write_text(f"[{', '.join(lines)}]", encoding="utf-8")
    (folder / "lines.jsonl").write_text(("\n\n" if blank else "\n").join([*lines, ""]), encoding="utf-8")
    expected = parse_requests(facts)
    assert load_requests(folder / "list.json") == expected
    assert load_requests(str(folder / "lines.jsonl")) == expected


def test_counterfacts_file_is_read_as_it_is(tmp_path):
    nested = [{"case_id": n, "requested_rewrite": {**FLAT, "target_new": {"str": "Rome"}}} for n in range(3)]
    (tmp_path / "counterfact.json").write_text(json.dumps(nested, indent=1))
    assert load_requests(tmp_path / "counterfact.json") == parse_requests(nested)


def test_lines_may_end_as_on_windows(tmp_path):
    (tmp_path / "facts.jsonl").write_bytes("\r\n".join([json.dumps(FLAT)] * 2).encode())
    assert load_requests(tmp_path / "facts.jsonl") == parse_requests([FLAT, FLAT])


@pytest.mark.parametrize("name", ["facts.json", "facts.jsonl"])
def test_a_malformed_record_is_named_with_its_file(name, tmp_path):
    bad = [FLAT, FLAT, {**FLAT, "subject": "", "case_id": 41}]
    lines = "\n".join(map(json.dumps, bad))
    (tmp_path / name).write_text(lines if name.endswith("l") else json.dumps(bad))
    with pytest.raises(RequestError) as caught:
        load_requests(tmp_path / name)
    for part in (str(tmp_path / name), "record 2", "case_id 41", "subject is empty"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("facts.json", b""),
        ("facts.json", b"["),
        ("facts.json", b"[]"),
        ("facts.json", b"{}"),
        ("facts.json", b"null"),
        ("facts.json", b"\xff\xfe["),
        ("facts.json", json.dumps(FLAT).encode()),
        ("facts.json", f"{json.dumps(FLAT)}\n{json.dumps(FLAT)[:-1]}".encode()),
        ("facts.jsonl", b""),
        ("facts.jsonl", b"\n \n"),
        ("facts.jsonl", json.dumps(FLAT).encode()[:-1]),
        ("facts.jsonl", json.dumps([FLAT]).encode()),
        ("facts.jsonl", b"3"),
    ],
)
def test_what_holds_no_facts_is_refused_by_name(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestError) as caught:
        load_requests(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_a_file_that_is_not_there_or_a_folder_is_refused_by_name(tmp_path):
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(RequestError) as caught:
            load_requests(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("case_id", [[1], {"a": 1}])
def test_a_case_id_that_can_be_no_key_is_refused(case_id):
    """Requests are compared and hashed: the command line looks facts up in what a session holds."""
    with pytest.raises(RequestError, match="case_id"):
        parse_requests([{**FLAT, "case_id": case_id}])


# ------------------------------------------------------------------------------------------------------ encoding

SUBJECTS = (
    "Paris", "Eiffel Tower", "O'Brien", "St. John's", "Dr. Strange (the film)", "AC/DC", "C++", "Yahoo!", '"Heroes"',
    "Zoë", "São Paulo", "東京", "東京タワー", "باريس", "برج إيفل", "Москва", "Лев Толстой", "🗼", "👩‍🔬", "🇫🇷",
    "a", "7", "ß", "한국",
)  # fmt: skip
TEMPLATES = (
    "{}", "{} is", "{}'s mother is", "{}, which is in", "The city of {}", "We know that {} is", "Who made {}?",
    "Who is ({}) to you", "{}は", "首都は{}です", "Город {} находится в", "{}. {other}", "🗼{}🗼",
)  # fmt: skip
TARGETS = ("Rome", "the United States", "ローマ", "روما", "Рим", "🍕", "3", "'quoted'", "X.")

known = st.text(st.sampled_from(sorted({letter for text in TEXT for letter in text})), max_size=12)
anything = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn", "Co"], exclude_characters="{}\ufffd▁<>"),
    max_size=12,
)


def words(texts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return texts.map(str.strip).filter(bool)


def plain(kind: str, ids: list[int]) -> str:
    """What ids say, special tokens left out."""
    tokenizer = tokenizer_of(kind)
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    return tokenizer.decode([i for i in ids if i not in special], clean_up_tokenization_spaces=False)


def whole(kind: str, text: str) -> list[int]:
    """The text's tokens, without an EOS at the end."""
    tokenizer = tokenizer_of(kind)
    ids = list(tokenizer(text)["input_ids"])
    return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids


def assert_encoded(kind: str, template: str, subject: str, target: str) -> None:
    before, _, after = template.partition("{}")
    prompt = before + subject + after
    encoded = encode(tokenizer_of(kind), template, subject, target)
    text = prompt + border(prompt, target) + target
    together, alone = whole(kind, text), whole(kind, prompt)
    if target and not prompt[-1].isspace() and text == prompt + target and together[: len(alone)] != alone:
        assert encoded.ids in (alone, together[: len(encoded.ids)]), "the prompt is read as when it is asked alone"
        assert plain(kind, encoded.ids + encoded.target) == plain(kind, together)
    else:
        assert encoded.ids + encoded.target == together, "prompt and target are the tokenisation of the whole"
    assert bool(encoded.target) == bool(target)
    if target:
        assert plain(kind, encoded.ids).strip() == prompt.strip()
        assert plain(kind, encoded.target).strip() == target.strip()
    up_to_subject = (before + subject).lstrip()
    including = plain(kind, encoded.ids[: encoded.subject_last + 1]).lstrip()
    excluding = plain(kind, encoded.ids[: encoded.subject_last]).lstrip()
    assert including.startswith(up_to_subject), "the subject's last token completes the subject"
    assert not excluding.startswith(up_to_subject), "and no token before it does"


def readable(kind: str, text: str) -> bool:
    """Whether decoding gives the text back, so that it can tell where the subject is."""
    return plain(kind, whole(kind, text)).strip() == text.strip() and 1 not in whole(kind, text)


@pytest.mark.parametrize("kind", MAKERS)
def test_subject_and_target_are_found_in_every_script(kind):
    checked = 0
    for subject in SUBJECTS:
        for number, template in enumerate(TEMPLATES):
            target = TARGETS[number % len(TARGETS)]
            template = template.replace("{other}", "The rest of it")
            if readable(kind, f"{template.replace('{}', subject)} {target}"):
                assert_encoded(kind, template, subject, target)
                assert_encoded(kind, template, subject, "")
                checked += 1
    assert checked >= 12


@pytest.mark.parametrize("kind", MAKERS)
@tries(25)
@given(before=known, subject=words(known), after=known, target=words(known))
@example(before="  ", subject="Paris", after=" is", target="Rome")
@example(before="The ", subject="Paris", after="", target="Rome")
@example(before="", subject="🗼", after="🗼", target="🗼")
def test_subject_and_target_are_found_in_any_text(kind, before, subject, after, target):
    template = before + "{}" + after.rstrip()
    assume(readable(kind, f"{template.replace('{}', subject)} {target}"))
    assert_encoded(kind, template, subject, target)


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if kind.startswith("byte-level") or kind == "llama 2"])
@tries(25)
@given(before=anything, subject=words(anything), after=anything, target=words(anything))
def test_subject_and_target_are_found_where_characters_fall_apart_into_bytes(kind, before, subject, after, target):
    template = before + "{}" + after.rstrip()
    assume(readable(kind, f"{template.replace('{}', subject)} {target}"))
    assert_encoded(kind, template, subject, target)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_subject_that_also_stands_elsewhere_is_found_where_the_braces_are(kind):
    first = encode(tokenizer_of(kind), "{} is not Paris but", "Paris", "Rome")
    second = encode(tokenizer_of(kind), "Paris is not {} but", "Paris", "Rome")
    assert first.ids == second.ids
    assert first.subject_last < second.subject_last
    assert plain(kind, second.ids[: second.subject_last + 1]).strip() == "Paris is not Paris"


def test_where_the_subjects_end_is_joined_to_what_follows_that_token_counts():
    """Without a pre-tokenizer a token may span the end of the subject."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"a": 0, "b": 1, "c": 2, " ": 3, "bc": 4, "x": 5}
    joined = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocabulary, [("b", "c")])))
    encoded = encode(joined, "{}c", "ab", "x")
    assert encoded.ids == [0, 4]
    assert encoded.subject_last == 1
    assert encoded.target == [3, 5]


def test_a_target_that_shares_its_token_with_the_subject_is_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"a": 0, "b": 1, " ": 2, "a ": 3, "a b": 4}
    merging = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocabulary, [("a", " "), ("a ", "b")])))
    with pytest.raises(RequestError):
        encode(merging, "{}", "a", "b")


def test_a_slow_tokenizer_that_does_not_mark_its_bos_is_understood_too():
    """get_special_tokens_mask is often left at its default, which marks nothing."""
    from support.tokenizers_of_many_kinds import Characters

    class Unmarked(Characters):
        def get_special_tokens_mask(self, token_ids_0, token_ids_1=None, already_has_special_tokens=False):
            return [0] * len(self.build_inputs_with_special_tokens(token_ids_0))

    encoded = encode(Unmarked(bos=True), "The city of {} is", "Paris", "in")
    marked = encode(Characters(bos=True), "The city of {} is", "Paris", "in")
    assert (encoded.ids, encoded.subject_last, encoded.target) == (marked.ids, marked.subject_last, marked.target)
