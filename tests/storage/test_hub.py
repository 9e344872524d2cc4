"""Publishing a folder, on a Hub of our own."""

from __future__ import annotations

import re

import pytest
from huggingface_hub import constants

from alphaedit_plugin.errors import HubError
from alphaedit_plugin.storage.hub import Repository, is_name

CARD = b"---\ntags:\n- ours\n---\n\n# A card\n"


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "folder"
    (path / "below").mkdir(parents=True)
    (path / "README.md").write_bytes(CARD)
    (path / "weights").write_bytes(bytes(range(256)))
    (path / "below" / "more").write_text("more")
    (path / ".weights.left").write_text("by a killed writer")
    return path


def content(hub, name):
    return {path: data for path, data in hub.files[name].items() if path != ".gitattributes"}


@pytest.mark.parametrize("name", ["acme/facts", "labs/facts"])
@pytest.mark.parametrize("private", [True, False])
def test_the_repository_holds_what_the_folder_holds(name, private, hub, folder):
    assert Repository(name, "ours").publish(folder, private=private) == (f"{hub.address}/{name}", private)
    assert content(hub, name) == {"README.md": CARD, "weights": bytes(range(256)), "below/more": b"more"}
    assert hub.private == {name: private}


def test_publishing_again_replaces_everything_and_leaves_who_sees_it(hub, folder):
    repository = Repository("acme/facts", "ours")
    repository.publish(folder)
    (folder / "weights").write_bytes(b"new")
    (folder / "below" / "more").unlink()
    assert repository.publish(folder, private=False)[1] is True
    assert content(hub, "acme/facts") == {"README.md": CARD, "weights": b"new"}
    assert hub.private == {"acme/facts": True}


def test_a_check_makes_nothing(hub):
    Repository("acme/facts", "ours").check()
    assert hub.files == {}


@pytest.mark.parametrize("card", [b"", b"---\ntags:\n- theirs\n---\n", b"# No settings\n"])
def test_a_repository_that_holds_something_else_is_left_alone(card, hub, folder):
    hub.files["acme/facts"] = {".gitattributes": b"", "README.md": card, "model.bin": b"precious"}
    hub.private["acme/facts"] = False
    before = dict(hub.files["acme/facts"])
    with pytest.raises(HubError, match="acme/facts holds other things"):
        Repository("acme/facts", "ours").publish(folder)
    assert hub.files["acme/facts"] == before


def test_an_empty_repository_is_taken(hub, folder):
    hub.files["acme/facts"], hub.private["acme/facts"] = {".gitattributes": b""}, False
    Repository("acme/facts", "ours").publish(folder)
    assert "weights" in hub.files["acme/facts"]


@pytest.mark.parametrize("name", ["", "facts", "/facts", "acme/", "acme/fa cts", "acme/facts/more", "acme/facts.git"])
def test_a_name_that_is_none_is_refused_before_anybody_is_asked(name, folder):
    assert not is_name(name)
    with pytest.raises(HubError, match="write USER/NAME"):
        Repository(name, "ours").publish(folder)


def test_somebody_elses_name_is_refused(hub, folder):
    with pytest.raises(HubError, match="acme, labs, who cannot write other/facts"):
        Repository("other/facts", "ours").check()


def test_without_a_token_the_error_says_where_to_get_one(hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "none"))
    with pytest.raises(HubError, match="hf auth login"):
        Repository("acme/facts", "ours").check()


def test_a_wrong_token_is_named(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    with pytest.raises(HubError, match=r"answers 401.*use a token"):
        Repository("acme/facts", "ours").check()


@pytest.mark.parametrize(
    ("request_", "status", "said"),
    [
        ("repos/create", 403, "answers 403, You have read-only rights.*use a token that may write"),
        ("models/acme/facts/preupload", 413, "answers 413, Too large.*put that right"),
        ("models/acme/facts/commit", 400, "answers 400, No such base model.*put that right"),
    ],
)
def test_what_the_hub_refuses_is_said_with_its_words_in_one_line(request_, status, said, hub, folder):
    """(The library tries a server's own failures, from 500 up, again for half a minute.)"""
    hub.refuses[request_] = (status, re.search(r", (.*?)\.\*", said)[1])
    with pytest.raises(HubError, match=said) as failure:
        Repository("acme/facts", "ours").publish(folder)
    assert "\n" not in str(failure.value)
    assert not any(content(hub, name) for name in hub.files)


def test_without_a_network_the_error_says_so(hub, folder, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"cannot publish acme/facts: .*try again"):
        Repository("acme/facts", "ours").check()


def test_offline_mode_is_named(hub, folder, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        Repository("acme/facts", "ours").check()
