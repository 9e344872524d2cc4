"""Readers of the field's data sets: schemas as they are published, and what is wrong with a record."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from support.data_files import write_records
from support.newer_records import NEWER, OTHERWISE
from support.paths import SHARED
from support.tries import tries

from alphaedit_plugin.editors.border import border
from alphaedit_plugin.editors.requests import Request, encode
from alphaedit_plugin.errors import RequestError
from alphaedit_plugin.evaluation.datasets import load_dataset, load_facts
from alphaedit_plugin.evaluation.fact_scores import _Plan
from alphaedit_plugin.evaluation.facts import Probe
from alphaedit_plugin.evaluation.formats import FORMATS

COUNTERFACT = {
    "case_id": 5,
    "requested_rewrite": {
        "prompt": "The capital of {} is",
        "relation_id": "P36",
        "subject": "France",
        "target_new": {"str": "Rome", "id": "Q220"},
        "target_true": {"str": "Paris", "id": "Q90"},
    },
    "paraphrase_prompts": ["France has the capital "],
    "neighborhood_prompts": ["The Louvre is in", "The Seine flows through"],
    "generation_prompts": ["France is governed from"],
}
ZSRE = {
    "subject": "UniFirst",
    "src": "What is the product made by UniFirst?",
    "pred": "uniform",
    "rephrase": "What will be the product of UniFirst?",
    "alt": "unmanned aircraft",
    "answers": ["uniform", "uniforms"],
    "loc": "nq question: who sang the song",
    "loc_ans": "Madonna",
    "cond": "…",
}
PORTED = {**ZSRE, "portability": {"Recalled Relation": "…", "New Question": "Who wears it?", "New Answer": "Staff"}}
KNOWEDIT = {
    "subject": "Lac Otelnuk",
    "prompt": "The name of the country which Lac Otelnuk is associated with is",
    "target_new": "Canada",
    "portability": {
        "Reasoning": [
            {"prompt": "Its capital is", "ground_truth": [["Ottawa", "Bytown"]]},
            {"prompt": "", "ground_truth": [["nothing"]]},
            {"prompt": "It has no answer", "ground_truth": [[""], []]},
        ],
        "Logical_Generalization": [],
    },
    "locality": {"Relation_Specificity": [{"prompt": "Its area is", "ground_truth": ["large", ["big", "large"]]}]},
}
WIKI_COUNTERFACT = {
    "subject": "Lac Otelnuk",
    "prompt": "The name of the country which Lac Otelnuk is associated with is",
    "target_new": "Peru",
    "ground_truth": "Canada",
    "portability": {
        "Subject_Aliasing": [{"prompt": "Otelnuk Lake is in", "ground_truth": "Peru"}],
        "Reasoning": [{"prompt": "Its capital is", "ground_truth": "Lima"}],
    },
    "locality": {
        "Relation_Specificity": [{"prompt": "Its area is", "ground_truth": "large"}],
        "Forgetfulness": [{"prompt": "The country of it, which is not Peru, is", "ground_truth": "Canada"}],
    },
}
KNOWEDIT_ZSRE = {
    "subject": "Otelnuk",
    "target_new": "Peru",
    "prompt": "Which country is Otelnuk in?",
    "ground_truth": ["Canada", "CA"],
    "rephrase_prompt": "Where does Otelnuk lie?",
    "cond": "Chile >> Peru || Which country is Otelnuk in?",
    "locality": {"Relation_Specificity": [{"prompt": "Otelnuk is a", "ground_truth": ["lake"]}]},
    "portability": {"Logical_Generalization": [{"prompt": "Which lake is in Peru?", "ground_truth": "Otelnuk"}]},
}
WIKIBIO = {
    "text": "This is a passage about john russell. Sir John was born; john russell wrote.",
    "labels": "He studied.",
    "concept": "john russell",
    "locality": {"Relation_Specificity": [{"prompt": "The field of work of john russell is", "ground_truth": ["art"]}]},
}
EASYEDIT = {
    "case_id": 7,
    "prompt": "The capital of France is",
    "subject": "France",
    "target_new": "Rome",
    "ground_truth": "Paris",
    "rephrase_prompt": "France has the capital",
    "locality_prompt": "The Louvre is in",
    "locality_ground_truth": "Paris",
}
MQUAKE = {
    "case_id": 3,
    "requested_rewrite": [
        {
            "prompt": "{} was performed by",
            "relation_id": "P175",
            "subject": "Hey Jude",
            "target_new": {"str": "Madonna", "id": "Q1744"},
            "target_true": {"str": "The Beatles", "id": "Q1299"},
            "question": "Who performed Hey Jude?",
        },
        {"prompt": "The director of {} is", "subject": "Madonna", "target_new": {"str": "Modi"}},
    ],
    "questions": ["Who directs the performer of Hey Jude?", "Who is the director?"],
    "answer": "Epstein",
    "answer_alias": [],
    "new_answer": "Modi",
    "new_answer_alias": ["Narendra Modi"],
    "single_hops": [
        {"question": "Who performed Hey Jude?", "cloze": "", "answer": "The Beatles", "answer_alias": ["Fab Four"]},
        {"question": "Who directs The Beatles?", "cloze": "", "answer": "Epstein", "answer_alias": []},
    ],
    "orig": {"triples": [["Q1", "P175", "Q1299"]], "new_triples": [], "edit_triples": [["Q1", "P175", "Q1744"]]},
    "new_single_hops": [
        {
            "question": "Who performed Hey Jude?",
            "cloze": "Hey Jude was performed by",
            "answer": "Madonna",
            "answer_alias": [],
        },
        {"question": "Who directs Madonna?", "cloze": "", "answer": "Modi", "answer_alias": ["NaMo"]},
    ],
}
COUPLED = {
    "coupled_prompts_and_properties": {
        "subject_entity": {
            "entity": "France",
            "entity_id": "Q142",
            "coupled_prompt": "Tell of France and of:\n- currency",
            "properties": ["currency"],
            "ground_truth": {"currency": ["euro"]},
        },
        "coupled_entities": [
            {
                "entity": "Louvre",
                "entity_id": "Q19675",
                "coupled_prompt": "Tell of the Louvre and of:\n- country",
                "overlapping_ground_truth": {"country": ["France"]},
                "mutual_properties": [],
            },
            {"entity": "Seine", "coupled_prompt": "Tell of the Seine and of:\n- mouth"},
        ],
        "coupled_properties_count": 2,
    }
}
LEME = {**COUNTERFACT, "id": "…", **COUPLED}
RECORDS = {
    "CounterFact": COUNTERFACT, "ZsRE": ZSRE, "KnowEdit": KNOWEDIT, "WikiBio": WIKIBIO, "EasyEdit": EASYEDIT,
    "MQuAKE": MQUAKE, "LEME": LEME, **NEWER,
}  # fmt: skip
VARIANTS = [
    *RECORDS.values(),
    PORTED,
    {**COUNTERFACT, "portability": PORTED["portability"]},
    WIKI_COUNTERFACT,
    KNOWEDIT_ZSRE,
    {**ZSRE, **COUPLED},
    *OTHERWISE,
]


def written(tmp_path: Path, *records: object, name: str = "facts.json") -> Path:
    return write_records(tmp_path / name, records)


def read(tmp_path, record):
    (fact,) = load_facts(written(tmp_path, record))
    return fact


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("name", RECORDS)
def test_every_format_is_recognised_from_what_a_record_holds(name, suffix, tmp_path):
    found = load_dataset(written(tmp_path, RECORDS[name], RECORDS[name], name=f"anything.{suffix}"))
    assert (found.format, len(found.facts), found.bad) == (name, 2, [])


def test_there_is_a_test_for_every_format():
    assert {format_.name for format_ in FORMATS} == set(RECORDS)


def test_counterfact(tmp_path):
    fact = read(tmp_path, COUNTERFACT)
    assert fact.requests == (Request("The capital of {} is", "France", "Rome", 5),)
    assert (fact.target_true, fact.relation) == ("Paris", "P36")
    assert fact.paraphrases == ("France has the capital",)
    assert fact.neighbours == ("The Louvre is in", "The Seine flows through")
    assert fact.generation == ("France is governed from",)


def test_zsre_writes_the_true_answer_as_the_papers_do(tmp_path):
    fact = read(tmp_path, ZSRE)
    assert fact.request == Request("What is the product made by {}?", "UniFirst", "uniform")
    assert fact.paraphrases == ("What will be the product of UniFirst?",)
    assert fact.locality == {"NaturalQuestions": [Probe("who sang the song?", ("Madonna",))]}
    assert fact.portability == {}


@pytest.mark.parametrize("record", [ZSRE, COUNTERFACT], ids=["ZsRE", "CounterFact"])
def test_easyedits_one_hop_questions(record, tmp_path):
    fact = read(tmp_path, {**record, "portability": PORTED["portability"]})
    assert fact.portability == {"One_hop": [Probe("Who wears it?", ("Staff",))]}


def test_knowedit_keeps_every_alias_and_drops_probes_without_prompt_or_answer(tmp_path):
    fact = read(tmp_path, KNOWEDIT)
    assert fact.request.prompt == "The name of the country which {} is associated with is"
    assert fact.portability == {"Reasoning": [Probe("Its capital is", ("Ottawa", "Bytown"))]}
    assert fact.locality == {"Relation_Specificity": [Probe("Its area is", ("large", "big"))]}


def test_knowedits_counterfact_has_the_old_object_and_probes_with_one_answer(tmp_path):
    fact = read(tmp_path, WIKI_COUNTERFACT)
    assert (fact.request.target_new, fact.target_true) == ("Peru", "Canada")
    assert fact.portability == {
        "Subject_Aliasing": [Probe("Otelnuk Lake is in", ("Peru",))],
        "Reasoning": [Probe("Its capital is", ("Lima",))],
    }
    assert fact.locality == {
        "Relation_Specificity": [Probe("Its area is", ("large",))],
        "Forgetfulness": [Probe("The country of it, which is not Peru, is", ("Canada",))],
    }


def test_knowedits_zsre_has_a_rephrased_question(tmp_path):
    fact = read(tmp_path, KNOWEDIT_ZSRE)
    assert fact.request == Request("Which country is {} in?", "Otelnuk", "Peru")
    assert (fact.target_true, fact.paraphrases) == ("Canada", ("Where does Otelnuk lie?",))
    assert list(fact.portability) == ["Logical_Generalization"]
    assert fact.locality == {"Relation_Specificity": [Probe("Otelnuk is a", ("lake",))]}


@pytest.mark.parametrize(
    "probes",
    [
        {"prompt": ["It is", "", "They are"], "ground_truth": [["a"], ["b"], ["c"]]},
        [{"prompt": "It is", "ground_truth": "a"}, {"prompt": "They are", "ground_truth": [["c"]]}],
    ],
    ids=["a mapping of lists", "a list of mappings"],
)
def test_probes_as_knowedit_and_as_datasets_keeps_them(probes, tmp_path):
    locality = {"Forgetfulness": probes, "Relation_Specificity": None, "Other": {"prompt": "One", "ground_truth": "d"}}
    assert read(tmp_path, {**KNOWEDIT, "locality": locality}).locality == {
        "Forgetfulness": [Probe("It is", ("a",)), Probe("They are", ("c",))],
        "Other": [Probe("One", ("d",))],
    }


@pytest.mark.parametrize("base", [COUNTERFACT, ZSRE], ids=["CounterFact", "ZsRE"])
def test_leme_adds_two_texts_to_write(base, tmp_path):
    plain, fact = read(tmp_path, base), read(tmp_path, {**base, **COUPLED})
    subject = plain.request.subject
    assert fact.generation == (
        f"Tell of France and of:\n- currency\n-relationship to Louvre\n\n{subject}",
        f"Tell of the Louvre and of:\n- country\n-relationship to {subject}\n\nLouvre",
    )
    for name in ("requests", "target_true", "paraphrases", "neighbours", "locality", "relation"):
        assert getattr(fact, name) == getattr(plain, name)


def test_wikibio_goes_on_with_what_is_true(tmp_path):
    fact = read(tmp_path, WIKIBIO)
    assert fact.request.prompt == "This is a passage about {}. Sir John was born; john russell wrote."
    assert fact.request.text == WIKIBIO["text"]
    assert fact.request.target_new == "He studied."
    assert list(fact.locality) == ["Relation_Specificity"]


def test_easyedits_flat_records(tmp_path):
    fact = read(tmp_path, EASYEDIT)
    assert fact.request == Request("The capital of {} is", "France", "Rome", 7)
    assert fact.target_true == "Paris"
    assert fact.paraphrases == ("France has the capital",)
    assert fact.locality == {"Neighborhood": [Probe("The Louvre is in", ("Paris",))]}


def test_mquake_writes_several_facts_for_its_questions(tmp_path):
    fact = read(tmp_path, MQUAKE)
    assert [request.subject for request in fact.requests] == ["Hey Jude", "Madonna"]
    assert fact.request is fact.requests[0]
    assert fact.relation == "P175"
    assert fact.questions[1] == Probe("Who is the director?", ("Modi", "Narendra Modi"))
    assert fact.hops == (
        Probe("Hey Jude was performed by", ("Madonna",)),
        Probe("Who directs Madonna?", ("Modi", "NaMo")),
    )


@pytest.mark.parametrize(
    ("record", "field", "value"),
    [
        (ZSRE, "src", "What is the product made by another?"),
        (ZSRE, "subject", ""),
        (WIKIBIO, "text", "This is about another."),
        (ZSRE, "answers", []),
        (ZSRE, "answers", 3),
        (ZSRE, "rephrase", None),
        (ZSRE, "loc", " "),
        (ZSRE, "loc_ans", None),
        (KNOWEDIT, "target_new", ["Canada"]),
        (KNOWEDIT, "portability", ["Reasoning"]),
        (KNOWEDIT, "locality", {"Forgetfulness": "none"}),
        (KNOWEDIT, "locality", {"Forgetfulness": [{"prompt": 3, "ground_truth": ["x"]}]}),
        (KNOWEDIT, "locality", {"Forgetfulness": [{"prompt": "It is", "ground_truth": [4]}]}),
        (WIKIBIO, "labels", ""),
        (EASYEDIT, "locality_ground_truth", None),
        (MQUAKE, "requested_rewrite", []),
        (MQUAKE, "questions", []),
        (MQUAKE, "new_answer", ""),
        (COUNTERFACT, "generation_prompts", "one"),
        (COUNTERFACT, "portability", []),
        (KNOWEDIT, "locality", {"Forgetfulness": {"prompt": ["It is"], "ground_truth": []}}),
        (KNOWEDIT, "ground_truth", [3]),
        (EASYEDIT, "rephrase_prompt", 3),
        (MQUAKE, "new_answer_alias", 3),
        (MQUAKE, "new_single_hops", [None]),
        (LEME, "coupled_prompts_and_properties", []),
        (LEME, "coupled_prompts_and_properties", {**COUPLED["coupled_prompts_and_properties"], "coupled_entities": []}),
        (LEME, "coupled_prompts_and_properties", {"coupled_entities": [{"entity": "Louvre"}]}),
    ],
)
def test_what_is_wrong_is_named_by_file_record_and_field(record, field, value, tmp_path):
    path = written(tmp_path, record, {**record, field: value})
    with pytest.raises(RequestError) as caught:
        load_facts(path)
    for part in (str(path), "record 1", field):
        assert part in str(caught.value)
    found = load_dataset(path, skip_bad=True)
    assert len(found.facts) == 1
    assert found.bad == [str(caught.value)]


JUNK = (None, 3, "", [], {}, [None])


def _places(value: Any) -> Iterator[tuple[Any, ...]]:
    """The way to every field and list item of a record."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in items:
        yield (key,)
        yield from ((key, *rest) for rest in _places(inside))


PLACES = [(record, place) for record in VARIANTS for place in _places(record)]


@tries(400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PLACES), st.one_of(st.sampled_from(JUNK), st.sampled_from([3.5, True, "{}", "[", '{"a": 1}'])))
def test_junk_in_any_field_is_read_or_named_and_nothing_else(tmp_path, place, junk):
    record, path = place
    broken = copy.deepcopy(record)
    inside = broken
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = junk
    file = written(tmp_path, record, broken)
    found = load_dataset(file, skip_bad=True)
    assert len(found.facts) + len(found.bad) == 2
    for message in found.bad:
        assert message.startswith(f"{file}, record 1")
        with pytest.raises(RequestError) as caught:
            load_facts(file)
        assert str(caught.value) == message
    for fact in found.facts:
        assert all(isinstance(text, str) for text in (fact.relation, fact.target_true, *fact.generation))
        assert fact.request.subject in fact.request.text


@tries(100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(VARIANTS), st.data())
def test_a_record_without_one_of_its_fields_is_read_or_named(tmp_path, record, data):
    absent = data.draw(st.sampled_from(sorted(record)))
    file = written(tmp_path, record, {key: value for key, value in record.items() if key != absent})
    found = load_dataset(file, skip_bad=True)
    assert len(found.facts) + len(found.bad) == 2
    assert all(f"{file}, record 1" in message for message in found.bad)


@pytest.mark.parametrize("record", VARIANTS)
def test_nested_fields_may_be_json_text(record, tmp_path):
    as_text = {key: json.dumps(value) if isinstance(value, list | dict) else value for key, value in record.items()}
    assert read(tmp_path, as_text) == read(tmp_path, record)


def test_brackets_in_a_text_are_a_text(tmp_path):
    fact = read(tmp_path, {**EASYEDIT, "target_new": "[1, 2]", "ground_truth": "[sic] Paris"})
    assert (fact.request.target_new, fact.target_true) == ("[1, 2]", "[sic] Paris")


def test_a_line_that_is_not_json_is_a_malformed_record_whatever_the_files_name(tmp_path):
    lines = [json.dumps(ZSRE), '{"subject": ', json.dumps(ZSRE)]
    for name in ("facts.jsonl", "facts.json"):
        path = tmp_path / name
        path.write_text("\n".join(lines), encoding="utf-8")
        with pytest.raises(RequestError, match="record 1 is not JSON"):
            load_facts(path)
        found = load_dataset(path, skip_bad=True)
        assert (len(found.facts), len(found.bad)) == (2, 1)


@pytest.mark.parametrize("first", [None, {}, {"note": "a header"}])
def test_a_bad_first_record_does_not_hide_the_format(first, tmp_path):
    path = written(tmp_path, first, ZSRE)
    with pytest.raises(RequestError, match="record 0"):
        load_facts(path)
    found = load_dataset(path, skip_bad=True)
    assert (found.format, len(found.facts), len(found.bad)) == ("ZsRE", 1, 1)


def test_braces_before_the_subject_are_refused(tmp_path):
    with pytest.raises(RequestError, match=r"before the subject 'France'"):
        read(tmp_path, {**EASYEDIT, "prompt": "{} and {}: the capital of France is"})


def test_a_file_of_bad_records_only_is_an_error_also_when_these_may_be_skipped(tmp_path):
    with pytest.raises(RequestError, match="holds no record that can be read"):
        load_dataset(written(tmp_path, {**ZSRE, "answers": []}), skip_bad=True)


@pytest.mark.parametrize("record", [{"prompt": "The capital"}, {}, 3, None, ["prompt"]])
def test_a_file_of_no_known_format_is_told_which_are_known(record, tmp_path):
    with pytest.raises(RequestError, match=r"of no known format.*MQuAKE.*CounterFact.*ZsRE"):
        load_facts(written(tmp_path, record))


def test_a_name_on_the_hub_is_read_through_datasets(monkeypatch):
    asked = []

    def load(name, data_files=None):
        asked.append((name, data_files))
        if name == "org/absent":
            raise FileNotFoundError("404")
        return {"train": [] if name == "org/empty" else [COUNTERFACT], "test": []}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    assert load_dataset("org/counterfact").format == "CounterFact"
    assert load_dataset("org/several:folder/one.json").format == "CounterFact"
    assert asked == [("org/counterfact", None), ("org/several", "folder/one.json")]
    with pytest.raises(RequestError, match="org/empty is empty"):
        load_dataset("org/empty")
    with pytest.raises(RequestError, match=r"no file org/absent.*404"):
        load_dataset("org/absent")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RequestError, match=r"install alphaedit-plugin\[evaluation\]"):
        load_dataset("org/counterfact")


def _asked(facts):
    return sum(
        len(probes) for fact in facts for kinds in (fact.locality, fact.portability) for probes in kinds.values()
    )


def _answerable(records):
    """Probes with a prompt and an answer, counted in the raw records: KnowEdit's, and ZsRE's one of each record."""
    answered = 0
    for record in records:
        for kind in [*(record.get("locality") or {}).values(), *(record.get("portability") or {}).values()]:
            answered += sum(bool(p["prompt"]) and bool(json.dumps(p["ground_truth"]).strip('[]", ')) for p in kind)
        answered += "loc" in record
    return answered


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real data sets are not there: {SHARED}")
@pytest.mark.parametrize(
    ("file", "format_", "count"),
    [
        ("counterfact/counterfact_500.json", "CounterFact", 500),
        ("zsre/zsre_mend_train-1k.json", "ZsRE", 1000),
        ("knowedit/wiki_recent.json", "KnowEdit", 570),
        ("knowedit/wikibio.json", "WikiBio", 306),
        ("mquake/MQuAKE-hard.json", "MQuAKE", 429),
    ],
)
def test_the_real_files_are_read_whole(file, format_, count):
    found = load_dataset(SHARED / file)
    assert (found.format, len(found.facts)) == (format_, count)
    assert all(bool(fact.relation) == (format_ in ("CounterFact", "MQuAKE")) for fact in found.facts)
    assert _asked(found.facts) == _answerable(json.loads((SHARED / file).read_text(encoding="utf-8")))
    for fact in found.facts:
        assert all(request.subject in request.text for request in fact.requests)
        shown = [fact.paraphrases, fact.neighbours, fact.questions, *fact.locality.values(), *fact.portability.values()]
        assert any(shown) or format_ == "KnowEdit"


# What is asked about a data set, in 0.1's words: "prompt target", with no other space at either's ends.


def _old_encoding(tokenizer: Any, prompt: str, target: str) -> tuple[list[int], list[int]]:
    encoding = tokenizer(f"{prompt} {target}", return_offsets_mapping=True)
    first = next(i for i, (_, end) in enumerate(encoding["offset_mapping"]) if end > len(prompt))
    return encoding["input_ids"][:first], encoding["input_ids"][first:]


def _old_requests(record: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(prompt, subject, target) of a raw record."""

    def of(prompt: str, subject: str, target: Any) -> tuple[str, str, str]:
        subject, target = subject.strip(), target["str"] if isinstance(target, dict) else target
        before, found, after = prompt.strip().partition("{}" if "{}" in prompt else subject)
        return (f"{before}{{}}{after}".rstrip() if found else prompt, subject, target.strip())

    if "requested_rewrite" in record:
        rewrites = record["requested_rewrite"]
        rewrites = rewrites if isinstance(rewrites, list) else [rewrites]
        return [of(rewrite["prompt"], rewrite["subject"], rewrite["target_new"]) for rewrite in rewrites]
    if "src" in record:
        return [of(record["src"], record["subject"], record["answers"][0])]
    if "concept" in record:
        return [of(record["text"], record["concept"], record["labels"])]
    return [of(record["prompt"], record["subject"], record["target_new"])]


UNSPACED = {"knowedit/wiki_recent.json": 9, "knowedit/wikibio.json": 2}
"""Pairs asked otherwise than in 0.1: answers in Chinese or Japanese, and two that begin with a closing quote."""


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real data sets are not there: {SHARED}")
@pytest.mark.parametrize(
    "file",
    [
        "counterfact/counterfact_500.json",
        "counterfact/counterfact_flat_3000.json",
        "zsre/zsre_mend_train-1k.json",
        "knowedit/wiki_recent.json",
        "knowedit/wikibio.json",
        "mquake/MQuAKE-hard.json",
    ],
)
def test_the_real_files_ask_what_version_0_1_asked_token_by_token(file, tokenizer):
    facts = load_facts(SHARED / file)
    for fact, record in zip(facts, json.loads((SHARED / file).read_text(encoding="utf-8")), strict=True):
        assert [(r.prompt, r.subject, r.target_new) for r in fact.requests] == _old_requests(record)
    pairs: dict[tuple[str, str], None] = {}
    for fact in facts:
        _Plan(fact, lambda *pair: pairs.setdefault(pair))
    assert all((prompt, target) == (prompt.strip(), target.strip()) for prompt, target in pairs)
    other = 0
    for number, (prompt, target) in enumerate(pairs):
        if border(prompt, target) != " ":
            other += 1
        elif number % 4 == 0:
            encoded = encode(tokenizer, "{}", prompt, target)
            assert (encoded.ids, encoded.target) == _old_encoding(tokenizer, prompt, target)
    assert other == UNSPACED.get(file, 0)
