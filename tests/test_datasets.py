"""Readers of the field's data sets: schemas as they are published, and what is wrong with a record."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from alphaedit_plugin.errors import RequestError
from alphaedit_plugin.evaluation.datasets import FORMATS, load_dataset, load_facts
from alphaedit_plugin.evaluation.facts import Probe
from alphaedit_plugin.requests import Request

SHARED = Path(__file__).parents[2] / "shared" / "data"

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
        {"prompt": "{} was performed by", "subject": "Hey Jude", "target_new": {"str": "Madonna"}},
        {"prompt": "The director of {} is", "subject": "Madonna", "target_new": {"str": "Modi"}},
    ],
    "questions": ["Who directs the performer of Hey Jude?", "Who is the director?"],
    "new_answer": "Modi",
    "new_answer_alias": ["Narendra Modi"],
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
RECORDS = {
    "CounterFact": COUNTERFACT, "ZsRE": ZSRE, "KnowEdit": KNOWEDIT, "WikiBio": WIKIBIO, "EasyEdit": EASYEDIT,
    "MQuAKE": MQUAKE,
}  # fmt: skip


def written(tmp_path: Path, *records: object, name: str = "facts.json") -> Path:
    path = tmp_path / name
    lines = "\n".join(map(json.dumps, records)) if path.suffix == ".jsonl" else json.dumps(records)
    path.write_text(lines, encoding="utf-8")
    return path


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
    assert read(tmp_path, PORTED).portability == {"One_hop": [Probe("Who wears it?", ("Staff",))]}


def test_knowedit_keeps_every_alias_and_drops_probes_without_prompt_or_answer(tmp_path):
    fact = read(tmp_path, KNOWEDIT)
    assert fact.request.prompt == "The name of the country which {} is associated with is"
    assert fact.portability == {"Reasoning": [Probe("Its capital is", ("Ottawa", "Bytown"))]}
    assert fact.locality == {"Relation_Specificity": [Probe("Its area is", ("large", "big"))]}


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
    ],
)
def test_what_is_wrong_is_named_by_file_record_and_field(record, field, value, tmp_path):
    path = written(tmp_path, record, {**record, field: value})
    with pytest.raises(RequestError) as caught:
        load_facts(path)
    for part in (str(path), "record 1", "prompt" if field == "src" else field):
        assert part in str(caught.value)
    found = load_dataset(path, skip_bad=True)
    assert len(found.facts) == 1
    assert found.bad == [str(caught.value)]


def test_a_file_of_bad_records_only_is_an_error_also_when_these_may_be_skipped(tmp_path):
    with pytest.raises(RequestError, match="holds no record that can be read"):
        load_dataset(written(tmp_path, {**ZSRE, "answers": []}), skip_bad=True)


@pytest.mark.parametrize("record", [{"prompt": "The capital"}, {}, 3, None, ["prompt"]])
def test_a_file_of_no_known_format_is_told_which_are_known(record, tmp_path):
    with pytest.raises(RequestError, match=r"of no known format.*MQuAKE.*CounterFact.*ZsRE"):
        load_facts(written(tmp_path, record))


def test_a_name_on_the_hub_is_read_through_datasets(monkeypatch):
    asked = []

    def load(name):
        asked.append(name)
        if name == "org/absent":
            raise FileNotFoundError("404")
        return {"train": [COUNTERFACT], "test": []}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    assert load_dataset("org/counterfact").format == "CounterFact"
    assert asked == ["org/counterfact"]
    with pytest.raises(RequestError, match=r"no file org/absent.*404"):
        load_dataset("org/absent")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RequestError, match=r"install alphaedit-plugin\[evaluation\]"):
        load_dataset("org/counterfact")


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
    for fact in found.facts:
        assert all(request.subject in request.text for request in fact.requests)
        shown = [fact.paraphrases, fact.neighbours, fact.questions, *fact.locality.values(), *fact.portability.values()]
        assert any(shown) or format_ == "KnowEdit"
