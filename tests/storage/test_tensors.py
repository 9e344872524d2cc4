"""Files of tensors: they come back exactly, and damage to them is noticed."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.mishaps import flip
from support.weights import same_tensors

from alphaedit_plugin.errors import StatisticsError, StoreError
from alphaedit_plugin.storage import files, tensors
from alphaedit_plugin.storage.tensors import read_tensors, write_tensors

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7)}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file.safetensors"
    write_tensors(path, TENSORS, {"who": "we"}, StatisticsError)
    return path


@pytest.mark.parametrize(
    "tensors",
    [
        TENSORS,
        {"bf16": torch.randn(3, 2).bfloat16(), "half": torch.randn(5).half(), "bool": torch.tensor([True, False])},
        {"transposed": torch.randn(4, 3).T, "slice": torch.randn(6, 6)[::2, 1:3]},
        {"empty": torch.empty(0, 3)},
        {"not finite": torch.tensor([float("nan"), float("inf"), -0.0])},
        {},
    ],
    ids=lambda tensors: " ".join(tensors) or "nothing",
)
def test_tensors_and_metadata_come_back_exactly(tmp_path, tensors):
    metadata = {"nested": {"list": [1, 2.5, None, True]}, "text": "日本\n"}
    write_tensors(tmp_path / "new" / "folder" / "f.safetensors", tensors, metadata, StoreError)
    found, described = read_tensors(tmp_path / "new" / "folder" / "f.safetensors", StoreError)
    assert described == metadata
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].nan_to_num(nan=5.0), tensor.nan_to_num(nan=5.0))


def test_one_tensor_under_two_names_is_written_twice(tmp_path):
    tensor = torch.arange(4.0)
    write_tensors(tmp_path / "f", {"a": tensor, "b": tensor}, {}, StoreError)
    assert same_tensors(read_tensors(tmp_path / "f", StoreError)[0], {"a": tensor, "b": tensor})


def test_any_truncation_is_an_error_that_names_the_file(path):
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(StatisticsError, match=r"file\.safetensors"):
            read_tensors(path, StatisticsError)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [1, 0x20, 0x80])
def test_any_changed_byte_is_an_error_that_names_the_file_or_changes_nothing(path, bits):
    data = path.read_bytes()
    noticed = 0
    for place in range(len(data)):
        path.write_bytes(data)
        flip(path, place, bits)
        try:
            tensors, metadata = read_tensors(path, StatisticsError)
        except StatisticsError as error:
            noticed += "file.safetensors" in str(error)
        else:
            noticed += 1
            assert same_tensors(tensors, TENSORS)
            assert metadata == {"who": "we"}
    assert noticed == len(data)


def test_what_is_absent_a_folder_or_not_ours_is_refused_by_name(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "foreign.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("foreign", "text", "empty", "folder", "absent"):
        with pytest.raises(StoreError, match=rf"{name}\.safetensors"):
            read_tensors(tmp_path / f"{name}.safetensors", StoreError)


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(path, monkeypatch, failure):
    before = path.read_bytes()

    def full(_tensors, target, **_):
        Path(target).write_bytes(b"half a fi")
        raise failure

    monkeypatch.setattr(tensors, "save_file", full)
    expected = StatisticsError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        write_tensors(path, {"a": torch.zeros(1)}, {}, StatisticsError)
    if isinstance(failure, OSError):
        assert str(path) in str(caught.value)
        assert "No space left" in str(caught.value)
    assert path.read_bytes() == before
    assert list(path.parent.glob("*safetensors")) + list(path.parent.glob(".*")) == [path]


def test_a_failure_of_the_last_step_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(PermissionError("read-only")))
    with pytest.raises(StatisticsError, match="read-only"):
        write_tensors(path, {"a": torch.zeros(1)}, {}, StatisticsError)
    assert path.read_bytes() == before
    assert list(path.parent.glob(".*")) == []


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "7", "{", '{"a":' * 100_000])
def test_metadata_that_is_no_mapping_is_refused_by_name_though_its_checksum_is_right(text, tmp_path):
    plain = {"a": torch.ones(2)}
    metadata = {"alphaedit": text, "sha256": tensors._checksum(plain, text)}
    save_file(plain, tmp_path / "file.safetensors", metadata=metadata)
    with pytest.raises(StoreError, match=r"file\.safetensors"):
        read_tensors(tmp_path / "file.safetensors", StoreError)
