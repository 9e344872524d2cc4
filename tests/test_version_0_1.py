"""What version 0.1 saved still loads: a session goes on bit for bit, a patch fits, null spaces and a run are read."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from support.paths import ROOT, SAVED
from support.weights import assert_same, differ, everything, matrices

from alphaedit_plugin.comparison.results import BEFORE
from alphaedit_plugin.comparison.run_folder import read_run
from alphaedit_plugin.evaluation.datasets import load_facts
from alphaedit_plugin.model.loading import load
from alphaedit_plugin.nullspace.null_spaces import NullSpaces
from alphaedit_plugin.session.manifest import MANIFEST
from alphaedit_plugin.session.patch import apply_patch, revert_patch
from alphaedit_plugin.session.session import Session
from alphaedit_plugin.storage.tensors import tensor_digest

EDITED = ("edited", "edited-prune")
PINNED = re.search(r"^transformers==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)[1]
"""A fingerprint hashes the model's configuration as transformers shows it: with another version it is another model."""

knows_the_model = pytest.mark.skipif(
    transformers.__version__ != PINNED,
    reason=f"fingerprints of version 0.1 were made with transformers {PINNED}, this is {transformers.__version__}",
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A copy of all that version 0.1 left."""
    return Path(shutil.copytree(SAVED, tmp_path / "version_0_1"))


@pytest.fixture
def loaded(saved: Path) -> tuple:
    """(model, tokenizer), not edited."""
    return load(str(saved / "model"))


@knows_the_model
@pytest.mark.parametrize("name", EDITED)
def test_a_session_is_resumed_to_the_very_weights_that_its_manifest_knows(name, saved, loaded):
    model, tokenizer = loaded
    untouched = everything(model)
    manifest = json.loads((saved / name / "session" / MANIFEST).read_text(encoding="utf-8"))
    session = Session.resume(saved / name / "session", model)
    assert (str(session.variant), session.finished) == (manifest["method"], manifest["finished"])
    assert list(session.editor.contexts) == manifest["contexts"]
    assert len(session.batches) == len(manifest["batches"]) > 0
    assert {str(layer): tensor_digest(p.stored) for layer, p in session.projections.items()} == manifest["weights"]
    assert differ(everything(model), untouched)
    assert session.tokenizer("Apple was founded")["input_ids"] == tokenizer("Apple was founded")["input_ids"]


@knows_the_model
@pytest.mark.parametrize("name", EDITED)
def test_a_session_goes_on_is_undone_and_is_saved_anew(name, saved, loaded, tmp_path):
    model, tokenizer = loaded
    base = everything(model)
    session = Session.resume(saved / name / "session", model, tokenizer)
    known, batches, finished = session.facts, len(session.batches), session.finished
    before = everything(model)
    session.edit([{"prompt": "{} was born in", "subject": "Marie Curie", "target_new": "Rome"}])
    assert differ(everything(model), before)
    session.save(tmp_path / "anew")
    again = Session.resume(tmp_path / "anew", load(str(saved / "model"))[0])
    assert_same(everything(again.model), everything(model))
    assert again.facts == session.facts
    session.undo()
    if finished:
        session.finish()
    assert session.facts == known
    assert_same(everything(model), before)
    session.undo(batches)
    assert_same(everything(model), base)


@knows_the_model
@pytest.mark.parametrize("name", EDITED)
def test_a_patch_makes_of_the_model_what_the_session_made_of_it_and_is_taken_back(name, saved, loaded):
    model, _ = loaded
    base = everything(model)
    session = Session.resume(saved / name / "session", load(str(saved / "model"))[0])
    about = apply_patch(model, saved / name / "patch.safetensors")
    assert about["method"] == str(session.variant)
    assert_same(everything(model), everything(session.model))
    revert_patch(model, saved / name / "patch.safetensors")
    assert_same(everything(model), base)


@pytest.mark.parametrize("name", EDITED)
def test_an_adapter_is_the_patch(name, saved, loaded):
    """On the weights, as far as float32 factors of their difference can tell."""
    peft = pytest.importorskip("peft", reason="whether PEFT can read an adapter, only PEFT can tell")
    model, _ = loaded
    base = {layer: matrix.clone() for layer, matrix in matrices(model, range(4)).items()}
    adapted = peft.PeftModel.from_pretrained(load(str(saved / "model"))[0], saved / name / "lora").merge_and_unload()
    apply_patch(model, saved / name / "patch.safetensors")
    edited = {
        layer: matrix for layer, matrix in matrices(model, range(4)).items() if not torch.equal(matrix, base[layer])
    }
    assert edited
    for layer, matrix in edited.items():
        moved = float((matrix - base[layer]).norm())
        assert float((matrices(adapted, [layer])[layer] - matrix).norm()) < 1e-4 * moved


@knows_the_model
@pytest.mark.parametrize(
    "place", ["null_spaces.safetensors", *(f"{name}/session/null_spaces.safetensors" for name in EDITED)]
)
def test_null_spaces_are_read_and_belong_to_the_model(place, saved, loaded):
    model, _ = loaded
    spaces = NullSpaces.load(saved / place)
    spaces.check(model)
    for layer, space in spaces.items():
        p = space.dense()
        assert space.d_in == matrices(model, [layer])[layer].shape[1]
        assert 0 < space.nullity < space.d_in
        torch.testing.assert_close(p @ p, p, rtol=0, atol=1e-6)


def test_every_row_of_a_run_is_read(saved):
    (comparison,) = read_run(saved / "run")
    facts = load_facts(saved / "facts.json")
    assert comparison.settings["variants"] == comparison.variants
    folders = {path.name for path in (saved / "run" / "model-facts").iterdir() if path.is_dir()} - {"sessions"}
    assert {row.variant for row in comparison.rows} == folders
    assert BEFORE in folders
    for row in comparison.rows:
        place = saved / "run" / "model-facts" / row.variant / str(row.edits)
        weights = json.loads((place / "weights.json").read_text(encoding="utf-8"))
        assert {name: len(measured.records) for name, measured in row.measured.items()} == {
            path.stem: len(path.read_text(encoding="utf-8").splitlines()) for path in place.glob("*.jsonl")
        }
        assert len(row.measured["facts"].records) == row.edits or row.variant == BEFORE
        assert {"efficacy", "generalization", "specificity", "perplexity"} <= row.metrics.keys()
        assert row.seconds == weights["seconds"]
    assert max(row.edits for row in comparison.rows) == len(facts)
    assert len(comparison.rows) == 1 + 2 * (len(folders) - 1)
