"""YAML that holds no settings is one error that names the file."""

from __future__ import annotations

import pytest

from alphaedit_plugin.errors import HyperparameterError
from alphaedit_plugin.storage.yaml_file import yaml_mapping

WRONG = {
    "no whole number": b"a: !!int x",
    "no number": b"a: !!float x",
    "an infinite whole number": b"a: !!int .inf",
    "no date": b"a: 2026-13-45",
    "no time": b"a: !!timestamp soon",
    "no bytes": b"a: !!binary abc",
    "an object of Python": b"a: !!python/object:os.system {}",
    "a list as a key": b"? [a]\n: 1",
    "nested lists": b"a: " + b"[" * 100_000,
    "nested mappings": b"{a: " * 100_000,
    "no UTF-8": b"\xff\xfe\xfa",
    "a control character": b"a: \x00",
    "an unknown alias": b"a: *b",
    "a list": b"[1]",
    "nothing": b"",
}


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_what_holds_no_settings_is_refused_by_name(content, tmp_path):
    (tmp_path / "run.yaml").write_bytes(content)
    with pytest.raises(HyperparameterError, match=r"run\.yaml"):
        yaml_mapping(tmp_path / "run.yaml")


def test_settings_are_read(tmp_path):
    (tmp_path / "run.yaml").write_text("layers: [4, 5]\nv_lr: 0.1\n")
    assert yaml_mapping(tmp_path / "run.yaml") == {"layers": [4, 5], "v_lr": 0.1}
