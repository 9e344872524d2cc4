"""The cache on disk and the files in it: whole or absent, computed once, sized and clearable."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import time
from pathlib import Path

import platformdirs
import pytest
import torch
from safetensors.torch import save_file
from support.mishaps import flip
from support.weights import same_tensors

from alphaedit_plugin.errors import StatisticsError, StoreError
from alphaedit_plugin.storage import files, tensors
from alphaedit_plugin.storage.files import write_text
from alphaedit_plugin.storage.store import ENVIRONMENT, Store
from alphaedit_plugin.storage.tensors import read_tensors, write_tensors

RECIPE = {"model": "m", "layer": 3}
TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7)}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file.safetensors"
    write_tensors(path, TENSORS, {"who": "we"}, StatisticsError)
    return path


# ------------------------------------------------------------------------------------------------------ files


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


def test_text_is_written_atomically_too(tmp_path, monkeypatch):
    write_text(tmp_path / "a.json", "old é", StoreError)
    monkeypatch.setattr(files.os, "fsync", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error")))
    with pytest.raises(StoreError, match=r"a\.json"):
        write_text(tmp_path / "a.json", "new", StoreError)
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "old é"


def test_others_may_read_what_the_umask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "x", StoreError)
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


# ------------------------------------------------------------------------------------------------------ store


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
    (store.root / "locks" / "busy.lock").mkdir(parents=True)
    with pytest.raises(StoreError, match=str(store.root)), store.lock("busy"):
        pass
