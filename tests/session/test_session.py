"""A session is its history: undone, saved, killed and resumed, it is what those edits alone would have made it."""

from __future__ import annotations

import copy
import errno
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from support.mishaps import cut, flip
from support.paths import SUPPORT, TESTS
from support.processes import exit_code_of
from support.sessions import (
    BATCHES,
    CONTEXTS,
    FACTS,
    HYPERPARAMETERS,
    LAYERS,
    METHODS,
    assert_same_session,
    assert_state,
    covariances_of,
    edited,
    in_memory,
    large_targets,
    model_of_kind,
    reference,
    session_of,
    spaces_of,
    state,
    width_of,
    write,
)
from support.spaces import random_covariance, random_spaces
from support.tiny import tiny
from support.weights import assert_same, differ, everything
from transformers import AutoModelForCausalLM

from alphaedit_plugin.editors.hyperparameters import Hyperparameters
from alphaedit_plugin.errors import AlphaEditError, EditError, SessionError, WrongModelError
from alphaedit_plugin.model import loading
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.nullspace.null_spaces import NullSpaces
from alphaedit_plugin.nullspace.projection import Criterion, NullSpace
from alphaedit_plugin.nullspace.statistics import Preparation
from alphaedit_plugin.session.folder import MANIFEST
from alphaedit_plugin.session.patch import apply_patch, revert_patch
from alphaedit_plugin.session.session import Session
from alphaedit_plugin.storage import files, tensors
from alphaedit_plugin.storage.store import Store

IDS = torch.tensor([[5, 9, 11, 3, 77, 20], [1, 2, 3, 4, 90, 100]])
TRIALS = [(method, "llama") for method in METHODS] + [
    (method, kind)
    for kind, methods in {
        "gpt2": ("memit", "memit-seq+P", "rect+P", "prune+P", "alphaedit", "rome+P"),
        "llama bfloat16": ("memit+P", "memit-seq", "rect+P", "prune", "alphaedit", "rome"),
        "gpt2 float64": ("memit", "memit-seq", "memit-seq+P", "alphaedit"),
        "wide llama": ("memit+P", "memit-seq", "memit-seq+P", "alphaedit"),
    }.items()
    for method in methods
]
every_method = pytest.mark.parametrize("method", METHODS)
every_trial = pytest.mark.parametrize(("method", "kind"), TRIALS, ids=lambda value: value)


def raised(call: Callable[[], object]) -> BaseException | None:
    """The error of ours, or the interrupt, that a call ends with, if it does."""
    try:
        call()
    except (AlphaEditError, KeyboardInterrupt) as failure:
        return failure
    return None


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def manifest(folder: Path) -> dict:
    return json.loads((folder / MANIFEST).read_text())


def batch_files(folder: Path) -> list[Path]:
    """In the manifest's order."""
    return [folder / "batches" / name for name in manifest(folder)["batches"]]


def assert_folder_holds(folder: Path, expected: Session, kind: str = "llama") -> None:
    assert_same_session(Session.resume(folder, model_of_kind(kind)), expected)


# --------------------------------------------------------------------------------------------------------- undo


@every_trial
def test_undo_leaves_what_was_never_edited(method, kind, tokenizer):
    base = everything(model_of_kind(kind))
    editing = edited(kind, tokenizer, method, 0, 1, 2)
    assert differ(everything(editing.model), everything(reference(kind, tokenizer, method, 0, 1).model))
    undone = editing.undo()
    assert [fact.case_id for fact in undone] == [record["case_id"] for record in BATCHES[2]]
    assert_same_session(editing, reference(kind, tokenizer, method, 0, 1))
    write(editing, 3)
    assert_same_session(editing, reference(kind, tokenizer, method, 0, 1, 3))
    undone = editing.undo(2)
    assert [fact.case_id for fact in undone] == [record["case_id"] for record in BATCHES[1] + BATCHES[3]]
    assert_same_session(editing, reference(kind, tokenizer, method, 0))
    editing.undo(1)
    assert editing.facts == []
    assert in_memory(editing) == {}
    assert_same(everything(editing.model), base)
    write(editing, 4, 5)
    assert_same_session(editing, reference(kind, tokenizer, method, 4, 5))


@pytest.mark.parametrize("method", ["memit-seq", "alphaedit"])
def test_undo_from_more_facts_than_dimensions_to_fewer_is_exact_for_the_weights(method, tokenizer):
    """The memory is then formed anew: what is edited afterwards agrees up to rounding."""
    model = model_of_kind("gpt2 float64")
    editing = session_of(model, tokenizer, method, "gpt2 float64")
    fewer = session_of(model_of_kind("gpt2 float64"), tokenizer, method, "gpt2 float64")
    for seed in range(4):
        editing.edit(FACTS[:10], large_targets(model, 10, seed))
        if seed < 2:
            fewer.edit(FACTS[:10], large_targets(model, 10, seed))
    assert editing.editor.memory[0].count > width_of("gpt2 float64")
    editing.undo(2)
    assert 0 < editing.editor.memory[0].count < width_of("gpt2 float64")
    assert_same(everything(model), everything(fewer.model))
    for each in (editing, fewer):
        each.edit(FACTS[10:], large_targets(model, 6, 9))
    for layer, projection in fewer.projections.items():
        assert torch.allclose(editing.projections[layer].matrix, projection.matrix, rtol=0, atol=1e-8)


@pytest.mark.parametrize("batches", [4, 100, 0, -1, True, 1.0, "1", None])
@pytest.mark.parametrize("method", ["memit", "alphaedit", "prune"])
def test_undoing_what_there_is_not_is_refused_and_changes_nothing(method, batches, tokenizer, tmp_path):
    editing = session_of(model_of_kind(), tokenizer, method, autosave=tmp_path / "s")
    write(editing, 0, 1, 2)
    editing.finish()
    before, on_disk = state(editing), (tmp_path / "s" / MANIFEST).read_bytes()
    with pytest.raises(EditError, match="3"):
        editing.undo(batches)
    assert_state(editing, before)
    assert (tmp_path / "s" / MANIFEST).read_bytes() == on_disk


def test_a_session_without_edits_has_nothing_to_undo(tokenizer):
    with pytest.raises(EditError, match="0"):
        session_of(model_of_kind(), tokenizer, "memit").undo()


# ------------------------------------------------------------------------------------------------------- finish


@pytest.mark.parametrize("kind", ["llama", "gpt2", "llama bfloat16"])
@pytest.mark.parametrize("method", ["prune", "prune+P"])
def test_finishing_damps_once_and_is_taken_back_by_whatever_follows(method, kind, tokenizer):
    editing, untouched = (edited(kind, tokenizer, method, 0, 1, 2) for _ in range(2))
    editing.finish()
    assert editing.finished
    damped = everything(editing.model)
    assert differ(damped, everything(untouched.model)), "nothing was large enough to be damped"
    editing.finish()
    assert_same(everything(editing.model), damped)
    for each in (editing, untouched):
        write(each, 3)
    assert not editing.finished
    assert_same_session(editing, untouched)

    editing.finish()
    editing.undo()
    assert_same_session(editing, reference(kind, tokenizer, method, 0, 1, 2))
    editing.finish()
    assert_same(everything(editing.model), damped)
    editing.undo(3)
    assert_same(everything(editing.model), everything(model_of_kind(kind)))


@pytest.mark.parametrize("method", [method for method in METHODS if "prune" not in method])
def test_finishing_means_nothing_to_other_methods(method, tokenizer):
    editing = edited("llama", tokenizer, method, 0)
    before = state(editing)
    editing.finish()
    assert_state(editing, before)


def test_finishing_before_anything_was_edited_does_nothing(tokenizer):
    editing = session_of(model_of_kind(), tokenizer, "prune")
    before = state(editing)
    editing.finish()
    assert_state(editing, before)


def test_a_failed_edit_leaves_a_finished_session_finished(tokenizer):
    editing = edited("llama", tokenizer, "prune", 0, 1)
    editing.finish()
    before = state(editing)
    poison = large_targets(editing.model, 1, 0)
    poison.delta.fill_(torch.nan)
    with pytest.raises(EditError):
        editing.edit(FACTS[:1], poison)
    assert_state(editing, before)
    write(editing, 2)
    assert_same_session(editing, reference("llama", tokenizer, "prune", 0, 1, 2))


# ---------------------------------------------------------------------------------------------- save and resume


def contents(path: Path) -> tuple:
    with safe_open(path, "pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def assert_same_folder(found: Path, expected: Path) -> None:
    """The same manifest but for the names of files, and the same in these."""
    ours, theirs = manifest(found), manifest(expected)
    assert len(ours.pop("batches")) == len(theirs.pop("batches"))
    assert ours == theirs
    for one, other in zip(batch_files(found), batch_files(expected), strict=True):
        (metadata, tensors), (other_metadata, other_tensors) = contents(one), contents(other)
        assert metadata == other_metadata
        assert tensors.keys() == other_tensors.keys()
        assert all(torch.equal(tensor, other_tensors[name]) for name, tensor in tensors.items())


@every_trial
def test_a_resumed_session_goes_on_bit_for_bit(method, kind, tokenizer, tmp_path):
    whole = edited(kind, tokenizer, method, *range(10))
    first = reference(kind, tokenizer, method, *range(6))
    first.save(tmp_path / "half")
    model = model_of_kind(kind)
    second = Session.resume(tmp_path / "half", model)
    assert_same_session(second, first)
    write(second, *range(6, 10))
    assert_same_session(second, whole)
    whole.save(tmp_path / "whole")
    assert_same_folder(tmp_path / "half", tmp_path / "whole")
    second.undo(4)
    assert_same_session(second, first)


@pytest.mark.parametrize("method", ["memit-seq", "alphaedit"])
def test_a_session_of_more_facts_than_dimensions_goes_on_bit_for_bit(method, tokenizer, tmp_path):
    kind = "gpt2 float64"

    def go_on(session: Session, seeds: range) -> Session:
        for seed in seeds:
            session.edit(FACTS[:7], large_targets(session.model, 7, seed))
        return session

    whole = go_on(session_of(model_of_kind(kind), tokenizer, method, kind), range(6))
    go_on(session_of(model_of_kind(kind), tokenizer, method, kind), range(4)).save(tmp_path / "s")
    resumed = go_on(Session.resume(tmp_path / "s", model_of_kind(kind)), range(4, 6))
    assert resumed.editor.memory[0].count > width_of(kind)
    assert_same_session(resumed, whole)


@pytest.mark.parametrize("given", [False, True], ids=["the folder's", "given"])
def test_the_tokenizer_is_the_folders_or_the_one_given(given, tokenizer, bos_tokenizer, tmp_path):
    edited("llama", bos_tokenizer, "alphaedit", 0).save(tmp_path / "s")
    if given:
        shutil.rmtree(tmp_path / "s" / "tokenizer")
    resumed = Session.resume(tmp_path / "s", model_of_kind(), bos_tokenizer if given else None)
    assert (resumed.tokenizer is bos_tokenizer) == given
    assert resumed.tokenizer("The king")["input_ids"] == bos_tokenizer("The king")["input_ids"]
    assert resumed.tokenizer("The king")["input_ids"] != tokenizer("The king")["input_ids"]
    write(resumed, 1)
    assert_same_session(resumed, reference("llama", bos_tokenizer, "alphaedit", 0, 1))


def test_context_templates_that_the_model_wrote_itself_are_kept(tokenizer, tmp_path):
    """The edited model would write others."""
    first = session_of(model_of_kind(), tokenizer, "memit", contexts=None)
    first.edit(FACTS[:2], large_targets(first.model, 2, 0))
    first.save(tmp_path / "s")
    resumed = Session.resume(tmp_path / "s", model_of_kind())
    assert len(first.editor.contexts) > 1
    assert resumed.editor.contexts == first.editor.contexts
    fresh = session_of(first.model, tokenizer, "memit", contexts=None)
    assert fresh.editor.contexts != first.editor.contexts


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"rewrite_module_tmp": "model.layers.{}.mlp.down_proj"},
        {"context_template_length_params": [[5, 10], [10, 10]], "mom2_adjustment": False, "reduced_precision": True},
        {"null_space": {"energy": 0.25}, "kl_factor": 0.0, "v_num_grad_steps": 7},
    ],
    ids=lambda values: ", ".join(values) or "defaults",
)
@pytest.mark.parametrize("method", ["memit", "rome@v_lr=0.25+P", "memit@mom2_update_weight=0+rect"])
def test_every_setting_is_resumed(method, values, tokenizer, tmp_path):
    chosen = Hyperparameters.from_mapping({"layers": [0, 1], **values}, "a test")
    assert {**chosen.as_dict(), **values} == chosen.as_dict(), "a setting is not even read"
    first = session_of(model_of_kind(), tokenizer, method, hyperparameters=chosen)
    first.save(tmp_path / "s")
    resumed = Session.resume(tmp_path / "s", model_of_kind())
    assert resumed.variant == first.variant
    assert resumed.hyperparameters == first.hyperparameters


def test_a_session_that_edits_another_module_is_resumed_there(tokenizer, tmp_path):
    template = "model.layers.{}.self_attn.o_proj"
    chosen = Hyperparameters(layers=(0, 1), v_num_grad_steps=3, rewrite_module_tmp=template)
    covariances = {layer: random_covariance(16, layer) for layer in (0, 1)}
    spaces = {layer: NullSpace.of(covariance, Criterion(nullity=8)) for layer, covariance in covariances.items()}
    provenance = {**random_spaces(model_of_kind(), (0, 1)).provenance, "template": template}
    model = model_of_kind()
    first = Session(
        model, tokenizer, "memit+P", NullSpaces(spaces, provenance), hyperparameters=chosen, covariances=covariances,
        autosave=tmp_path / "s",
    )  # fmt: skip
    first.edit(FACTS[:2])
    assert differ(everything(model), everything(model_of_kind()))
    assert_folder_holds(tmp_path / "s", first)


def test_a_session_without_edits_is_saved_and_resumed(tokenizer, tmp_path):
    session_of(model_of_kind(), tokenizer, "alphaedit").save(tmp_path / "s")
    resumed = Session.resume(tmp_path / "s", model_of_kind())
    assert resumed.facts == []
    write(resumed, 0, 1)
    assert_same_session(resumed, reference("llama", tokenizer, "alphaedit", 0, 1))


@pytest.mark.parametrize("method", ["memit-seq", "rect+P", "alphaedit", "prune+P"])
@pytest.mark.parametrize("autosave", [False, True], ids=["saved", "saves itself"])
def test_a_session_is_resumed_after_undoing(autosave, method, tokenizer, tmp_path):
    first = session_of(model_of_kind(), tokenizer, method, autosave=tmp_path / "s" if autosave else None)
    write(first, 0, 1, 2)
    first.undo(2)
    write(first, 4)
    if not autosave:
        first.save(tmp_path / "s")
    resumed = Session.resume(tmp_path / "s", model_of_kind())
    assert_same_session(resumed, reference("llama", tokenizer, method, 0, 4))
    resumed.undo()
    write(resumed, 1, 2)
    assert_same_session(resumed, reference("llama", tokenizer, method, 0, 1, 2))
    assert_folder_holds(tmp_path / "s", resumed)


@pytest.mark.parametrize("kind", ["llama", "llama bfloat16"])
@pytest.mark.parametrize("method", ["prune", "prune+P"])
def test_a_finished_session_is_resumed_damped_and_goes_on_undamped(method, kind, tokenizer, tmp_path):
    first = edited(kind, tokenizer, method, 0, 1)
    undamped = everything(first.model)
    first.finish()
    first.save(tmp_path / "s")
    resumed = Session.resume(tmp_path / "s", model_of_kind(kind))
    assert resumed.finished
    assert_same_session(resumed, first)
    assert differ(everything(resumed.model), undamped)
    write(resumed, 2)
    assert_same_session(resumed, reference(kind, tokenizer, method, 0, 1, 2))
    assert not Session.resume(tmp_path / "s", model_of_kind(kind)).finished
    resumed.undo()
    assert_same(everything(resumed.model), undamped)


def test_what_was_resumed_goes_on_saving_itself_in_its_folder(tokenizer, tmp_path):
    edited("llama", tokenizer, "alphaedit", 0).save(tmp_path / "s")
    for number in (1, 2):
        write(Session.resume(tmp_path / "s", model_of_kind()), number)
    assert_folder_holds(tmp_path / "s", reference("llama", tokenizer, "alphaedit", 0, 1, 2))


def test_a_moved_folder_is_resumed_where_it_is(tokenizer, tmp_path):
    first = session_of(model_of_kind(), tokenizer, "alphaedit", autosave=tmp_path / "s")
    write(first, 0)
    (tmp_path / "s").rename(tmp_path / "moved")
    resumed = Session.resume(tmp_path / "moved", model_of_kind())
    write(resumed, 1)
    assert_folder_holds(tmp_path / "moved", resumed)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("method", ["memit+P", "alphaedit"])
def test_a_session_that_saves_itself_can_be_saved_to_a_second_place_too(method, tokenizer, tmp_path):
    first = session_of(model_of_kind(), tokenizer, method, autosave=tmp_path / "here")
    write(first, 0, 1)
    first.save(tmp_path / "there")
    assert_folder_holds(tmp_path / "there", first)
    assert_folder_holds(tmp_path / "here", first)
    resumed = Session.resume(tmp_path / "here", model_of_kind())
    shutil.rmtree(tmp_path / "there")
    resumed.save(tmp_path / "there")
    shutil.rmtree(tmp_path / "here")
    assert_folder_holds(tmp_path / "there", first)


@pytest.mark.parametrize("method", ["memit+P", "alphaedit"])
def test_saving_over_another_session_is_refused_or_replaces_all_of_it(method, tokenizer, tmp_path):
    """Never this one's edits with that one's null spaces."""
    edited("llama", tokenizer, "alphaedit", 0, 1).save(tmp_path / "s")
    other = Session(
        model_of_kind(), tokenizer, method, random_spaces(model_of_kind(), LAYERS, nullity=9, seed=50),
        hyperparameters=HYPERPARAMETERS, covariances=covariances_of(), contexts=("{}",),
    )  # fmt: skip
    write(other, 2)
    refused = raised(lambda: other.save(tmp_path / "s"))
    if refused is not None:
        assert isinstance(refused, SessionError)
        assert str(tmp_path / "s") in str(refused)
        assert_folder_holds(tmp_path / "s", reference("llama", tokenizer, "alphaedit", 0, 1))
        return
    assert_folder_holds(tmp_path / "s", other)
    resumed = Session.resume(tmp_path / "s", model_of_kind())
    for each in (resumed, other):
        write(each, 3)
    assert_same_session(resumed, other)


def test_a_folder_that_holds_a_session_is_not_taken_for_another(tokenizer, tmp_path):
    first = edited("llama", tokenizer, "alphaedit", 0)
    first.save(tmp_path / "s")
    model = model_of_kind()
    with pytest.raises(SessionError, match=str(tmp_path / "s")):
        session_of(model, tokenizer, "alphaedit", autosave=tmp_path / "s")
    assert_same(everything(model), everything(model_of_kind()))
    assert_folder_holds(tmp_path / "s", first)


def identities(folder: Path) -> dict[Path, tuple]:
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in batch_files(folder)}


@pytest.mark.parametrize("autosave", [False, True], ids=["saved", "saves itself"])
def test_batches_saved_before_are_not_written_again_and_those_undone_disappear(autosave, tokenizer, tmp_path):
    editing = session_of(model_of_kind(), tokenizer, "alphaedit", autosave=tmp_path / "s" if autosave else None)

    def saved(*_: object) -> dict[Path, tuple]:
        if not autosave:
            editing.save(tmp_path / "s")
        found = identities(tmp_path / "s")
        assert sorted(found) == sorted((tmp_path / "s" / "batches").iterdir()), "nothing else is there"
        return found

    two = saved(write(editing, 0, 1))
    three = saved(write(editing, 2))
    assert two.items() <= three.items()
    one = saved(editing.undo(2))
    assert one.items() <= two.items()
    again = saved(write(editing, 3))
    assert one.items() <= again.items()
    assert len(again) == 2
    resumed = Session.resume(tmp_path / "s", model_of_kind())
    write(resumed, 4)
    assert again.items() <= identities(tmp_path / "s").items()


def test_a_session_is_saved_with_relative_paths_as_with_absolute_ones(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = session_of(model_of_kind(), tokenizer, "alphaedit", autosave="a/s")
    write(first, 0)
    first.save(tmp_path / "a" / "s")
    assert_folder_holds(tmp_path / "a" / "s", first)


# -------------------------------------------------------------------------------------------- killed, for real


@pytest.mark.parametrize("method", ["alphaedit"])
def test_a_process_killed_after_six_of_ten_batches_is_resumed_bit_for_bit(method, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    child = subprocess.Popen(
        [
            sys.executable, SUPPORT / "session_child.py",
            "llama", method, tmp_path / "tokenizer", tmp_path / "s", "0", "10",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)},
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    with child:
        for number in range(6):
            assert child.stdout.readline() == f"{number}\n"
            if number < 5:
                child.stdin.write("\n")
                child.stdin.flush()
        child.kill()
    assert child.returncode == -signal.SIGKILL
    resumed = Session.resume(tmp_path / "s", model_of_kind())
    assert len(resumed.batches) == 6
    write(resumed, *range(6, 10))
    assert_same_session(resumed, reference("llama", tokenizer, method, *range(10)))


def _steps() -> Iterator[tuple[object, str]]:
    """Every call by which an edit reaches the disk."""
    yield files.tempfile, "mkstemp"
    yield tensors, "save_file"
    yield Path, "write_text"
    yield files.os, "fsync"
    yield files.os, "replace"
    yield Path, "mkdir"


@contextmanager
def failing(at: int, fail: Callable[[], object], *, after: bool = False) -> Iterator[list[str]]:
    """In the block, step number `at` fails, halfway through its file or right `after`. Yields the steps taken."""
    taken: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in _steps():
            original = getattr(owner, name)

            def step(*args, _original=original, _name=name, **kwargs):
                taken.append(_name)
                mine = len(taken) - 1 == at
                writes = _name in ("save_file", "write_text")
                if mine and not after and not writes:
                    fail()
                result = _original(*args, **kwargs)
                if mine and not after:
                    path = Path(args[1] if _name == "save_file" else args[0])
                    os.truncate(path, path.stat().st_size // 2)
                if mine:
                    fail()
                return result

            patch.setattr(owner, name, step)
        yield taken


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("method", ["rect+P", "alphaedit"])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_process_killed_while_it_writes_weights_is_resumed_bit_for_bit(layer, method, tokenizer, tmp_path):
    """In the middle of the seventh batch."""

    def work() -> None:
        editing = session_of(model_of_kind(), tokenizer, method, autosave=tmp_path / "s")
        write(editing, *range(6))
        once = editing.editor.write

        def then_die(projection, update):
            once(projection, update)
            if update.layer == layer:
                kill()

        editing.editor.write = then_die
        write(editing, 6)

    assert exit_code_of(work) == -signal.SIGKILL
    resumed = Session.resume(tmp_path / "s", model_of_kind())
    assert_same_session(resumed, reference("llama", tokenizer, method, *range(6)))
    write(resumed, *range(6, 10))
    assert_same_session(resumed, reference("llama", tokenizer, method, *range(10)))


def test_a_process_killed_at_any_moment_of_saving_is_resumed_bit_for_bit(tokenizer, tmp_path):
    """Before or after every single call: the folder holds six batches or seven, and nothing gets in the way later."""
    ten = reference("llama", tokenizer, "alphaedit", *range(10))
    edited("llama", tokenizer, "alphaedit", *range(6)).save(tmp_path / "six")
    found = set()
    for moment in range(100):

        def work(at: int = moment // 2, after: bool = moment % 2 == 1) -> None:
            editing = Session.resume(tmp_path / "s", model_of_kind())
            with failing(at, kill, after=after):
                write(editing, 6)

        shutil.copytree(tmp_path / "six", tmp_path / "s")
        if not exit_code_of(work):
            break
        resumed = Session.resume(tmp_path / "s", model_of_kind())
        found.add(len(resumed.batches))
        write(resumed, *range(len(resumed.batches), 10))
        assert_same_session(resumed, ten)
        assert sorted(batch_files(tmp_path / "s")) == sorted((tmp_path / "s" / "batches").iterdir())
        shutil.rmtree(tmp_path / "s")
    assert moment >= 16, "there are at least eight steps"
    assert found == {6, 7}


# ------------------------------------------------------------------------------------ a disk that does not take it


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt() -> None:
    raise KeyboardInterrupt


def assert_saying_so(failure: BaseException, fail: Callable[[], None], folder: Path) -> None:
    if fail is interrupt:
        assert isinstance(failure, KeyboardInterrupt)
        return
    assert isinstance(failure, SessionError)
    assert "No space left" in str(failure)
    assert str(folder) in str(failure)


CALLS: dict[str, Callable[[Session], object]] = {
    "edit": lambda session: write(session, 2),
    "undo": lambda session: session.undo(),
    "finish": lambda session: session.finish(),
    "edit after finish": lambda session: write(session, 2),
}


@pytest.mark.parametrize("fail", [full, interrupt])
@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_cannot_be_saved_changes_nothing_in_memory_or_on_disk(call, fail, tokenizer, tmp_path):
    """Whichever step it is that fails. Then the disk is free again, and the same call does all of its work."""
    editing = session_of(model_of_kind(), tokenizer, "prune+P", autosave=tmp_path / "s")
    write(editing, 0, 1)
    if call == "edit after finish":
        editing.finish()
    before, on_disk = state(editing), (tmp_path / "s" / MANIFEST).read_bytes()
    for step in range(100):
        with failing(step, fail) as taken:
            failure = raised(lambda: CALLS[call](editing))
        if failure is None:
            break
        assert_saying_so(failure, fail, tmp_path / "s")
        assert len(taken) == step + 1, "the call went on"
        assert_state(editing, before)
        assert (tmp_path / "s" / MANIFEST).read_bytes() == on_disk
        assert_folder_holds(tmp_path / "s", editing)
    assert step >= 4, "there are at least so many steps"
    assert differ(everything(editing.model), before[0])
    expected = edited("llama", tokenizer, "prune+P", *{"undo": (0,), "finish": (0, 1)}.get(call, (0, 1, 2)))
    if call == "finish":
        expected.finish()
    assert_same_session(editing, expected)
    assert_folder_holds(tmp_path / "s", expected)
    assert sorted(batch_files(tmp_path / "s")) == sorted((tmp_path / "s" / "batches").iterdir())


@pytest.mark.parametrize("fail", [full, interrupt])
@pytest.mark.parametrize("method", ["memit", "memit+P", "alphaedit"])
def test_a_first_save_that_fails_leaves_the_session_as_it_was_and_no_session_on_disk(method, fail, tokenizer, tmp_path):
    """Statistics, null spaces and tokenizer are written then, too."""
    editing = session_of(model_of_kind(), tokenizer, method, autosave=tmp_path / "s")
    before = state(editing)
    for step in range(100):
        with failing(step, fail):
            failure = raised(lambda: write(editing, 0))
        if failure is None:
            break
        assert_saying_so(failure, fail, tmp_path / "s")
        assert_state(editing, before)
        with pytest.raises(SessionError, match="no session"):
            Session.resume(tmp_path / "s", model_of_kind())
    assert step >= 8
    assert_same_session(editing, reference("llama", tokenizer, method, 0))
    assert_folder_holds(tmp_path / "s", editing)


def test_an_interrupt_right_after_any_step_leaves_a_whole_session_behind(tokenizer, tmp_path):
    """Memory is as before; the folder may have got further, but holds one of the two, and the next call mends it."""
    editing = session_of(model_of_kind(), tokenizer, "alphaedit", autosave=tmp_path / "s")
    write(editing, 0, 1)
    two, three = state(editing), reference("llama", tokenizer, "alphaedit", 0, 1, 2)
    for step in range(100):
        with failing(step, interrupt, after=True):
            failure = raised(lambda: write(editing, 2))
        if failure is None:
            break
        assert_state(editing, two)
        on_disk = Session.resume(tmp_path / "s", model_of_kind())
        assert_same_session(on_disk, editing if len(on_disk.batches) == 2 else three)
    assert step >= 4
    assert_same_session(editing, three)
    assert_folder_holds(tmp_path / "s", three)


@pytest.mark.parametrize("after", [False, True], ids=["halfway", "right after"])
def test_a_save_of_another_history_that_is_interrupted_leaves_the_one_or_the_other(after, tokenizer, tmp_path):
    """The batches that were undone since have the numbers of the new ones; their files are needed to the last."""
    old, new = (reference("llama", tokenizer, "alphaedit", *numbers) for numbers in ((0, 1, 2), (0, 3, 4)))
    editing = edited("llama", tokenizer, "alphaedit", 0, 1, 2)
    editing.save(tmp_path / "s")
    editing.undo(2)
    write(editing, 3, 4)
    found = set()
    for step in range(100):
        with failing(step, interrupt, after=after):
            failure = raised(lambda: editing.save(tmp_path / "s"))
        on_disk = Session.resume(tmp_path / "s", model_of_kind())
        found.add(len(on_disk.facts))
        assert_same_session(on_disk, old if on_disk.facts == old.facts else new)
        if failure is None:
            break
    assert step >= 4
    assert_same_session(on_disk, new)
    assert found == {len(old.facts), len(new.facts)}
    assert len(found) == 2


@pytest.mark.parametrize("fail", [full, interrupt])
def test_what_goes_wrong_while_tidying_up_is_no_error_of_the_disks_and_is_mended(
    fail, tokenizer, tmp_path, monkeypatch
):
    """When the file of an undone batch is removed, the folder holds the new state already."""
    editing = session_of(model_of_kind(), tokenizer, "alphaedit", autosave=tmp_path / "s")
    write(editing, 0, 1)
    unlink = Path.unlink

    def failing_unlink(path: Path, *args: object, **kwargs: object) -> None:
        if path.parent.name == "batches" and not path.name.startswith("."):
            fail()
        unlink(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", failing_unlink)
        failure = raised(editing.undo)
    if failure is not None:
        assert isinstance(failure, SessionError) == (fail is full)
        assert_same_session(editing, reference("llama", tokenizer, "alphaedit", 0, 1))
    if fail is full:
        assert_folder_holds(tmp_path / "s", editing)
    write(editing, 2)
    assert_folder_holds(tmp_path / "s", editing)
    assert sorted(batch_files(tmp_path / "s")) == sorted((tmp_path / "s" / "batches").iterdir())


@pytest.mark.parametrize("method", ["memit", "memit+P", "alphaedit", "rome"])
def test_a_place_that_cannot_be_written_is_a_session_error(method, tokenizer, tmp_path):
    (tmp_path / "file").write_text("in the way")
    editing = edited("llama", tokenizer, method, 0)
    before = state(editing)
    with pytest.raises(SessionError, match="file"):
        editing.save(tmp_path / "file")
    assert_state(editing, before)
    assert (tmp_path / "file").read_text() == "in the way"


# -------------------------------------------------------------------------------------- what cannot be resumed


def rewritten(path: Path, **changes: object) -> None:
    values = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            del values[key]
        else:
            values[key] = value
    path.write_text(json.dumps(values))


FIRST = "batches/000000.safetensors"
DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "no folder": (MANIFEST, lambda path: shutil.rmtree(path.parent)),
    "no manifest": (MANIFEST, Path.unlink),
    "an empty manifest": (MANIFEST, lambda path: cut(path, 0)),
    "half a manifest": (MANIFEST, cut),
    "nearly all of a manifest": (MANIFEST, lambda path: cut(path, 0.99)),
    "a manifest that is no text": (MANIFEST, lambda path: path.write_bytes(b"\xff\xfe\x00")),
    "a manifest that is a list": (MANIFEST, lambda path: path.write_text("[]")),
    "a manifest of nothing": (MANIFEST, lambda path: path.write_text("{}")),
    "a manifest of another format": (MANIFEST, lambda path: rewritten(path, format=2)),
    "a manifest of just a format": (MANIFEST, lambda path: path.write_text('{"format": 1}')),
    **{
        f"a manifest without {key}": (MANIFEST, lambda path, key=key: rewritten(path, **{key: None}))
        for key in (
            "format", "method", "model", "dtype", "fingerprints", "hyperparameters", "contexts", "finished", "weights",
            "batches",
        )
    },
    "an unknown method": (MANIFEST, lambda path: rewritten(path, method="magic")),
    "unknown hyperparameters": (MANIFEST, lambda path: rewritten(path, hyperparameters={"layers": [0], "v_rl": 1})),
    "no batch": (FIRST, Path.unlink),
    "an empty batch": (FIRST, lambda path: cut(path, 0)),
    "half a batch": (FIRST, cut),
    "a flipped bit in a batch": (FIRST, flip),
    "null spaces in place of a batch": (
        FIRST, lambda path: shutil.copy(path.parents[1] / "null_spaces.safetensors", path)
    ),
    "no null spaces": ("null_spaces.safetensors", Path.unlink),
    "half the null spaces": ("null_spaces.safetensors", cut),
    "a flipped bit in the null spaces": ("null_spaces.safetensors", flip),
    "no covariances": ("covariances.safetensors", Path.unlink),
    "half the covariances": ("covariances.safetensors", cut),
    "a flipped bit in the covariances": ("covariances.safetensors", flip),
    "null spaces in place of covariances": (
        "covariances.safetensors", lambda path: shutil.copy(path.with_name("null_spaces.safetensors"), path)
    ),
    "no tokenizer": ("tokenizer", shutil.rmtree),
    "half a tokenizer": ("tokenizer/tokenizer.json", cut),
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "s"
    edited("llama", tokenizer, "memit+P", 0, 1).save(folder)
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_session_is_an_error_that_names_the_file_and_leaves_the_model_alone(damage, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "s")
    name, apply = DAMAGES[damage]
    apply(tmp_path / "s" / name)
    model = model_of_kind()
    with pytest.raises(AlphaEditError) as caught:
        Session.resume(tmp_path / "s", model)
    assert str(tmp_path / "s" / name.partition("/tokenizer.json")[0]) in str(caught.value)
    assert_same(everything(model), everything(model_of_kind()))


def test_a_tokenizer_that_is_not_there_is_not_looked_for_on_the_network(saved, tmp_path, monkeypatch):
    """A relative path looks like the name of a repository."""
    shutil.copytree(saved, tmp_path / "s", ignore=shutil.ignore_patterns("tokenizer"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the network was asked"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SessionError, match="s/tokenizer"):
        Session.resume("s", model_of_kind())


def named(name: str, model):
    model.config._name_or_path = name
    return model


def edited_elsewhere():
    model = model_of_kind()
    Decoder(model).out_projection(1).matrix[0, 0] += 1
    return model


STRANGERS = {
    "another seed": lambda: model_of_kind(seed=1),
    "another precision": lambda: model_of_kind(dtype=torch.bfloat16),
    "an edited one": edited_elsewhere,
    "fewer layers": lambda: model_of_kind(num_hidden_layers=2),
    "another width": lambda: model_of_kind(intermediate_size=32),
    "another architecture": lambda: tiny("gpt2", vocab_size=512),
}


@pytest.mark.parametrize("stranger", STRANGERS)
@pytest.mark.parametrize("method", ["memit", "alphaedit"])
def test_another_model_is_refused_naming_both(method, stranger, tokenizer, tmp_path):
    first = session_of(named("acme/base", model_of_kind()), tokenizer, method)
    write(first, 0)
    first.save(tmp_path / "s")
    model = named("acme/other", STRANGERS[stranger]())
    before = everything(model)
    with pytest.raises(WrongModelError) as caught:
        Session.resume(tmp_path / "s", model)
    assert "acme/base" in str(caught.value)
    assert "acme/other" in str(caught.value)
    assert_same(everything(model), before)


def test_the_models_name_and_the_layers_above_do_not_matter(tokenizer, tmp_path):
    first = edited("llama", tokenizer, "alphaedit", 0)
    first.save(tmp_path / "s")
    model = named("another/name", model_of_kind())
    Decoder(model).out_projection(3).matrix[0, 0] += 1
    resumed = Session.resume(tmp_path / "s", model)
    assert resumed.facts == first.facts
    for layer, projection in first.projections.items():
        assert torch.equal(resumed.projections[layer].matrix, projection.matrix)
    resumed.undo()
    resumed.edit(FACTS[:1])
    again = Session.resume(tmp_path / "s", named("a third/name", model_of_kind()))
    assert again.facts == resumed.facts
    again.save(tmp_path / "s")


def test_a_model_that_was_forced_can_be_edited_further(tokenizer, tmp_path):
    edited("llama", tokenizer, "alphaedit", 0).save(tmp_path / "s")
    resumed = Session.resume(tmp_path / "s", model_of_kind(seed=1), check_model=False)
    write(resumed, 1)
    again = Session.resume(tmp_path / "s", model_of_kind(seed=1), check_model=False)
    assert_same_session(again, resumed)


def test_another_model_may_be_forced_and_the_difference_is_said(tokenizer, tmp_path, caplog):
    first = edited("llama", tokenizer, "alphaedit", 0, 1)
    first.save(tmp_path / "s")
    other = model_of_kind(seed=1)
    with caplog.at_level(logging.WARNING):
        resumed = Session.resume(tmp_path / "s", other, check_model=False)
    assert str(tmp_path / "s") in caplog.text
    for layer, projection in resumed.projections.items():
        moved = projection.matrix - resumed.base[layer]
        assert torch.allclose(moved, first.projections[layer].matrix - first.base[layer], atol=1e-5)
        assert float(moved.norm()) > 0
    resumed.undo(2)
    assert_same(everything(other), everything(model_of_kind(seed=1)))


def test_a_resumption_that_fails_halfway_leaves_the_model_as_it_was(saved, monkeypatch):
    model = model_of_kind()

    def poisoned(projection, update) -> None:
        projection.matrix.fill_(torch.nan)

    monkeypatch.setattr("alphaedit_plugin.editors.update.Write.__call__", lambda self, *args: poisoned(*args))
    with pytest.raises(AlphaEditError):
        Session.resume(saved, model)
    assert_same(everything(model), everything(model_of_kind()))


# ------------------------------------------------------------------------------------------- with nothing else given


def assert_reported_inside(session: Session) -> None:
    """Rounding W to its own precision is all that leads out of the null spaces."""
    report = session.report()
    assert set(report.outside) == set(report.drift)
    for layer, share in report.outside.items():
        assert 0 <= share < 4 * torch.finfo(session.model.dtype).eps / report.drift[layer]


def with_small_keys():
    """Keys with variances around the paper's threshold, as real models have them, so that some directions are null."""
    model = model_of_kind()
    for block in Decoder(model).blocks:
        block.mlp.up_proj.weight *= 0.2
    return model


@pytest.mark.parametrize("method", ["alphaedit", "memit+P"])
def test_everything_a_method_needs_is_prepared_once(method, tokenizer, monkeypatch):
    """No hyperparameters, no statistics, no null spaces, no contexts: they are derived, written and stored."""
    model = with_small_keys()
    editing = Session(model, tokenizer, method)
    editing.edit(FACTS[:3])
    assert differ(everything(model), everything(with_small_keys()))
    assert set(editing.report().outside) == set(editing.hyperparameters.layers)
    assert_reported_inside(editing)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("this is in the store")

    monkeypatch.setattr("alphaedit_plugin.nullspace.statistics.collect", never)
    monkeypatch.setattr("alphaedit_plugin.model.sampling.self_written", never)
    monkeypatch.setattr(NullSpace, "of", never)
    again = Session(with_small_keys(), tokenizer, method)
    again.edit(FACTS[:3])
    assert_same_session(again, editing)


@pytest.mark.parametrize("method", ["memit", "alphaedit", "prune+P"])
def test_what_was_prepared_is_saved_with_the_session(method, tokenizer, tmp_path, monkeypatch):
    """A resumed session needs no store."""
    chosen = Hyperparameters(layers=(1, 2), v_num_grad_steps=3, null_space=Criterion(nullity=0.5))
    first = Session(model_of_kind(), tokenizer, method, hyperparameters=chosen, autosave=tmp_path / "s")
    first.edit(FACTS[:2])
    monkeypatch.setenv("ALPHAEDIT_CACHE", str(tmp_path / "another"))
    resumed = Session.resume(tmp_path / "s", model_of_kind())
    assert_same_session(resumed, first)
    for each in (first, resumed):
        each.edit(FACTS[2:4])
    assert_same_session(resumed, first)
    assert not (tmp_path / "another").exists()


@pytest.mark.parametrize(("method", "more"), [("rome", set()), ("alphaedit", {"null-space"})])
def test_nothing_is_prepared_that_the_method_does_not_need(method, more, tokenizer, tmp_path):
    store = Store(tmp_path / "store")
    chosen = Hyperparameters(layers=(1,), v_num_grad_steps=3, null_space=Criterion(nullity=0.5))
    Session(model_of_kind(), tokenizer, method, hyperparameters=chosen, preparation=Preparation(store=store))
    assert {entry.kind for entry in store.entries()} == {"text", "covariance"} | more
    assert not (tmp_path / "alphaedit-cache").exists()


def test_given_statistics_and_null_spaces_are_used_as_they_are(tokenizer, monkeypatch):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("everything was given")

    monkeypatch.setattr(Preparation, "statistics", never)
    for method in METHODS:
        write(session_of(model_of_kind(), tokenizer, method), 0)
    only_spaces = Session(model_of_kind(), tokenizer, "alphaedit", spaces_of(), hyperparameters=HYPERPARAMETERS)
    only_spaces.edit(FACTS[:1])
    assert only_spaces.report().leakage == {}
    assert set(only_spaces.report().outside) == set(LAYERS)


# ------------------------------------------------------------------------------------------------------- the report


@pytest.mark.parametrize("kind", ["llama", "gpt2", "llama bfloat16"])
@every_method
def test_the_report_is_what_the_weights_say(method, kind, tokenizer):
    editing = edited(kind, tokenizer, method, 0, 1)
    editing.finish()
    before, after = (Decoder(model).out_projections(list(LAYERS)) for model in (model_of_kind(kind), editing.model))
    report = editing.report()
    assert (report.method, report.edits, report.batches) == (method, 3, 2)
    layers = set(editing.hyperparameters.layers)
    assert set(report.drift) == set(report.leakage) == layers
    for layer in layers:
        start, now = before[layer].matrix.double(), after[layer].matrix.double()
        delta, c = now - start, covariances_of(kind)[layer].matrix
        assert report.drift[layer] == pytest.approx(float(delta.norm() / start.norm()))
        assert report.drift[layer] > 0
        moved, output = (torch.trace(matrix @ c @ matrix.T) for matrix in (delta, start))
        assert report.leakage[layer] == pytest.approx(float((moved / output).sqrt()), rel=1e-6)
        if layer in report.outside:
            beyond = delta - delta @ spaces_of(kind)[layer].dense()
            assert report.outside[layer] == pytest.approx(float(beyond.norm() / delta.norm()), rel=1e-3, abs=1e-6)
    if editing.variant.projected:
        assert_reported_inside(editing)


@pytest.mark.parametrize("method", ["memit", "rect", "rome"])
def test_plain_edits_that_are_given_null_spaces_are_reported_outside_of_them(method, tokenizer):
    report = edited("llama", tokenizer, method, 0, 1).report()
    assert set(report.outside) == set(report.drift)
    for layer, share in report.outside.items():
        assert share > 100 * torch.finfo(torch.float32).eps / report.drift[layer]


def test_a_report_without_edits_is_all_zeros(tokenizer):
    report = session_of(model_of_kind(), tokenizer, "alphaedit").report()
    assert (report.edits, report.batches) == (0, 0)
    for values in (report.drift, report.leakage, report.outside):
        assert list(values.values()) == [0.0] * len(LAYERS)


@every_method
def test_a_resumed_session_reports_the_same(method, tokenizer, tmp_path):
    """But for what the method does not need and so is not saved: AlphaEdit's covariances, null spaces of plain ones."""
    first = edited("llama", tokenizer, method, 0, 1)
    first.save(tmp_path / "s")
    found, expected = Session.resume(tmp_path / "s", model_of_kind()).report(), first.report()
    if not first.variant.needs_covariances and not found.leakage:
        expected = replace(expected, leakage={})
    if not first.variant.projected and not found.outside:
        expected = replace(expected, outside={})
    assert found == expected


# ------------------------------------------------------------------------------------------------------- exports


@every_trial
def test_a_patch_is_the_session_bit_for_bit_and_back(method, kind, tokenizer, tmp_path):
    editing = edited(kind, tokenizer, method, 0, 1, 2)
    editing.undo()
    model = model_of_kind(kind)
    for finish in (False, True):
        if finish:
            editing.finish()
        editing.to_patch(tmp_path / "p.safetensors")
        about = apply_patch(model, tmp_path / "p.safetensors")
        assert_same(everything(model), everything(editing.model))
        assert about["method"] == method
        assert [fact["case_id"] for fact in about["facts"]] == [fact.case_id for fact in editing.facts]
        revert_patch(model, tmp_path / "p.safetensors")
        assert_same(everything(model), everything(model_of_kind(kind)))


@pytest.mark.parametrize("method", ["memit+P", "alphaedit"])
def test_a_patch_is_the_same_from_a_resumed_session(method, tokenizer, tmp_path):
    first = edited("wide llama", tokenizer, method, 0, 1)
    first.save(tmp_path / "s")
    first.to_patch(tmp_path / "first.safetensors")
    Session.resume(tmp_path / "s", model_of_kind("wide llama")).to_patch(tmp_path / "second.safetensors")
    (metadata, tensors), (expected, expected_tensors) = (
        contents(tmp_path / f"{n}.safetensors") for n in ("second", "first")
    )
    assert metadata == expected
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected_tensors.items())


@pytest.mark.parametrize("method", ["memit+P", "alphaedit", "rome"])
def test_a_patch_of_few_facts_is_smaller_than_the_weights(method, tokenizer, tmp_path):
    editing = edited("wide llama", tokenizer, method, 0, 1)
    editing.to_patch(tmp_path / "p.safetensors")
    weights = sum(p.matrix.numel() * p.matrix.itemsize for p in editing.projections.values())
    assert (tmp_path / "p.safetensors").stat().st_size < weights / 4


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@every_method
def test_an_adapter_gives_the_sessions_logits(method, kind, tokenizer, tmp_path):
    peft = pytest.importorskip("peft", reason="whether PEFT can read an adapter, only PEFT can tell")
    editing = edited(kind, tokenizer, method, 0, 1)
    editing.finish()
    ranks = editing.to_lora(tmp_path / "lora")
    assert set(ranks) == set(editing.hyperparameters.layers)
    with_adapter = peft.PeftModel.from_pretrained(model_of_kind(kind), tmp_path / "lora")
    expected = logits(editing.model)
    scale = float(expected.abs().max())
    assert float((logits(model_of_kind(kind)) - expected).abs().max()) > 1e-3 * scale, "the edit does not show"
    assert float((logits(with_adapter) - expected).abs().max()) < 1e-4 * scale


def test_an_adapter_of_less_energy_is_thinner(tokenizer, tmp_path):
    editing = edited("llama", tokenizer, "alphaedit", 0, 1, 2, 3)
    whole, thin = editing.to_lora(tmp_path / "whole"), editing.to_lora(tmp_path / "thin", energy=0.5)
    assert all(thin[layer] < whole[layer] for layer in LAYERS)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "llama bfloat16"])
@pytest.mark.parametrize("method", ["memit+P", "alphaedit", "prune"])
def test_an_edited_model_is_an_ordinary_checkpoint(method, kind, tokenizer, tmp_path):
    editing = edited(kind, tokenizer, method, 0, 1)
    editing.finish()
    editing.model.save_pretrained(tmp_path / "plain")
    loading.save_checkpoint(editing.model, editing.tokenizer, tmp_path / "ours")
    for folder in ("plain", "ours"):
        again = AutoModelForCausalLM.from_pretrained(tmp_path / folder, dtype="auto")
        assert_same(everything(again), everything(editing.model))
        assert torch.equal(logits(again), logits(editing.model))


# ------------------------------------------------------------------------------------------- any order of calls


calls = st.one_of(
    st.tuples(st.just("edit"), st.integers(0, len(BATCHES) - 1)),
    st.tuples(st.just("undo"), st.integers(1, 3)),
    st.tuples(st.just("finish"), st.none()),
    st.tuples(st.just("save and resume"), st.none()),
)


@pytest.mark.parametrize("autosave", [False, True], ids=["saved", "saves itself"])
@pytest.mark.parametrize("method", ["memit-seq", "alphaedit", "rect+P", "prune+P"])
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(calls, min_size=1, max_size=8))
def test_any_order_of_calls_comes_to_the_edits_that_are_left(method, autosave, history, tokenizer):
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "s"
        session = session_of(model_of_kind(), tokenizer, method, autosave=place if autosave else None)
        left: list[int] = []
        for call, argument in history:
            if call == "edit" and sum(len(BATCHES[n]) for n in [*left, argument]) <= 16:
                write(session, argument)
                left.append(argument)
            elif call == "undo" and argument <= len(left):
                session.undo(argument)
                del left[-argument:]
            elif call == "undo":
                with pytest.raises(EditError):
                    session.undo(argument)
            elif call == "finish":
                session.finish()
            elif call == "save and resume":
                if not autosave or not place.exists():
                    session.save(place)
                session = Session.resume(place, model_of_kind())
            expected = reference("llama", tokenizer, method, *left)
            if session.finished:
                expected = edited("llama", tokenizer, method, *left)
                expected.finish()
            assert_same_session(session, expected)


def test_a_session_goes_on_where_whole_numbers_were_given_for_others(tokenizer, tmp_path):
    """What is read back from JSON is 15.0 and 2.0: the same session."""
    model = model_of_kind()
    whole = replace(HYPERPARAMETERS, mom2_update_weight=2, L2=1, null_space=Criterion(nullity=15))
    start = {"hyperparameters": whole, "covariances": covariances_of("llama"), "contexts": CONTEXTS}
    session = Session(model, tokenizer, "memit", **start, autosave=tmp_path / "s", check_model=False)
    session.edit(FACTS[:1])
    resumed = Session.resume(tmp_path / "s", model_of_kind())
    resumed.edit(FACTS[1:2])
    assert len(Session.resume(tmp_path / "s", model_of_kind()).batches) == 2


def test_a_session_on_a_copy_of_its_model_goes_on_apart(tokenizer, tmp_path):
    model = model_of_kind()
    start = {"hyperparameters": HYPERPARAMETERS, "covariances": covariances_of("llama"), "contexts": CONTEXTS}
    session = Session(model, tokenizer, "memit-seq", **start, autosave=tmp_path / "s", check_model=False)
    session.edit(FACTS[:1])
    copied = copy.deepcopy(model)
    twin = session.on_copy(copied)
    twin.edit(FACTS[1:2])
    assert (session.facts, len(twin.facts)) == (twin.facts[:1], 2)
    assert len(Session.resume(tmp_path / "s", model_of_kind()).batches) == 1
    session.edit(FACTS[1:2])
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, dict(copied.named_parameters())[name])
    twin.undo(2)
    for name, parameter in model_of_kind().named_parameters():
        assert torch.equal(parameter, dict(copied.named_parameters())[name])
    assert len(session.facts) == 2
