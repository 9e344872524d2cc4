"""Models that come as GGUF files, on their own or in PyPI packages."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import torch
from support.tiny import tiny

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


def test_a_conversion_that_fails_leaves_nothing_behind(packages, tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise MemoryError

    monkeypatch.setattr(gguf.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(MemoryError):
        converted(DEMO_MODEL, Store(tmp_path / "store"))
    assert list((tmp_path / "store" / "models").iterdir()) == []


def test_a_file_of_ones_own_is_converted_once_and_known_by_its_content(tmp_path, tokenizer, monkeypatch):
    read = []

    def from_pretrained(folder, gguf_file, **_options):
        read.append(gguf_file)
        return tiny("llama", vocab_size=512)

    def of_tokenizer(_folder, gguf_file):
        return tokenizer

    (tmp_path / "Mine.GGUF").write_bytes(b"weights")
    (tmp_path / "same.gguf").write_bytes(b"weights")
    store = Store(tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr(gguf.AutoModelForCausalLM, "from_pretrained", from_pretrained)
        patch.setattr(gguf.AutoTokenizer, "from_pretrained", of_tokenizer)
        converted(str(tmp_path / "Mine.GGUF"), store)
    model, _ = load(str(tmp_path / "Mine.GGUF"), store=store)
    assert read == ["Mine.GGUF"]
    for ours, theirs in zip(model.parameters(), tiny("llama", vocab_size=512).parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(ModelStructureError, match=r"nothing\.gguf"):
        load(str(tmp_path / "nothing.gguf"))


def test_names_of_models_on_the_hub_are_no_files():
    assert not is_gguf("google/gemma-3-270m")
    assert is_gguf("gemma-3-270m")
