"""SPHERE against its dense textbook form, of W before the first edit and of W as it is."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.editing import LAYERS, RECORDS, session, weights
from support.spaces import random_spaces
from support.tiny import model_of
from support.tries import tries

from alphaedit_plugin.editors import sphere as sphere_module
from alphaedit_plugin.editors.sphere import principal, sphere
from alphaedit_plugin.editors.update import Site, Update
from alphaedit_plugin.errors import HyperparameterError


def textbook(delta, weight, eta=0.5, alpha=0.5):
    """Δ(I − αUUᵀ), U from the eigenvectors of the normed neurons' covariance, added until they exceed the share η."""
    neurons = torch.stack([row / row.norm() for row in weight.double()])
    values, vectors = torch.linalg.eigh(neurons.T @ neurons / len(neurons))
    chosen, energy = [], 0.0
    for i in reversed(range(len(values))):
        chosen.append(vectors[:, i])
        energy += float(values[i])
        if energy > eta * float(values.sum()):
            break
    u = torch.stack(chosen, dim=1)
    return delta.double() @ (torch.eye(len(u), dtype=torch.float64) - alpha * u @ u.T)


def factors(d_out, d_in, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((d_out, rank), (d_in, rank), (d_out, d_in), (d_out, d_in))
    left, right, base, now = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return Update(3, left, right), Site(3, now, base)


@tries(40)
@given(
    d_out=st.integers(1, 12),
    d_in=st.integers(1, 20),
    rank=st.integers(1, 5),
    eta=st.floats(0, 0.95),
    alpha=st.floats(0, 1),
    current=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_it_is_the_textbook_formula_in_factors(d_out, d_in, rank, eta, alpha, current, seed):
    update, site = factors(d_out, d_in, rank, seed)
    found = sphere(update, site, eta=eta, alpha=alpha, current=current)
    assert torch.equal(found.left, update.left)
    expected = textbook(update.dense(), site.weight if current else site.base, eta, alpha)
    assert float((found.dense() - expected).norm()) <= 1e-9 * float(update.dense().norm())


def test_alpha_0_changes_nothing_and_alpha_1_is_a_projection():
    update, site = factors(12, 20, 4, 0)
    assert torch.equal(sphere(update, site, alpha=0.0).dense(), update.dense())
    u, small = principal(site.base, 0.5), 1e-12 * float(update.dense().norm())
    assert 1 < u.shape[1] < 12
    once = sphere(update, site, alpha=1.0)
    assert float((once.dense() @ u).norm()) <= small
    assert float((sphere(once, site, alpha=1.0).dense() - once.dense()).norm()) <= small


def test_the_length_of_a_neuron_means_nothing():
    _, site = factors(12, 20, 4, 0)
    stretched = site.base * torch.logspace(-3, 3, 12, dtype=torch.float64)[:, None]
    u, other = principal(site.base, 0.5), principal(stretched, 0.5)
    assert torch.allclose(u @ u.T, other @ other.T, atol=1e-10)


@pytest.mark.parametrize("wrong", [{"eta": -0.1}, {"alpha": 1.1}], ids=str)
def test_what_is_no_share_is_refused(wrong):
    update, site = factors(4, 6, 2, 0)
    with pytest.raises(HyperparameterError, match=next(iter(wrong))):
        sphere(update, site, **wrong)


@pytest.mark.parametrize("method", ["memit-seq+sphere", "memit-seq@alpha=0.8@current=true+sphere"])
def test_in_a_session_what_is_written_is_the_textbooks(method, tokenizer, exact):
    """Over two batches, so that W is no longer what it was."""
    model, asked = model_of(), []

    def spy(update, site, **settings):
        asked.append((update, site.weight.clone(), site.base.clone(), settings))
        return sphere_module.sphere(update, site, **settings)

    editing = session(model, tokenizer, method)
    (modifier,) = editing.editor.write.modifiers
    spied = replace(modifier, function=partial(spy, **getattr(modifier.function, "keywords", {})))
    editing.editor.write = replace(editing.editor.write, modifiers=(spied,))
    before = weights(model)
    for batch in (RECORDS[:2], RECORDS[2:]):
        editing.edit(batch)
    expected = dict(before)
    for update, weight, base, chosen in asked:
        assert torch.equal(base, before[update.layer])
        of = weight if chosen.get("current") else base
        expected[update.layer] = expected[update.layer] + textbook(update.dense(), of, alpha=chosen.get("alpha", 0.5))
    assert len(asked) == 2 * len(LAYERS)
    for layer, weight in weights(model).items():
        assert torch.allclose(weight, expected[layer], rtol=1e-9, atol=1e-12)
        assert not torch.equal(weight, before[layer])


@pytest.mark.parametrize("name", ["alphaedit+sphere+revive", "memit+rect+sphere+P", "sphere+prune"])
def test_it_can_be_combined(name, tokenizer):
    model = model_of()
    before = weights(model)
    editing = session(model, tokenizer, name, random_spaces(model, LAYERS))
    editing.edit(RECORDS)
    editing.finish()
    editing.undo()
    assert all(torch.equal(weight, before[layer]) for layer, weight in weights(model).items())
