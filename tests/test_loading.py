"""Loading a model and its tokenizer by path."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny

from alphaedit_plugin import loading
from alphaedit_plugin.errors import ModelStructureError, StoreError
from alphaedit_plugin.loading import demo_model, load
from alphaedit_plugin.store import Store


@pytest.fixture
def checkpoint(tmp_path, tokenizer):
    tiny("llama", vocab_size=512).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_checkpoint_is_loaded_ready_to_edit(checkpoint, tokenizer):
    model, loaded_tokenizer = load(str(checkpoint))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config._name_or_path == str(checkpoint)
    for (name, loaded), saved in zip(model.named_parameters(), tiny("llama", vocab_size=512).parameters(), strict=True):
        assert torch.equal(loaded, saved), name
    assert loaded_tokenizer("The capital")["input_ids"] == tokenizer("The capital")["input_ids"]


def test_the_type_asked_for_is_the_type_given(checkpoint):
    model, _ = load(str(checkpoint), dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_model_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(ModelStructureError, match="nothing here"):
        load(str(tmp_path / "nothing here"))


def test_a_type_that_does_not_exist_is_refused(checkpoint):
    with pytest.raises(ModelStructureError, match="float33"):
        load(str(checkpoint), dtype="float33")


@pytest.mark.parametrize("dtype", ["nn", "int8"])
def test_a_type_that_no_model_can_have_is_refused(checkpoint, dtype):
    with pytest.raises(ModelStructureError):
        load(str(checkpoint), dtype=dtype)


def test_an_unfamiliar_demo_file_is_refused_and_leaves_no_folder(tmp_path, monkeypatch):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / loading._GGUF).write_bytes(b"something else")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(loading, "_PACKAGE", "package")
    with pytest.raises(ModelStructureError, match="not the file we know"):
        demo_model(Store(tmp_path / "store"))
    assert not (tmp_path / "store" / "models").exists()


def test_a_demo_model_that_is_not_installed_is_an_error_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "_PACKAGE", "no_such_package_anywhere")
    with pytest.raises(ModelStructureError, match="pip install"):
        demo_model(Store(tmp_path))


def test_a_demo_model_that_cannot_be_written_is_an_error_that_names_the_place(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "_demo_gguf", lambda: tmp_path / "x.gguf")
    (tmp_path / "models").write_text("in the way")
    with pytest.raises(StoreError, match="models"):
        demo_model(Store(tmp_path))


def test_a_conversion_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise MemoryError

    monkeypatch.setattr(loading, "_demo_gguf", lambda: tmp_path / "x.gguf")
    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(MemoryError):
        demo_model(Store(tmp_path / "store"))
    assert list((tmp_path / "store" / "models").iterdir()) == []
