"""Where others find a model, from the name that it was loaded by here."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny import tiny

from alphaedit_plugin.model.gguf import PACKAGED
from alphaedit_plugin.model.origin import Origin
from alphaedit_plugin.storage.hub import is_name


def test_a_name_on_the_hub_stays():
    assert Origin.named("Qwen/Qwen2.5-7B") == Origin("Qwen/Qwen2.5-7B", True)
    assert Origin.named("Qwen/Qwen2.5-7B").short == "Qwen2.5-7B"


def test_a_folder_is_found_from_anywhere_on_this_machine(tmp_path, monkeypatch):
    (tmp_path / "acme" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert Origin.named("acme/model") == Origin(str(tmp_path / "acme" / "model"), False)


def test_a_folder_in_the_hubs_cache_has_the_name_that_it_came_by(tmp_path):
    snapshot = tmp_path / "hub" / "models--acme--a-model" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    assert Origin.named(str(snapshot)) == Origin("acme/a-model", True)
    assert not Origin.named(str(snapshot.parent)).on_hub


@pytest.mark.parametrize("name", PACKAGED)
def test_a_model_from_pypi_has_the_name_of_what_it_was_made_from_and_a_note(name):
    origin = Origin.named(name)
    assert origin.on_hub
    assert is_name(origin.name)
    assert PACKAGED[name].parts[0][0] in origin.note


def test_a_gguf_file_is_noted(tmp_path):
    path = tmp_path / "small.gguf"
    path.touch()
    origin = Origin.named(str(path))
    assert (origin.name, origin.on_hub) == (str(path), False)
    assert "GGUF" in origin.note


@pytest.mark.parametrize("name", ["", "gpt2", "/nowhere/at/all", "a b/c"])
def test_what_is_neither_a_users_name_nor_here_is_not_claimed_to_be_on_the_hub(name):
    assert not Path(name).exists() or not name
    assert Origin.named(name) == Origin(name, False)


def test_a_model_that_was_made_here_has_no_name():
    assert Origin.of(tiny("llama")) == Origin("", False)
