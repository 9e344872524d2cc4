"""A session's folder: saved, moved, damaged or another model's; resumed, it is the session bit for bit."""

from __future__ import annotations

import json
import logging
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.mishaps import cut, flip
from support.sessions import (
    CONTEXTS,
    FACTS,
    HYPERPARAMETERS,
    LAYERS,
    assert_folder_holds,
    assert_same_session,
    batch_files,
    contents,
    covariances_of,
    edited,
    every_trial,
    large_targets,
    manifest,
    model_of_kind,
    raised,
    reference,
    session_of,
    width_of,
    write,
)
from support.spaces import random_covariance, random_spaces
from support.tiny import tiny
from support.weights import assert_same, differ, everything

from alphaedit_plugin.editors.hyperparameters import Hyperparameters
from alphaedit_plugin.errors import AlphaEditError, SessionError, WrongModelError
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.nullspace.null_spaces import NullSpaces
from alphaedit_plugin.nullspace.projection import Criterion, NullSpace
from alphaedit_plugin.session.manifest import MANIFEST
from alphaedit_plugin.session.session import Session

pytestmark = pytest.mark.slow

# ---------------------------------------------------------------------------------------------- save and resume


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


@pytest.mark.slow
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
    first.close()
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
    assert not Session.resume(tmp_path / "s", model_of_kind(kind), read_only=True).finished
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
    first.close()
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
    first.close()
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
    editing.close()
    resumed = Session.resume(tmp_path / "s", model_of_kind())
    write(resumed, 4)
    assert again.items() <= identities(tmp_path / "s").items()


def test_a_session_is_saved_with_relative_paths_as_with_absolute_ones(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = session_of(model_of_kind(), tokenizer, "alphaedit", autosave="a/s")
    write(first, 0)
    first.save(tmp_path / "a" / "s")
    assert_folder_holds(tmp_path / "a" / "s", first)


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
    resumed.close()
    again = Session.resume(tmp_path / "s", named("a third/name", model_of_kind()))
    assert again.facts == resumed.facts
    again.save(tmp_path / "s")


def test_a_model_that_was_forced_can_be_edited_further(tokenizer, tmp_path):
    edited("llama", tokenizer, "alphaedit", 0).save(tmp_path / "s")
    resumed = Session.resume(tmp_path / "s", model_of_kind(seed=1), check_model=False)
    write(resumed, 1)
    again = Session.resume(tmp_path / "s", model_of_kind(seed=1), check_model=False, read_only=True)
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

    def poisoned(projection, update, *owed) -> None:
        projection.matrix.fill_(torch.nan)

    monkeypatch.setattr("alphaedit_plugin.editors.update.Write.__call__", lambda self, *args: poisoned(*args))
    with pytest.raises(AlphaEditError):
        Session.resume(saved, model)
    assert_same(everything(model), everything(model_of_kind()))


def test_a_session_goes_on_where_whole_numbers_were_given_for_others(tokenizer, tmp_path):
    """What is read back from JSON is 15.0 and 2.0: the same session."""
    model = model_of_kind()
    whole = replace(HYPERPARAMETERS, mom2_update_weight=2, L2=1, null_space=Criterion(nullity=15))
    start = {"hyperparameters": whole, "covariances": covariances_of("llama"), "contexts": CONTEXTS}
    session = Session(model, tokenizer, "memit", **start, autosave=tmp_path / "s", check_model=False)
    session.edit(FACTS[:1])
    session.close()
    resumed = Session.resume(tmp_path / "s", model_of_kind())
    resumed.edit(FACTS[1:2])
    assert len(Session.resume(tmp_path / "s", model_of_kind(), read_only=True).batches) == 2
