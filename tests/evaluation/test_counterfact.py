"""Files of facts as CounterFact has them, and what is wrong with one."""

from __future__ import annotations

import json

import pytest
from support.scoring import FACT, RECORD

from alphaedit_plugin.errors import RequestError
from alphaedit_plugin.evaluation.datasets import load_facts


def _written(tmp_path, content) -> str:
    path = tmp_path / "facts.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def test_facts_are_read_from_counterfacts_schema(tmp_path):
    (fact,) = load_facts(_written(tmp_path, [RECORD]))
    assert fact == FACT


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target_true", None),
        ("target_true", {"str": " "}),
        ("target_true", {"id": "Q90"}),
        ("target_true", 3),
        ("target_new", {"str": ""}),
        ("subject", None),
        ("prompt", 5),
        ("paraphrase_prompts", None),
        ("paraphrase_prompts", []),
        ("paraphrase_prompts", "one"),
        ("neighborhood_prompts", ["good", ""]),
        ("neighborhood_prompts", [3]),
        ("neighborhood_prompts", {}),
    ],
)
def test_a_bad_field_is_reported_with_file_record_and_field(tmp_path, field, value):
    bad = json.loads(json.dumps(RECORD))
    (bad if field in bad else bad["requested_rewrite"])[field] = value
    path = _written(tmp_path, [RECORD, bad])
    with pytest.raises(RequestError) as caught:
        load_facts(path)
    for part in (path, "record 1", field):
        assert part in str(caught.value)


@pytest.mark.parametrize("record", [None, 3, "text", [], {"requested_rewrite": [1]}])
def test_a_record_that_is_no_mapping_is_reported_with_file_and_number(tmp_path, record):
    path = _written(tmp_path, [RECORD, record])
    with pytest.raises(RequestError) as caught:
        load_facts(path)
    assert path in str(caught.value)
    assert "record 1" in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[1,", "{}", "[]", "null", '"text"'])
def test_a_file_without_facts_is_reported_by_name(tmp_path, content):
    path = _written(tmp_path, content)
    with pytest.raises(RequestError) as caught:
        load_facts(path)
    assert path in str(caught.value)


def test_a_file_that_is_not_there_or_not_text_is_reported_by_name(tmp_path):
    with pytest.raises(RequestError, match="absent"):
        load_facts(tmp_path / "absent.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00[")
    with pytest.raises(RequestError, match="binary"):
        load_facts(tmp_path / "binary.json")
