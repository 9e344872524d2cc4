"""An edit in its model's own GGUF file: transformers loads the session's model from it, and all else is as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.gguf_files import WIDTH, contents_of, write_model
from support.mishaps import cut, flip, no_file_above
from support.sessions import BATCHES, CONTEXTS, HYPERPARAMETERS, LAYERS, model_of_kind
from support.spaces import random_covariance
from support.weights import assert_same, everything, matrices

from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.errors import ModelStructureError, StoreError
from alphaedit_plugin.model import ggml
from alphaedit_plugin.model.gguf import opened
from alphaedit_plugin.model.loading import load
from alphaedit_plugin.session.gguf import write_gguf
from alphaedit_plugin.session.session import Session

pytest.importorskip("gguf", reason="the package gguf makes the files, and is the oracle")
pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate only")
pytestmark = pytest.mark.slow

NAMES = {layer: f"blk.{layer}.ffn_down.weight" for layer in LAYERS}
ERRORS = {"F32": 0, "F16": 5e-4, "BF16": 4e-3, "Q8_0": 1e-2, "Q5_1": 4e-2, "Q5_0": 6e-2, "Q4_1": 8e-2, "Q4_0": 0.11}
"""By type, a bound on ‖written − W‖ / ‖W‖ of normal numbers."""


def session_on(path: Path, dtype: str = "auto") -> Session:
    model, tokenizer = load(str(path), dtype=dtype)
    covariances = {layer: random_covariance(WIDTH, layer, tokens=10 * WIDTH) for layer in LAYERS}
    return Session(
        model, tokenizer, "memit", hyperparameters=HYPERPARAMETERS, covariances=covariances, contexts=CONTEXTS
    )


def assert_only_replaced(source: Path, target: Path, kinds: dict[str, str]) -> None:
    (metadata, before), (metadata_now, after) = contents_of(source), contents_of(target)
    assert metadata_now == metadata
    assert list(after) == list(before)
    for name, found in after.items():
        if name in kinds:
            assert (found[0], found[1]) == (kinds[name], before[name][1])
            assert found[2] != before[name][2]
        else:
            assert found == before[name]


@pytest.fixture
def source(tmp_path, tokenizer) -> Path:
    write_model(tmp_path / "model.gguf", tokenizer)
    return tmp_path / "model.gguf"


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("alignment", [32, 128])
@pytest.mark.parametrize("own", ["F32", "F16", "Q8_0", "Q4_1"])
def test_what_transformers_loads_again_is_the_edited_model(own, alignment, architecture, tokenizer, tmp_path):
    source, out = tmp_path / "model.gguf", tmp_path / "out.gguf"
    write_model(source, tokenizer, architecture, down=own, alignment=alignment)
    session = session_on(source)
    session.edit(BATCHES[3] + BATCHES[4])
    weights = everything(session.model)
    exported = session.to_gguf(out)
    assert_same(everything(session.model), weights)
    assert set(exported.kinds) == set(NAMES.values())
    assert exported.lost == ()
    assert_only_replaced(source, out, exported.kinds)
    assert all(ggml.bits(kind) >= ggml.bits(own) for kind in exported.kinds.values())

    again, _ = load(str(out))
    loaded, edited = matrices(again, LAYERS), matrices(session.model, LAYERS)
    for layer, name in NAMES.items():
        error = float((loaded[layer] - edited[layer]).norm() / edited[layer].norm())
        assert error <= ERRORS[exported.kinds[name]]
        assert exported.errors[name] == pytest.approx(error, abs=1e-7)
    others = [name for name in weights if not any(f".{layer}.mlp.{part}" in name for layer in LAYERS for part in
                                                  ("down_proj", "c_proj.weight"))]  # fmt: skip
    assert_same({name: everything(again)[name] for name in others}, {name: weights[name] for name in others})


def test_an_unedited_session_gives_the_same_file_and_so_does_one_that_is_undone(source, tmp_path):
    session = session_on(source)
    exported = session.to_gguf(tmp_path / "unedited.gguf")
    assert (exported.kinds, exported.errors, exported.lost) == ({}, {}, ())
    session.edit(BATCHES[0])
    session.to_gguf(tmp_path / "edited.gguf")
    session.undo()
    session.to_gguf(tmp_path / "undone.gguf")
    assert (tmp_path / "unedited.gguf").read_bytes() == source.read_bytes()
    assert (tmp_path / "undone.gguf").read_bytes() == source.read_bytes()
    assert (tmp_path / "edited.gguf").read_bytes() != source.read_bytes()


@pytest.mark.parametrize("kind", ggml.KINDS)
def test_a_type_that_is_asked_for_is_used(kind, source, tmp_path):
    session = session_on(source)
    session.edit(BATCHES[3] + BATCHES[4])
    exported = session.to_gguf(tmp_path / "out.gguf", kind=kind)
    assert exported.kinds == dict.fromkeys(NAMES.values(), kind)
    assert all(error <= ERRORS[kind] for error in exported.errors.values())


def facts_within(bound: float, session: Session) -> Callable[[], list[Request]]:
    """A model that says its facts as long as its weights are within this share of what they are now."""
    edited = {layer: weight.clone() for layer, weight in matrices(session.model, LAYERS).items()}

    def said() -> list[Request]:
        now = matrices(session.model, LAYERS)
        near = all((now[layer] - weight).norm() <= bound * weight.norm() for layer, weight in edited.items())
        return session.facts if near else []

    return said


@pytest.mark.parametrize("own", ["F32", "F16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("bound", [1, 2e-2, 1e-3, 1e-9])
def test_the_coarsest_type_that_loses_no_fact_is_chosen(bound, own, tokenizer, tmp_path):
    source = tmp_path / "model.gguf"
    write_model(source, tokenizer, down=own)
    session = session_on(source)
    session.edit(BATCHES[0])
    edited = everything(session.model)
    said = facts_within(bound, session)
    exported = write_gguf(tmp_path / "out.gguf", opened(source), session.projections, session.base, said)
    finest = [kind for kind in (own, "Q8_0", "F16", "F32") if ggml.bits(kind) >= ggml.bits(own)]
    expected = next(kind for kind in finest if ERRORS[kind] <= bound)
    assert exported.kinds == dict.fromkeys(NAMES.values(), expected)
    assert exported.lost == ()
    assert_same(everything(session.model), edited)


def test_facts_that_a_type_loses_are_named(source, tmp_path):
    session = session_on(source)
    session.edit(BATCHES[1])
    said = facts_within(1e-3, session)
    exported = write_gguf(tmp_path / "out.gguf", opened(source), session.projections, session.base, said, "Q8_0")
    assert exported.lost == tuple(session.facts)


def test_numbers_too_large_for_16_bits_are_written_in_32(tokenizer, tmp_path):
    source = tmp_path / "model.gguf"
    write_model(source, tokenizer, down="F16")
    session = session_on(source)
    session.projections[1].matrix[0, 0] = 1e6
    assert session.to_gguf(tmp_path / "out.gguf").kinds == {NAMES[1]: "F32"}
    with pytest.raises(ModelStructureError, match=r"blk\.1\.ffn_down\.weight cannot be written as F16"):
        session.to_gguf(tmp_path / "other.gguf", kind="F16")
    assert not (tmp_path / "other.gguf").exists()


def test_a_session_in_bfloat16_is_written_too(source, tmp_path):
    session = session_on(source, "bfloat16")
    session.edit(BATCHES[0])
    session.to_gguf(tmp_path / "out.gguf", kind="BF16")
    again, _ = load(str(tmp_path / "out.gguf"), dtype="bfloat16")
    assert_same(matrices(again, LAYERS), matrices(session.model, LAYERS))


# -------------------------------------------------------------------------------------------------- what goes wrong


def test_a_model_that_comes_from_no_gguf_file_is_refused_with_the_remedy(tokenizer, tmp_path):
    model = model_of_kind("wide llama")
    covariances = {layer: random_covariance(300, layer, tokens=600) for layer in LAYERS}
    session = Session(model, tokenizer, "memit", hyperparameters=HYPERPARAMETERS, covariances=covariances)
    with pytest.raises(ModelStructureError, match=r"does not come from a GGUF file.*edit the \.gguf file itself"):
        session.to_gguf(tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_a_file_that_was_changed_since_is_refused(source, tmp_path):
    session = session_on(source)
    session.edit(BATCHES[0])
    flip(source, opened(source).tensors[NAMES[2]].start)
    with pytest.raises(ModelStructureError, match=r"blk\.2\.ffn_down\.weight.*the file was changed since"):
        session.to_gguf(tmp_path / "out.gguf")
    cut(source)
    with pytest.raises(ModelStructureError, match=r"model\.gguf is cut off"):
        session.to_gguf(tmp_path / "out.gguf")
    source.unlink()
    with pytest.raises(ModelStructureError, match=r"model\.gguf"):
        session.to_gguf(tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("kind", ["Q4_K", "q8_0", ""])
def test_a_type_that_cannot_be_written_is_refused(kind, source, tmp_path):
    session = session_on(source)
    session.edit(BATCHES[0])
    with pytest.raises(ModelStructureError, match="choose one of F32, F16"):
        session.to_gguf(tmp_path / "out.gguf", kind=kind)


def test_a_full_disk_leaves_the_old_file_and_the_model_as_they_were(source, tmp_path):
    session = session_on(source)
    session.edit(BATCHES[0])
    session.to_gguf(tmp_path / "out.gguf")
    old, weights = (tmp_path / "out.gguf").read_bytes(), everything(session.model)
    session.edit(BATCHES[1])
    for share in (0, 0.3, 0.9):
        with no_file_above(int(share * len(old))), pytest.raises(StoreError, match=r"out\.gguf"):
            session.to_gguf(tmp_path / "out.gguf")
        assert (tmp_path / "out.gguf").read_bytes() == old
    session.undo()
    assert_same(everything(session.model), weights)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
