"""REVIVE against its dense textbook form, and what stays of W's leading directions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import oracle
from support.editing import HYPERPARAMETERS, LAYERS, RECORDS, session, weights
from support.spaces import random_spaces
from support.textbook import assert_near, edit_by_textbook, solver_of
from support.tiny import model_of
from support.tries import tries

from alphaedit_plugin.editors import revive as revive_module
from alphaedit_plugin.editors.revive import protected, revive
from alphaedit_plugin.editors.update import Site, Update
from alphaedit_plugin.errors import HyperparameterError

HYPERPARAMETERS = replace(HYPERPARAMETERS, L2=0.3)


def textbook(delta, weight, tau=0.1):
    """Δ's coefficients in the whole basis of W's singular vectors, without those of the first k rows or columns."""
    u, sigma, vt = torch.linalg.svd(weight.double())
    k = next(k for k in range(1, len(sigma) + 1) if float(sigma[:k].sum() / sigma.sum()) >= tau - 1e-15)
    coefficients = u.T @ delta.double() @ vt.T
    coefficients[:k] = 0
    coefficients[:, :k] = 0
    return u @ coefficients @ vt


def factors(d_out, d_in, rank, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    left, right, weight = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((d_out, rank), (d_in, rank), (d_out, d_in))
    )
    return Update(3, left.to(dtype), right.to(dtype)), weight


@tries(40)
@given(
    d_out=st.integers(1, 12),
    d_in=st.integers(1, 20),
    rank=st.integers(1, 5),
    tau=st.floats(0.01, 1),
    seed=st.integers(0, 10_000),
)
def test_it_is_the_textbook_formula_in_factors(d_out, d_in, rank, tau, seed):
    update, weight = factors(d_out, d_in, rank, seed)
    found = revive(update, Site(3, weight * 7, weight), tau=tau)
    assert (found.layer, found.left.shape, found.right.shape) == (3, (d_out, rank), (d_in, rank))
    expected = textbook(update.dense(), weight, tau)
    assert float((found.dense() - expected).norm()) <= 1e-10 * float(update.dense().norm())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_leading_directions_are_neither_written_nor_read_and_twice_is_once(dtype):
    update, weight = factors(12, 20, 4, 0, dtype)
    site = Site(3, weight.to(dtype), weight.to(dtype))
    once = revive(update, site, tau=0.5)
    u, v = protected(site.base, 0.5)
    small = 100 * torch.finfo(dtype).eps * float(update.dense().norm())
    assert u.shape[1] == v.shape[1] > 1
    assert float((u.T @ once.dense()).norm()) <= small
    assert float((once.dense() @ v).norm()) <= small
    assert float((revive(once, site, tau=0.5).dense() - once.dense()).norm()) <= small
    assert once.left.dtype == once.right.dtype == dtype


@pytest.mark.parametrize("tau", [0.0, -0.1, 1.5])
def test_a_tau_that_is_no_share_is_refused(tau):
    update, weight = factors(4, 6, 2, 0)
    with pytest.raises(HyperparameterError, match="tau"):
        revive(update, Site(3, weight, weight), tau=tau)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["revive", "rect+revive", "memit-seq+revive+P", "alphaedit+revive"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_three_batches_leave_the_weights_that_the_textbook_leaves(name, method, tokenizer, exact):
    """It is W before the first edit that counts; P comes last."""
    ours, theirs = model_of(name), model_of(name)
    start, spaces = weights(ours), random_spaces(ours, LAYERS)
    editing = session(ours, tokenizer, method, spaces, HYPERPARAMETERS)
    batches = [[record] for record in RECORDS]
    for batch in batches:
        editing.edit(batch)

    def post(layer, delta, weight):
        delta = textbook(oracle.rect(delta, weight) if "rect" in method else delta, start[layer])
        return delta @ spaces[layer].dense() if editing.variant.projected else delta

    edit_by_textbook(theirs, tokenizer, batches, solver_of(method, spaces, HYPERPARAMETERS), post)
    assert_near(weights(ours), weights(theirs), start, 1e-6)


@pytest.mark.parametrize("method", ["revive", "rect+revive"])
def test_the_directions_are_found_once_per_layer_for_all_edits_and_their_replay(method, tokenizer, monkeypatch):
    found = []
    monkeypatch.setattr(
        revive_module, "leading", lambda *args, real=revive_module.leading: found.append(0) or real(*args)
    )
    editing = session(model_of(), tokenizer, method)
    for record in RECORDS:
        editing.edit([record])
    editing.undo()
    editing.edit(RECORDS[2:])
    assert len(found) == len(LAYERS)


def test_the_share_is_a_setting_of_the_name(tokenizer):
    model = model_of()
    editing = session(model, tokenizer, "memit-seq@tau=0.6+revive")
    start = weights(model)
    editing.edit(RECORDS)
    for layer, weight in weights(model).items():
        u, v = protected(start[layer], 0.6)
        moved = weight - start[layer]
        assert max(float((u.T @ moved).norm()), float((moved @ v).norm())) <= 1e-9 * float(moved.norm())
