"""Lists of records: what is wrong with one is said of that one."""

from __future__ import annotations

import json

import pytest

from alphaedit_plugin.errors import RequestError
from alphaedit_plugin.storage.records import mapping, read_records

HALVES = ["\ud800", "the \udfff end", "\ude00\ud83d"]


@pytest.mark.parametrize("half", HALVES, ids=ascii)
@pytest.mark.parametrize("place", ["a value", "a key", "inside"])
def test_half_a_character_is_an_error_that_names_the_record(half, place):
    record = {"a value": {"a": half}, "a key": {half: 1}, "inside": {"a": [{"b": ("c", [half])}]}}[place]
    with pytest.raises(RequestError, match=r"facts\.json, record 3: .* half a character"):
        mapping(record, "facts.json, record 3")


def test_whole_characters_of_all_kinds_are_fine(tmp_path):
    record = {"é": ["日本", "👩‍🚀", "\x1b", None, 1, {"x": 2.5}]}
    assert mapping(record, "record") is record
    (tmp_path / "a.json").write_text(json.dumps([record]), encoding="ascii")  # 👩 as two halves, which belong together
    assert mapping(read_records(tmp_path / "a.json", "facts")[0], "record") == record


@pytest.mark.parametrize("content", ["[" * 100_000, '[{"a":' * 100_000, "[1", "{}", "[]", "7"])
def test_a_file_that_is_no_list_of_records_is_refused_by_name(content, tmp_path):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(RequestError, match=r"a\.json"):
        read_records(tmp_path / "a.json", "facts")


def test_a_line_that_is_nested_too_deeply_is_an_error_of_that_record(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n' + '{"a":' * 100_000 + "\n")
    good, bad = read_records(tmp_path / "a.jsonl", "facts")
    assert good == {"a": 1}
    with pytest.raises(RequestError, match="record 1 is not JSON"):
        mapping(bad, "record 1")
