"""JSON files with a checksum: what is written is read, and what is not what was written is refused by name."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tries import tries

from alphaedit_plugin.errors import CompareError
from alphaedit_plugin.storage.json_file import read_json, write_json

VALUES = {
    "identity": "ab12",
    "seconds": 12.5,
    "drift": {3: 0.1, 10: math.inf},
    "names": ["é", "\udcff", "\x1b"],
    "n": 7,
}


@tries(60)
@given(
    st.dictionaries(
        st.text().filter(lambda key: key != "sha256"),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=8,
        ),
    )
)
def test_what_is_written_is_read(tmp_path_factory: Any, values: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("json") / "values.json"
    write_json(path, values, CompareError)
    assert read_json(path, CompareError) == values


def test_every_flipped_bit_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    write_json(path, VALUES, CompareError)
    content = path.read_bytes()
    written = read_json(path, CompareError)
    bits = random.Random(0).sample(range(8 * len(content)), 1000)
    refused = 0
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found = read_json(path, CompareError)
        except CompareError as error:
            refused += str(path) in str(error)
        else:
            # whitespace, or the name of the checksum: the values are those that were written
            assert {key: value for key, value in found.items() if key in written} == written
    assert refused > 800


def test_every_cut_is_found(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    write_json(path, VALUES, CompareError)
    content = path.read_bytes()
    for length in range(len(content) - 2):
        path.write_bytes(content[:length])
        with pytest.raises(CompareError, match=r"values\.json"):
            read_json(path, CompareError)


@pytest.mark.parametrize(
    "content",
    [b"", b"[1]", b"7", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000, b'{"sha256": 3}', b"{\x00}"],
    ids=["empty", "list", "number", "no UTF-8", "deep list", "deep object", "long number", "no digest", "NUL"],
)
def test_what_is_no_json_object_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "values.json"
    path.write_bytes(content)
    with pytest.raises(CompareError, match=r"values\.json"):
        read_json(path, CompareError)


def test_a_file_without_a_checksum_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    path.write_text(json.dumps({"seconds": 1.5}))
    assert read_json(path, CompareError) == {"seconds": 1.5}


def test_a_file_that_is_absent_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(CompareError, match=r"values\.json"):
        read_json(tmp_path / "values.json", CompareError)


def test_a_checksum_under_another_name_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    write_json(path, VALUES, CompareError)
    path.write_bytes(path.read_bytes().replace(b'"sha256"', b'"shq256"'))
    with pytest.raises(CompareError, match="does not match"):
        read_json(path, CompareError)
