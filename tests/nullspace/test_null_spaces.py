"""Null spaces by layer: their file, and the model that they belong to."""

from __future__ import annotations

import pytest
import torch
from support.spaces import matrix_with
from support.tiny import tiny

from alphaedit_plugin.errors import NullSpaceError, WrongModelError
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.model.fingerprint import fingerprints
from alphaedit_plugin.nullspace.null_spaces import NullSpaces
from alphaedit_plugin.nullspace.projection import NullSpace
from alphaedit_plugin.storage.tensors import write_tensors

# ------------------------------------------------------------------------------------------------------ files


@pytest.fixture
def model():
    model = tiny("llama")
    model.config._name_or_path = "acme/base"
    return model


@pytest.fixture
def spaces(model):
    layers = [1, 3]
    by_layer = {
        1: NullSpace.of(matrix_with([1e-4] * 5 + [1.0] * 19)),
        3: NullSpace.of(matrix_with([1e-4] * 19 + [1.0] * 5)),
    }
    prints = {str(layer): value for layer, value in fingerprints(model, layers).items()}
    return NullSpaces(by_layer, {"model": "acme/base", "fingerprints": prints, "note": {"é": [1, None, 2.5]}})


def test_null_spaces_are_a_mapping_by_layer(spaces):
    assert (list(spaces), len(spaces), spaces.layers) == ([1, 3], 2, [1, 3])
    assert (spaces[1].side, spaces[3].side) == ("null", "range")
    with pytest.raises(KeyError):
        spaces[2]


def test_saving_and_loading_is_exact(spaces, tmp_path):
    spaces.save(tmp_path / "p.safetensors")
    again = NullSpaces.load(str(tmp_path / "p.safetensors"))
    assert again.layers == spaces.layers
    assert again.provenance == spaces.provenance
    delta = torch.randn(3, 24)
    for layer, space in spaces.items():
        assert again[layer].side == space.side
        assert torch.equal(again[layer].factor, space.factor)
        assert torch.equal(again[layer].eigenvalues, space.eigenvalues)
        assert torch.equal(again[layer].project(delta), space.project(delta))


def test_one_null_space_may_serve_two_layers(spaces, tmp_path):
    NullSpaces({0: spaces[1], 1: spaces[1]}, {}).save(tmp_path / "p.safetensors")
    again = NullSpaces.load(tmp_path / "p.safetensors")
    assert torch.equal(again[0].factor, again[1].factor)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_file_cut_short_is_refused_by_name(spaces, tmp_path, keep):
    path = tmp_path / "p.safetensors"
    spaces.save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(NullSpaceError, match=r"p\.safetensors"):
        NullSpaces.load(path)


def test_an_absent_file_or_one_of_another_kind_is_refused_by_name(tmp_path):
    path = tmp_path / "p.safetensors"
    with pytest.raises(NullSpaceError, match=r"p\.safetensors"):
        NullSpaces.load(path)
    write_tensors(path, {"triangle": torch.ones(3)}, {"recipe": {}}, NullSpaceError)
    with pytest.raises(NullSpaceError, match=r"p\.safetensors"):
        NullSpaces.load(path)


def test_a_place_that_cannot_be_written_is_an_error_that_names_it(spaces, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NullSpaceError, match=r"p\.safetensors"):
        spaces.save(tmp_path / "file" / "p.safetensors")


# -------------------------------------------------------------------------------------------------- the model


def test_a_fresh_copy_of_the_model_passes_the_check_also_after_loading_the_spaces(spaces, tmp_path):
    spaces.save(tmp_path / "p.safetensors")
    for these in (spaces, NullSpaces.load(tmp_path / "p.safetensors")):
        these.check(tiny("llama"))


@pytest.mark.parametrize(
    "other",
    [
        lambda: tiny("llama", seed=1),
        lambda: tiny("mistral"),
        lambda: tiny("gpt2"),
        lambda: tiny("llama", dtype=torch.bfloat16),
        lambda: tiny("llama", intermediate_size=32),
        lambda: tiny("llama", num_hidden_layers=2),
        lambda: torch.nn.Linear(3, 3),
    ],
    ids=[
        "other weights",
        "other class",
        "other family",
        "other precision",
        "other width",
        "fewer layers",
        "no decoder",
    ],
)
def test_another_model_is_refused_naming_both(spaces, other):
    wrong = other()
    if hasattr(wrong, "config"):
        wrong.config._name_or_path = "other/model"
    with pytest.raises(WrongModelError, match="acme/base") as caught:
        spaces.check(wrong)
    assert ("other/model" if hasattr(wrong, "config") else "Linear") in str(caught.value)


def test_an_edited_model_is_refused_until_the_edit_is_undone(spaces, model):
    matrix = Decoder(model).out_projection(3).matrix
    saved = matrix.clone()
    matrix[2, 2] += 1e-3
    with pytest.raises(WrongModelError, match="layer 3"):
        spaces.check(model)
    matrix.copy_(saved)
    spaces.check(model)


def test_null_spaces_are_attached_to_the_modules_that_a_decoder_finds(spaces, model):
    by_name = Decoder(model, "model.layers.{}.mlp.down_proj")
    found = spaces.attached(by_name, [3], "p.safetensors")
    assert found.layers == [3]
    assert found[3] is spaces[3]
    assert found.provenance == {**spaces.provenance, "template": by_name.template}
    with pytest.raises(NullSpaceError, match=r"p\.safetensors has no null space of layers \[0, 2\]"):
        spaces.attached(by_name, [0, 1, 2], "p.safetensors")
    other = Decoder(model, "model.layers.{}.mlp.up_proj")
    with pytest.raises(NullSpaceError, match=r"null spaces of model\.layers\.1\.mlp\.down_proj, but .*up_proj is"):
        spaces.attached(other, [1, 3], "p.safetensors")


def test_a_decoder_serves_as_well_as_its_model(spaces, model):
    decoder = Decoder(model)
    assert fingerprints(decoder, [1, 3]) == fingerprints(model, [1, 3])
    spaces.check(decoder)
    with pytest.raises(WrongModelError, match="acme/base"):
        spaces.check(Decoder(tiny("llama", seed=5)))


def test_spaces_without_fingerprints_are_refused(spaces, model):
    with pytest.raises(WrongModelError, match="fingerprint"):
        NullSpaces(dict(spaces), {"model": "acme/base"}).check(model)
