"""A projection that spares directions of the output too, by itself and in a guard."""

from __future__ import annotations

import pytest
import torch
from support.spaces import random_spaces
from support.tiny import tiny

from alphaedit_plugin.editors.revive import protected
from alphaedit_plugin.errors import NullSpaceError
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.nullspace.guard import guard
from alphaedit_plugin.nullspace.projection import NullSpace
from alphaedit_plugin.nullspace.two_sided import TwoSided


def sparing(model, layer=1, nullity=15):
    space = random_spaces(model, [layer], nullity)[layer]
    u, v = protected(Decoder(model).out_projection(layer).matrix, 0.3)
    return space, u, v, TwoSided.sparing(space, u, v)


@pytest.mark.parametrize("nullity", [6, 15])
def test_it_is_the_projection_onto_what_is_null_and_not_spared(nullity):
    """Against a dense eigendecomposition: the directions that both projections on the right leave as they are."""
    space, u, v, both = sparing(tiny("llama", dtype=torch.float64), nullity=nullity)
    eye = torch.eye(24, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(space.dense() + (eye - v @ v.T))
    common = vectors[:, values > 2 - 1e-6]
    delta = torch.randn(16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = (delta - u @ (u.T @ delta)) @ common @ common.T
    assert both.nullity == common.shape[1] == nullity - v.shape[1]
    assert torch.allclose(both.project(delta), expected, atol=1e-5)
    assert torch.allclose(both.project(both.project(delta)), both.project(delta), atol=1e-6)
    assert torch.allclose(space.project(both.project(delta)), both.project(delta), atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_in_a_guard_whatever_is_written_spares_both_sides(name):
    model = tiny(name)
    space, u, v, both = sparing(model)
    projection = Decoder(model).out_projection(1)
    start = projection.matrix.clone()
    with guard(model, {1: both}):
        projection.stored.add_(torch.randn(projection.stored.shape, generator=torch.Generator().manual_seed(0)))
        model(input_ids=torch.tensor([[1, 2, 3]]))
        projection.stored.mul_(1.5)
    delta = (projection.matrix - start).double()
    small = 1e-5 * float(delta.norm())
    assert small > 0
    for rest in (u.T @ delta, delta @ v, delta - space.project(delta)):
        assert float(rest.norm()) <= small


def test_where_nothing_is_left_it_is_an_error():
    space = random_spaces(tiny("llama"), [1], nullity=3)[1]
    everything = torch.linalg.qr(torch.cat([space.factor.double(), torch.eye(24).double()[:, :4]], 1)).Q
    with pytest.raises(NullSpaceError):
        TwoSided.sparing(space, torch.eye(16, dtype=torch.float64)[:, :2], everything)
    assert isinstance(space, NullSpace)
