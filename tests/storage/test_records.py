"""Lists of records: what is wrong with one is said of that one."""

from __future__ import annotations

import csv
import json

import pytest
import yaml

from alphaedit_plugin.errors import RequestError
from alphaedit_plugin.storage.records import READERS, mapping, read_records

HALVES = ["\ud800", "the \udfff end", "\ude00\ud83d"]


@pytest.mark.parametrize("half", HALVES, ids=ascii)
@pytest.mark.parametrize("place", ["a value", "a key", "inside"])
def test_half_a_character_is_an_error_that_names_the_record(half, place):
    record = {"a value": {"a": half}, "a key": {half: 1}, "inside": {"a": [{"b": ("c", [half])}]}}[place]
    with pytest.raises(RequestError, match=r"facts\.json, record 3: .* half a character"):
        mapping(record, "facts.json, record 3")


def test_what_holds_itself_is_looked_through_once():
    record = yaml.safe_load("&a {prompt: x, more: [*a, *a]}")
    assert mapping(record, "record") is record


def test_whole_characters_of_all_kinds_are_fine(tmp_path):
    record = {"é": ["日本", "👩‍🚀", "\x1b", None, 1, {"x": 2.5}]}
    assert mapping(record, "record") is record
    (tmp_path / "a.json").write_text(json.dumps([record]), encoding="ascii")  # 👩 as two halves, which belong together
    ((name, read),) = read_records(tmp_path / "a.json", "facts")
    assert mapping(read, name) == record


@pytest.mark.parametrize("content", ["[" * 100_000, '[{"a":' * 100_000, "[1", "{}", "[]", "7"])
def test_a_file_that_is_no_list_of_records_is_refused_by_name(content, tmp_path):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(RequestError, match=r"a\.json"):
        read_records(tmp_path / "a.json", "facts")


def test_a_line_that_is_nested_too_deeply_is_an_error_of_that_record(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n' + '{"a":' * 100_000 + "\n")
    (_, good), (name, bad) = read_records(tmp_path / "a.jsonl", "facts")
    assert good == {"a": 1}
    with pytest.raises(RequestError, match=r"a\.jsonl, record 1 is not JSON"):
        mapping(bad, name)


# ---------------------------------------------------------------------------------------------------- tables, YAML


FACTS = [
    {"prompt": "The capital of {} is", "subject": "France", "target_new": "Lyon"},
    {"prompt": 'Say "{}", then', "subject": "one, two; three", "target_new": "four\nlines\tof\nit"},
    {"prompt": "{} 都", "subject": "日本", "target_new": " Rome"},
]
SEPARATORS = {"comma.csv": ",", "semicolon.csv": ";", "tab.tsv": "\t", "TAB.TSV": "\t"}


def read(path):
    return [mapping(record, name) for name, record in read_records(path, "facts")]


@pytest.mark.parametrize("name", SEPARATORS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=ascii)
def test_a_table_that_a_spreadsheet_writes_holds_the_same_records_as_json(name, encoding, end, tmp_path):
    with (tmp_path / name).open("w", encoding=encoding, newline="") as file:
        table = csv.DictWriter(file, list(FACTS[0]), delimiter=SEPARATORS[name], lineterminator=end)
        table.writeheader()
        table.writerows(FACTS)
    assert read(tmp_path / name) == FACTS


@pytest.mark.parametrize("name", ["facts.yaml", "facts.yml"])
@pytest.mark.parametrize("style", [None, '"', "|"])
def test_a_yaml_list_holds_the_same_records_as_json(name, style, tmp_path):
    text = yaml.safe_dump(FACTS, default_style=style, allow_unicode=True)
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read(tmp_path / name) == FACTS


def test_a_row_is_named_as_a_spreadsheet_numbers_it_and_an_empty_cell_is_none(tmp_path):
    (tmp_path / "a.csv").write_text('prompt,subject\n"a\nb",c\n,\n\nd,\ne,f,g\n')
    first, second, third = read_records(tmp_path / "a.csv", "facts")
    assert first == (f"{tmp_path}/a.csv, row 2", {"prompt": "a\nb", "subject": "c"})
    assert second == (f"{tmp_path}/a.csv, row 5", {"prompt": "d", "subject": None})
    with pytest.raises(RequestError, match=r"a\.csv, row 6 has 3 cells, and the first row 2"):
        mapping(third[1], third[0])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", ""),
        ("a.csv", "prompt,subject\n"),
        ("a.csv", "prompt,prompt\na,b\n"),
        ("a.csv", "prompt,\na,b\n"),
        ("a.csv", 'prompt,subject\n"a,b\n'),
        ("a.csv", b"prompt\n\xe9\n"),
        ("a.yaml", "prompt: a"),
        ("a.yaml", "- [a"),
        ("a.yaml", ""),
        ("a.xlsx", b"PK\x03\x04\xff"),
        ("a.txt", "The capital of France is Lyon"),
    ],
)
def test_what_cannot_be_read_says_what_can(name, content, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RequestError) as caught:
        read_records(tmp_path / name, "facts")
    assert str(tmp_path / name) in str(caught.value)
    assert all(suffix in str(caught.value) for suffix in READERS if suffix != ".yml")
