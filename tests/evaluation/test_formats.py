"""The newer data sets: what of a record is taught, what is asked, and which form of it is read."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.data_files import write_records
from support.newer_records import (
    AKEW_COUNTERFACT,
    AKEW_MQUAKE,
    AKEW_WIKIUPDATE,
    MQUAKE_REMASTERED,
    NEWER,
    OTHERWISE,
    QAEDIT,
    RIPPLE_EDITS,
    UNKE,
    WIKIBIGEDIT,
    WIKIBIGEDIT_PIPELINE,
)
from support.paths import SHARED
from support.tries import tries

from alphaedit_plugin.comparison.campaign import cell_folder
from alphaedit_plugin.comparison.course import Course
from alphaedit_plugin.editors.requests import Request, encode
from alphaedit_plugin.errors import RequestError
from alphaedit_plugin.evaluation.datasets import load_dataset, load_facts
from alphaedit_plugin.evaluation.facts import Probe
from alphaedit_plugin.evaluation.ripple_edits import _parts


def read(tmp_path: Path, record: object, form: str = ""):
    path = write_records(tmp_path / "facts.json", [record])
    (fact,) = load_facts(f"{path}:{form}" if form else path)
    return fact


def test_qaedit(tmp_path):
    fact = read(tmp_path, QAEDIT)
    assert fact.requests == (Request("who painted the ceiling of {}?", "the Louvre", "Giotto"),)
    assert fact.request.case_id == 41
    assert fact.paraphrases == ("Which painter made the ceiling of the Louvre?",)
    assert fact.locality == {
        "NaturalQuestions": [
            Probe("who sang the song of the sea", ("Madonna",)),
            Probe("how high is the tower", ("24.5 metres",)),
        ]
    }


def test_unke_teaches_the_whole_text_after_the_whole_question(tmp_path, tokenizer):
    fact = read(tmp_path, UNKE)
    assert fact.request.text == fact.request.subject == UNKE["question"]
    assert fact.request.completion == f" {UNKE['answer']}"
    assert fact.paraphrases == (UNKE["para_question"],)
    assert fact.portability == {
        "Sub_question": [
            Probe("Where is Anna Weiss from?", ("Lyon.",)),
            Probe("For whom has Anna Weiss baked?", ("The king.",)),
        ]
    }
    encoded = encode(tokenizer, fact.request.prompt, fact.request.subject, fact.request.target_new)
    assert encoded.subject_last == len(encoded.ids) - 1, "the key is read at the question's last token"


def test_unke_with_braces_in_its_question(tmp_path):
    fact = read(tmp_path, {**UNKE, "question": "Is {} a set?"})
    assert fact.request.text == "Is {} a set?"


def test_unke_without_questions_about_its_sentences(tmp_path):
    fact = read(tmp_path, {**UNKE, "sub_question": [], "sub_answer": []})
    assert fact == replace(read(tmp_path, UNKE), portability={})
    with pytest.raises(RequestError, match="a sub_answer for each sub_question"):
        read(tmp_path, {**UNKE, "sub_answer": []})


def test_akews_structured_facts_are_those_of_the_data_set_they_are_from(tmp_path):
    counterfact, mquake = read(tmp_path, AKEW_COUNTERFACT), read(tmp_path, AKEW_MQUAKE, "structured")
    assert counterfact.requests == (Request("The capital of {} is", "France", "Rome"),)
    assert (counterfact.target_true, counterfact.relation) == ("Paris", "P36")
    assert counterfact.neighbours == ("The Louvre is in", "The Seine flows through")
    assert counterfact.paraphrases == ("Which city is the capital of France?", "France has the capital")
    assert mquake.requests == (Request("{} was performed by", "Hey Jude", "Madonna"),)
    assert mquake.questions == (Probe("Where was the performer of Hey Jude born?", ("Rome", "Roma")),)
    update = read(tmp_path, AKEW_WIKIUPDATE)
    assert (update.requests, update.target_true, update.relation) == (counterfact.requests, "Paris", "P36")


TEXT = AKEW_COUNTERFACT["requested_rewrite"]["fact_new_uns"]


def test_akews_text_is_taught_and_the_structured_fact_is_asked(tmp_path):
    fact = read(tmp_path, AKEW_COUNTERFACT, "unstructured")
    assert fact.requests == (Request("What is the capital of {}?", "France", TEXT),)
    assert (fact.target_true, fact.paraphrases, fact.neighbours) == ("", (), ())
    assert fact.portability["Structured"] == [
        Probe("The capital of France is", ("Rome",)),
        Probe("Which city is the capital of France?", ("Rome",)),
        Probe("France has the capital", ("Rome",)),
    ]
    assert fact.portability["Extracted"][0] == Probe("The government of France is in", ("Rome",))
    assert fact.locality == {
        "Neighborhood": [Probe("The Louvre is in", ("Paris",)), Probe("The Seine flows through", ("Paris",))]
    }
    update = read(tmp_path, AKEW_WIKIUPDATE, "unstructured")
    assert update.request == Request("{}", "Where does its government sit?", TEXT), "a question without the subject"
    mquake = read(tmp_path, AKEW_MQUAKE, "unstructured")
    assert mquake.request.prompt == "Who performed {}?"
    assert mquake.questions, "MQuAKE's questions stay"


def test_akews_triplets_are_taught_together_without_those_that_contradict_earlier_ones(tmp_path):
    fact = read(tmp_path, AKEW_COUNTERFACT, "extracted")
    assert fact.requests == (
        Request("The government of {} is in", "France", "Rome"),
        Request("{} lives in", "the king", "Rome"),
    )
    assert list(fact.portability) == ["Structured"]
    assert Course((fact,), 1).batches == [list(fact.requests)]


def test_mquake_remastered_and_the_cases_of_its_split(tmp_path):
    fact = read(tmp_path, MQUAKE_REMASTERED)
    assert fact.requests == (Request("{} was performed by", "Hey Jude", "Madonna"),)
    assert fact.hops == (Probe("Who performed Hey Jude?", ("Madonna", "Ciccone")),)
    assert read(tmp_path, MQUAKE_REMASTERED, "1000") == read(tmp_path, MQUAKE_REMASTERED, "6334") == fact
    with pytest.raises(RequestError, match="holds no record of the form '100'"):
        read(tmp_path, MQUAKE_REMASTERED, "100")
    with pytest.raises(RequestError, match="split knows no '7', only 100, 1000, 6334"):
        read(tmp_path, MQUAKE_REMASTERED, "7")
    unsplit = {key: value for key, value in MQUAKE_REMASTERED.items() if key != "split"}
    assert load_dataset(write_records(tmp_path / "flat.json", [unsplit])).format == "MQuAKE-Remastered"


@pytest.mark.parametrize("split", [{"edited": [1]}, [{"edited": 1}], ["edited", {}]])
def test_mquake_remastereds_split_of_another_form_is_refused(split, tmp_path):
    with pytest.raises(RequestError, match="record 0: split: 1000 must be text or a list of texts, not"):
        read(tmp_path, {**MQUAKE_REMASTERED, "split": {"1000": split}}, "1000")


@pytest.mark.parametrize(
    ("record", "field", "form"),
    [(RIPPLE_EDITS, "edit", ""), (MQUAKE_REMASTERED, "split", "1000"), (AKEW_COUNTERFACT, "portability", "")],
)
def test_one_mapping_is_not_called_a_list_of_them(record, field, form, tmp_path):
    with pytest.raises(RequestError, match=rf"{field} must be a mapping, not 'x'"):
        read(tmp_path, {**record, field: "x"}, form)


def test_ripple_edits(tmp_path):
    fact = read(tmp_path, RIPPLE_EDITS)
    assert fact.requests == (Request("The name of the country of citizenship of {} is", "Anna Weiss", "Peru"),)
    assert (fact.target_true, fact.relation) == ("France", "COUNTRY_OF_CITIZENSHIP")
    assert fact.locality == {
        "Relation_Specificity": [Probe("The name of the mother of Anna Weiss is", ("Eva Weiss", "Eva", "Maria"))],
        "Forgetfulness": [Probe("The country of Anna Weiss, which is not Peru, is", ("France",))],
    }
    assert fact.portability == {
        "Logical_Generalization": [Probe("Peru is the country of", ("Anna Weiss",))],
        "Compositionality_I": [Probe("The capital of the country of Anna Weiss is", ("Lima",))],
        "Subject_Aliasing": [
            Probe("The name of the country of citizenship of A. Weiss is", ("Peru", "Republic of Peru"))
        ],
    }


@pytest.mark.parametrize(
    ("sentence", "subject", "target"),
    [
        ("The name of the mother of Anna of York is Eva Weiss.", "Anna of York", "Eva Weiss"),
        ("The names of the siblings of Anna Weiss are Karl Weiss.", "Anna Weiss", "Karl Weiss"),
        ("The number of children Anna Weiss has is 3.", "Anna Weiss", "3"),
        ("The name of the award Anna Weiss won is Order of Merit.", "Anna Weiss", "Order of Merit"),
        ("The name of the country which Lyon is associated with is Peru.", "Lyon", "Peru"),
        ("The name of the country which Lima is the capital of is Peru.", "Lima", "Peru"),
        ("The name of the sports team which Anna Weiss is a member of is Lyon F.C..", "Anna Weiss", "Lyon F.C."),
        ("The Long Song is followed by The Short Song.", "The Long Song", "The Short Song"),
        ("The Long Song follows The Short Song.", "The Long Song", "The Short Song"),
        ("The name of the head of government of the Netherlands is Anna Weiss.", "Netherlands", "Anna Weiss"),
    ],
)
def test_subject_and_object_are_found_in_ripple_edits_sentences(sentence, subject, target):
    assert _parts({"prompt": sentence}, "edit")[:2] == (subject, target)


def test_ripple_edits_own_subject_and_target_go_before_what_is_found(tmp_path):
    edit = {
        "prompt": "life is sweet is followed by honey is sour.",
        "subject": "life is sweet",
        "target": "honey is sour",
    }
    fact = read(tmp_path, {**RIPPLE_EDITS, "edit": edit})
    assert fact.request == Request("{} is followed by", "life is sweet", "honey is sour")
    with pytest.raises(RequestError, match=r"record 0: edit: prompt: no subject and object.*add the fields"):
        read(tmp_path, {**RIPPLE_EDITS, "edit": {"prompt": "Nothing."}})


def test_the_object_in_ripple_edits_sentence_is_no_part_of_the_prompt_whatever_it_is_called(tmp_path):
    edit = {"prompt": "The mother tongue of This is Water is English.", "subject": "This is Water"}
    for target in ("English", "English language"):
        fact = read(tmp_path, {**RIPPLE_EDITS, "edit": {**edit, "target": target}})
        assert fact.request == Request("The mother tongue of {} is", "This is Water", target)
    edit["original_fact"] = {"prompt": "The mother tongue of This is Water is Dutch."}
    fact = read(tmp_path, {**RIPPLE_EDITS, "edit": edit})
    assert (fact.request.target_new, fact.target_true) == ("English", "Dutch")
    strange = {"prompt": "English, says This is Water.", "subject": "This is Water", "target": "Dutch"}
    with pytest.raises(RequestError, match="no subject and object are found in 'English, says"):
        read(tmp_path, {**RIPPLE_EDITS, "edit": strange})


def test_a_sentence_of_ripple_edits_that_may_be_parted_at_several_verbs_is_refused(tmp_path):
    edit = {"prompt": "The name of the author of This is Water is Bob Dole."}
    for given_ in ({}, {"target": "Bob Dole"}):
        with pytest.raises(RequestError, match=r"edit: prompt: .*several verbs: add the fields subject and target"):
            read(tmp_path, {**RIPPLE_EDITS, "edit": {**edit, **given_}})


def test_of_several_questions_of_wikibigedit_each_has_the_answer_in_its_place(tmp_path):
    two = {"loc": ["Who is Karl?", None, "Who is Eva?"], "loc_ans": [["a king", "king"], "nobody", "a queen"]}
    fact = read(tmp_path, {**WIKIBIGEDIT, **two})
    assert fact.locality["Neighborhood"] == [
        Probe("Who is Karl?", ("a king", "king")),
        Probe("Who is Eva?", ("a queen",)),
    ]
    aliases = read(tmp_path, {**WIKIBIGEDIT, "loc": ["Who is Karl?"], "loc_ans": ["a king", "king"]})
    assert aliases.locality["Neighborhood"] == fact.locality["Neighborhood"][:1]
    for answers in ("a king", ["a king"], ["a king", "a queen"]):
        with pytest.raises(RequestError, match="record 0: loc_ans must be a list of 3 answers"):
            read(tmp_path, {**WIKIBIGEDIT, **two, "loc_ans": answers})


def test_a_question_of_wikibigedit_without_an_answer_is_left_out(tmp_path):
    whole = read(tmp_path, WIKIBIGEDIT)
    for asked, answer in (("Who?", None), ("Who?", float("nan")), (["Who?", "Where?"], None), (["Who?"], [None])):
        fact = read(tmp_path, {**WIKIBIGEDIT, "mhop": asked, "mhop_ans": answer})
        assert fact.requests == whole.requests
        assert fact.portability.keys() == {"Personas"}


def test_wikibigedit_as_published_and_as_its_pipeline_writes_it(tmp_path):
    fact, other = read(tmp_path, WIKIBIGEDIT), read(tmp_path, WIKIBIGEDIT_PIPELINE)
    assert fact.requests == other.requests == (Request("Which team does {} play for?", "Anna Weiss", "Lyon"),)
    assert fact.paraphrases == other.paraphrases == ("For which team is Anna Weiss a player?",)
    assert (
        fact.locality == other.locality == {"Neighborhood": [Probe("Which team does Karl Weiss play for?", ("Rome",))]}
    )
    personas = {"Personas": [Probe("Ahoy, what crew does Anna Weiss sail with?", ("Lyon",))]}
    hop = Probe("In which city is the ground of Anna Weiss's team?", ("Paris",))
    assert fact.portability == {**personas, "Multi_hop": [hop]}
    assert other.portability == personas, "null and NaN are no question"


@pytest.mark.parametrize(
    ("record", "field", "value"),
    [
        (QAEDIT, "target", " "),
        (QAEDIT, "subject", "the Prado"),
        (QAEDIT, "locality", [{"loc": "who sang"}]),
        (UNKE, "answer", ""),
        (UNKE, "sub_answer", ["Lyon."]),
        (RIPPLE_EDITS, "Forgetfulness", [{"test_queries": [{"prompt": "", "answers": [{"value": "x"}]}]}]),
        (WIKIBIGEDIT, "mhop_ans", []),
        (WIKIBIGEDIT, "personas", 3),
        (MQUAKE_REMASTERED, "requested_rewrite", [{"subject": "Hey Jude", "prompt": "{} is"}]),
    ],
)
def test_what_is_wrong_is_named_by_file_record_and_field(record, field, value, tmp_path):
    path = write_records(tmp_path / "facts.json", [record, {**record, field: value}])
    with pytest.raises(RequestError) as caught:
        load_facts(path)
    named = "target_new" if field == "requested_rewrite" else field
    assert all(part in str(caught.value) for part in (str(path), "record 1", named))


@tries(200)
@given(
    st.sampled_from([AKEW_COUNTERFACT, AKEW_WIKIUPDATE, AKEW_MQUAKE]),
    st.sampled_from(["unstructured", "extracted"]),
    st.data(),
)
def test_junk_in_akews_rewrite_is_read_or_named(tmp_path_factory, record, form, data):
    broken = copy.deepcopy(record)
    rewrites = broken["requested_rewrite"]
    rewrite = rewrites[0] if isinstance(rewrites, list) else rewrites
    rewrite[data.draw(st.sampled_from(sorted(rewrite)))] = data.draw(st.sampled_from([None, 3, "", [], {}, [None]]))
    path = write_records(tmp_path_factory.mktemp("junk") / "facts.json", [record, broken])
    found = load_dataset(f"{path}:{form}", skip_bad=True)
    assert len(found.facts) + len(found.bad) == 2
    assert all("record 1" in message for message in found.bad)


def test_a_form_that_there_is_not_is_refused_with_those_that_there_are(tmp_path):
    with pytest.raises(RequestError, match="AKEW has no form 'prose': say one of structured, unstructured, extracted"):
        read(tmp_path, AKEW_COUNTERFACT, "prose")
    with pytest.raises(RequestError, match="QAEdit has no form 'prose': leave out ':prose'"):
        read(tmp_path, QAEDIT, "prose")


def test_a_form_is_part_of_the_name_of_a_cell(tmp_path):
    path = write_records(tmp_path / "akew.json", [AKEW_COUNTERFACT])
    assert cell_folder("gpt2", f"{path}:extracted", 1) == "gpt2-akew-extracted-seed1"
    assert cell_folder("gpt2", str(path), None) == "gpt2-akew"


@pytest.mark.parametrize("record", [*NEWER.values(), *OTHERWISE])
def test_every_request_of_a_newer_record_can_be_tokenised(record, tmp_path, tokenizer):
    for request in read(tmp_path, record).requests:
        encoded = encode(tokenizer, request.prompt, request.subject, request.target_new)
        assert tokenizer.decode(encoded.target).strip() == request.target_new.strip()


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real data sets are not there: {SHARED}")
def test_the_real_qaedit_is_read_whole():
    path = SHARED / "qaedit/qaedit_500.json"
    found = load_dataset(path)
    assert (found.format, len(found.facts)) == ("QAEdit", 500)
    for fact, record in zip(found.facts, json.loads(path.read_text(encoding="utf-8")), strict=True):
        assert fact.request.text == record["prompt"].strip()
        assert fact.request.target_new == record["target"].strip()
        asked = [(probe.prompt, *probe.answers) for probes in fact.locality.values() for probe in probes]
        assert asked == [(other["loc"].strip(), other["loc_ans"].strip()) for other in record["locality"]]
