"""Modifiers that are projections, put on what other people's editors write."""

from __future__ import annotations

import pytest
import torch
from support.spaces import random_spaces
from support.tiny import tiny

from alphaedit_plugin import guard, null_space_constrained, sparing
from alphaedit_plugin.editors.sparing import narrowed, parse_sparing
from alphaedit_plugin.errors import HyperparameterError, NullSpaceError, WrongModelError
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.nullspace.projection import NullSpace

LAYERS = [1, 3]


def leading(weight, tau):
    """U and V of the leading singular directions, by a dense decomposition, as REVIVE's text says."""
    u, sigma, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    k = next(k for k in range(1, len(sigma) + 1) if sigma[:k].sum() >= tau * sigma.sum())
    return u[:, :k], vt[:k].T


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("tau", [0.1, 0.3])
def test_an_editor_of_ones_own_spares_them_beside_the_null_space(name, tau):
    model = tiny(name)
    spaces = random_spaces(model, LAYERS)
    start = {layer: of.matrix.clone() for layer, of in Decoder(model).out_projections(LAYERS).items()}

    @null_space_constrained(sparing(model, spaces, {"revive": {"tau": tau}} if tau != 0.1 else ["revive"]))
    def edit(model):
        for layer in LAYERS:
            stored = Decoder(model).out_projection(layer).stored
            stored.add_(torch.randn(stored.shape, generator=torch.Generator().manual_seed(layer)))

    edit(model)
    for layer, space in spaces.items():
        u, v = leading(start[layer], tau)
        delta = (Decoder(model).out_projection(layer).matrix - start[layer]).double()
        small = 1e-5 * float(delta.norm())
        assert small > 0
        for rest in (u.T @ delta, delta @ v, delta - space.project(delta)):
            assert float(rest.norm()) <= small


def test_without_a_null_space_nothing_else_is_taken():
    model = tiny("llama", dtype=torch.float64)
    decoder = Decoder(model)
    whole = {layer: NullSpace.whole(of.d_in) for layer, of in decoder.out_projections(LAYERS).items()}
    for layer, space in narrowed(decoder, whole, parse_sparing(["revive"], "it")).items():
        weight = decoder.out_projection(layer).matrix
        delta = torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        assert torch.equal(whole[layer].project(delta), delta)
        assert whole[layer].nullity == weight.shape[1]
        u, v = leading(weight, 0.1)
        left, right = (torch.eye(len(each), dtype=torch.float64) - each @ each.T for each in (u, v))
        assert torch.allclose(space.project(delta), left @ delta @ right, atol=1e-5)


def test_they_belong_to_their_model_and_what_is_known_is_not_found_anew():
    model = tiny("llama")
    spaces, known = random_spaces(model, LAYERS), {}
    before = narrowed(Decoder(model), spaces, parse_sparing(["revive"], "it"), known)
    both = sparing(model, spaces, ["revive"])
    Decoder(model).out_projection(1).stored.mul_(-1).add_(0.1)
    with pytest.raises(WrongModelError), guard(model, both):
        pass
    after = narrowed(Decoder(model), spaces, parse_sparing(["revive"], "it"), known)
    delta = torch.randn(16, 24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(before[1].project(delta), after[1].project(delta))
    anew = sparing(model, spaces, ["revive"])
    assert not torch.allclose(before[1].project(delta), anew[1].project(delta), atol=1e-3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("revive", "list of names"),
        (["reviv"], "did you mean revive"),
        (["rect"], "rect is no projection"),
        ({"revive": {"share": 0.2}}, "revive has no setting share: 0.2; it has tau: 0.1"),
        ({"revive": {"tau": 2}}, "above 0 and up to 1"),
    ],
)
def test_what_makes_no_sense_is_said_so(given, message):
    model = tiny("llama")
    with pytest.raises(HyperparameterError, match=message):
        sparing(model, random_spaces(model, LAYERS), given)


def test_what_are_no_null_spaces_of_such_a_model_is_said_so():
    model, other = tiny("llama"), tiny("llama", intermediate_size=32)
    with pytest.raises(NullSpaceError, match=r"24 dimensions.*32: it is another model's"):
        sparing(other, random_spaces(model, LAYERS), ["revive"])
    with pytest.raises(NullSpaceError, match="narrows NullSpaces"):
        sparing(model, dict(random_spaces(model, LAYERS)), ["revive"])


def test_where_nothing_is_left_it_is_an_error():
    model = tiny("llama")
    with pytest.raises(NullSpaceError):
        sparing(model, random_spaces(model, LAYERS, nullity=1), {"revive": {"tau": 1}})
