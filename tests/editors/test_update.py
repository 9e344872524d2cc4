"""Every write is read back: a weight that does not hold what was written to it is an error."""

from __future__ import annotations

import pytest
import torch
from support.editing import COVARIANCES, LAYERS, RECORDS, session, weights
from support.spaces import random_spaces
from support.tiny import model_of, tiny
from torch import Tensor, nn

from alphaedit_plugin.editors.registry import Modifier
from alphaedit_plugin.editors.update import Update, Write
from alphaedit_plugin.errors import EditError, PatchError
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.nullspace.guard import guard
from alphaedit_plugin.session.patch import apply_patch


class Forgetful(nn.Linear):
    """A matrix that hands out copies of its weight: what is written to them is lost."""

    @property
    def weight(self) -> Tensor:
        if "weight" not in self._parameters:
            raise AttributeError
        return self._parameters["weight"].clone()


def forgetful(model, layer=1):
    old = model.model.layers[layer].mlp.down_proj
    model.model.layers[layer].mlp.down_proj = new = Forgetful(24, 16, bias=False)
    new.weight = old.weight
    return model


def update(layer=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return Update(layer, *(torch.randn(size, 2, generator=generator, dtype=dtype) * 0.1 for size in (16, 24)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_was_written_is_there(name, dtype):
    projection = Decoder(tiny(name, dtype=dtype)).out_projection(1)
    before, change = projection.matrix.clone(), update()
    Write()(projection, change)
    expected = (before.double() + change.dense()).to(dtype)
    assert float((projection.matrix.double() - expected.double()).abs().max()) <= torch.finfo(dtype).eps
    assert not torch.equal(projection.matrix, before)


def test_a_lost_write_is_an_error_that_names_the_module():
    projection = Decoder(forgetful(tiny("llama"))).out_projection(1)
    with pytest.raises(EditError, match=r"written to model\.layers\.1\.mlp\.down_proj\.weight is not there: Forgetful"):
        Write()(projection, update())


def test_an_edit_of_which_one_write_is_lost_is_taken_back_whole(tokenizer):
    model = forgetful(model_of("llama"), 1)
    before = weights(model)
    with pytest.raises(EditError, match=r"layers\.1\.mlp\.down_proj\.weight is not there"):
        session(model, tokenizer).edit(RECORDS)
    assert all(torch.equal(weights(model)[layer], before[layer]) for layer in LAYERS)


def test_a_lost_patch_is_an_error_and_takes_back_the_rest(tokenizer, tmp_path):
    written = session(model_of("llama"), tokenizer, covariances=COVARIANCES)
    written.edit(RECORDS)
    written.to_patch(tmp_path / "patch.safetensors")
    model = forgetful(model_of("llama"), 1)
    before = weights(model)
    with pytest.raises(PatchError, match=r"layers\.1\.mlp\.down_proj\.weight is not there"):
        apply_patch(model, tmp_path / "patch.safetensors")
    assert all(torch.equal(weights(model)[layer], before[layer]) for layer in LAYERS)


def test_a_guarded_weight_holds_the_projection_of_what_was_written():
    model = tiny("llama")
    projection, spaces = Decoder(model).out_projection(1), random_spaces(model, [1])
    start, change = projection.matrix.clone(), update()
    with guard(model, spaces):
        Write()(projection, change)
    expected = start.double() + spaces[1].project(change.dense())
    torch.testing.assert_close(projection.matrix.double(), expected, rtol=0, atol=1e-5)


def share_of(base: Tensor, share: float) -> Tensor:
    DERIVED.append(share)
    return base * share


DERIVED: list[float] = []


def test_what_follows_from_the_base_is_derived_once_per_layer_and_setting():
    model = tiny("llama")
    projections = Decoder(model).out_projections([1, 2])
    base = {layer: projection.matrix.clone() for layer, projection in projections.items()}
    seen = []

    def spy(change, site):
        seen.append((site.of_base(share_of, 0.5), site.of_base(share_of, 0.25)))
        return change

    write = Write((Modifier("spy", spy, "a test", "here", in_factors=True),), base=base)
    DERIVED.clear()
    for layer in (1, 2, 1):
        write(projections[layer], update(layer))
    assert DERIVED == [0.5, 0.25] * 2
    assert torch.equal(seen[2][0], base[1] * 0.5)
    assert torch.equal(seen[1][1], base[2] * 0.25)


def test_where_the_base_is_the_weight_as_it_is_nothing_derived_from_it_is_kept():
    projection, seen = Decoder(tiny("llama")).out_projection(1), []

    def spy(change, site):
        seen.append(site.of_base(share_of, 1.0).clone())
        return change

    write = Write((Modifier("spy", spy, "a test", "here", in_factors=True),))
    for _ in range(2):
        expected = projection.matrix.clone()
        write(projection, update())
        assert torch.equal(seen[-1], expected)


def test_what_is_owed_must_be_passed_to_a_write_that_carries_it_over():
    write = Write(between=(Modifier("all", lambda owed, site: owed, "a test", "here", acts="between"),))
    projection = Decoder(tiny("llama")).out_projection(1)
    before = projection.matrix.clone()
    with pytest.raises(EditError, match="owed"):
        write(projection, update())
    assert torch.equal(projection.matrix, before)
    assert not write.in_factors
    assert write.again is write
