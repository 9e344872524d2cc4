"""The cache on disk: computed once, sized and clearable."""

from __future__ import annotations

import logging
import multiprocessing
import time
from pathlib import Path

import platformdirs
import pytest
import torch
from support.mishaps import flip
from support.weights import same_tensors

from alphaedit_plugin.errors import StoreError
from alphaedit_plugin.storage.files import atomic
from alphaedit_plugin.storage.store import ENVIRONMENT, Store
from alphaedit_plugin.storage.tensors import read_tensors

RECIPE = {"model": "m", "layer": 3}
TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7)}


def test_the_directory_is_the_argument_else_the_environments_else_the_platforms(tmp_path, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "env"))
    assert Store().root == tmp_path / "env"
    assert Store(tmp_path / "argument").root == tmp_path / "argument"
    for unset in ("", None):
        monkeypatch.setenv(ENVIRONMENT, unset) if unset is not None else monkeypatch.delenv(ENVIRONMENT)
        assert Store().root == Path(platformdirs.user_cache_dir("alphaedit", appauthor=False))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store("~/cache").root == tmp_path / "cache"


def test_what_is_put_is_what_is_got(store):
    assert store.get("kind", RECIPE) is None
    store.put("kind", RECIPE, TENSORS)
    assert same_tensors(store.get("kind", RECIPE), TENSORS)
    assert same_tensors(Store(store.root).get("kind", dict(reversed(RECIPE.items()))), TENSORS)


@pytest.mark.parametrize(("kind", "changes"), [("other", {}), ("kind", {"layer": 4}), ("kind", {"more": None})])
def test_another_kind_or_recipe_is_another_entry(store, kind, changes):
    store.put("kind", RECIPE, TENSORS)
    assert store.get(kind, {**RECIPE, **changes}) is None


def test_only_what_is_missing_is_made_and_that_once(store):
    made = []

    def make(missing):
        made.append(missing)
        return {key: {"t": torch.tensor(key)} for key in missing}

    recipes = {layer: {"layer": layer} for layer in range(4)}
    store.get_or_make("kind", {layer: recipes[layer] for layer in (0, 2)}, make)
    for _ in range(2):
        found = store.get_or_make("kind", recipes, make)
        assert {key: int(tensors["t"]) for key, tensors in found.items()} == {key: key for key in range(4)}
    assert made == [[0, 2], [1, 3]]


def test_a_failure_while_making_stores_nothing_and_lets_the_next_one_try(store):
    with pytest.raises(KeyError):
        store.get_or_make("kind", {0: RECIPE}, lambda _missing: {}["broken"])
    assert store.entries() == []
    assert same_tensors(store.get_or_make("kind", {0: RECIPE}, lambda _missing: {0: TENSORS})[0], TENSORS)


def test_a_damaged_entry_is_reported_and_made_again(store, caplog):
    store.put("kind", RECIPE, TENSORS)
    path = store.path("kind", RECIPE)
    flip(path, -3)
    with caplog.at_level(logging.WARNING):
        found = store.get_or_make("kind", {0: RECIPE}, lambda _missing: {0: TENSORS})
    assert same_tensors(found[0], TENSORS)
    assert str(path) in caplog.text
    assert same_tensors(read_tensors(path, StoreError)[0], TENSORS)


def _wants(root, ready, log):
    def make(_missing):
        with log.open("a") as file:
            file.write("made\n")
        time.sleep(0.3)  # long enough for the others to come to the lock
        return {0: TENSORS}

    ready.wait()
    found = Store(root).get_or_make("kind", {0: RECIPE}, make)
    with log.open("a") as file:
        file.write("right\n" if same_tensors(found[0], TENSORS) else "wrong\n")


def test_of_several_processes_that_want_the_same_one_computes_it(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, log = context.Barrier(3), tmp_path / "log"
    workers = [context.Process(target=_wants, args=(tmp_path / "store", ready, log)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(log.read_text().split()) == ["made", "right", "right", "right"]


def test_entries_tell_kind_recipe_and_size_largest_first(store):
    assert Store(store.root / "not there").entries() == []
    store.put("small", {"n": 1}, {"t": torch.zeros(10)})
    store.put("large", {"n": 2}, {"t": torch.zeros(1000)})
    large, small = store.entries()
    assert [(entry.kind, entry.recipe) for entry in (large, small)] == [("large", {"n": 2}), ("small", {"n": 1})]
    assert [entry.size for entry in (large, small)] == [entry.path.stat().st_size for entry in (large, small)]
    assert large.size > 4000


def test_a_damaged_entry_is_still_listed_and_cleared(store):
    store.put("kind", RECIPE, TENSORS)
    store.path("kind", RECIPE).write_bytes(b"junk")
    store.put("kind", {"n": 2}, TENSORS)
    path = store.path("kind", {"n": 2})
    flip(path, 7, 0x80)  # a header of absurd length
    assert len(store.entries()) == 2
    store.clear()
    assert store.entries() == []


def test_clearing_frees_what_was_listed_of_one_kind_or_all(store):
    for kind in ("one", "two"):
        for n in range(2):
            store.put(kind, {"n": n}, TENSORS)
    sizes = {kind: sum(entry.size for entry in store.entries() if entry.kind == kind) for kind in ("one", "two")}
    assert store.clear("one") == sizes["one"]
    assert {entry.kind for entry in store.entries()} == {"two"}
    assert store.clear() == sizes["two"]
    assert list(store.root.rglob("*.safetensors")) == []
    assert store.clear() == 0


def test_a_directory_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("in the way")
    store = Store(tmp_path / "file" / "store")
    for act in (
        lambda: store.put("kind", RECIPE, TENSORS),
        lambda: store.get_or_make("kind", {0: RECIPE}, lambda _missing: {0: TENSORS}),
    ):
        with pytest.raises(StoreError, match=str(tmp_path)):
            act()


def test_a_lock_that_cannot_be_taken_is_an_error_that_names_the_cache(store):
    (store.root / "locks" / "busy.lease").mkdir(parents=True)
    with pytest.raises(StoreError, match=str(store.root)), store.lock("busy"):
        pass


def test_clearing_removes_a_link_and_never_what_it_leads_to(store, tmp_path):
    """An entry, a model, a whole kind, and one that leads nowhere."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    outside = Store(elsewhere)
    outside.put("kind", RECIPE, TENSORS)
    (elsewhere / "model").mkdir()
    (elsewhere / "model" / "weights").write_bytes(b"precious")
    store.put("kind", {"n": 2}, TENSORS)
    (store.root / "models").mkdir()
    (store.root / "models" / "linked").symlink_to(elsewhere / "model")
    (store.root / "kind" / "a.safetensors").symlink_to(outside.path("kind", RECIPE))
    (store.root / "kind" / "b.safetensors").symlink_to(tmp_path / "nowhere")
    (store.root / "text").symlink_to(elsewhere / "kind")
    assert len(store.entries()) >= 4
    store.clear()
    assert store.entries() == []
    assert not [path for path in store.root.rglob("*") if path.is_symlink()]
    assert (elsewhere / "model" / "weights").read_bytes() == b"precious"
    assert same_tensors(outside.get("kind", RECIPE), TENSORS)


def test_clearing_leaves_what_is_just_being_written(store):
    store.put("kind", RECIPE, TENSORS)
    path = store.path("kind", {"n": 2})
    with atomic(path, StoreError) as temporary:
        store.clear()
        assert temporary.exists()
        temporary.write_bytes(b"whole")
    assert path.read_bytes() == b"whole"


def test_an_entry_that_is_there_is_read_without_writing_anything(store):
    """So from a cache that may only be read."""
    store.put("kind", RECIPE, TENSORS)
    before = sorted(store.root.rglob("*"))
    found = store.get_or_make("kind", {0: RECIPE}, lambda _missing: pytest.fail("made again"))
    assert same_tensors(found[0], TENSORS)
    assert sorted(store.root.rglob("*")) == before


@pytest.mark.parametrize(
    "header", [b"[" * 100_000, b"[]", b'{"__metadata__": 3}', b'{"__metadata__": {"alphaedit": "[1]"}}']
)
def test_entries_whose_header_says_nothing_are_listed_and_cleared(header, store):
    store.put("kind", RECIPE, TENSORS)
    store.path("kind", RECIPE).write_bytes(len(header).to_bytes(8, "little") + header)
    (entry,) = store.entries()
    assert entry.recipe == {}
    store.clear()
    assert store.entries() == []
