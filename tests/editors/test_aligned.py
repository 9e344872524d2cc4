"""Error compensation against the textbook with its E and C, and what a session promises of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import oracle
from support.editing import COVARIANCES, HYPERPARAMETERS, LAYERS, RECORDS, session, weights
from support.mishaps import Interrupted
from support.spaces import random_spaces
from support.textbook import assert_near, edit_by_textbook
from support.tiny import model_of
from support.weights import assert_same

from alphaedit_plugin.errors import HyperparameterError

HYPERPARAMETERS = replace(HYPERPARAMETERS, L2=0.3)
ONE_BY_ONE = [[record] for record in RECORDS]
METHODS = ["memit-seq+rect+aligned", "memit-seq+aligned+P", "memit-seq+rect+revive+aligned+P", "alphaedit+rect+aligned"]


def editing(model, tokenizer, method, **options):
    return session(model, tokenizer, method, random_spaces(model, LAYERS), HYPERPARAMETERS, **options)


def asked(editing, layer):
    """ΣΔ of all updates as the solver asked for them."""
    return sum(update.dense() for batch in editing.batches for update in batch.written.updates if update.layer == layer)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["memit-seq+rect+aligned", "memit-seq+aligned+P", "memit-seq+rect+aligned+P"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_three_batches_leave_the_weights_that_the_textbook_leaves(name, method, tokenizer, exact):
    """Δ = (RKᵀ − E)A⁻¹, A = λC + KpKpᵀ + KKᵀ, then E = (M(Δ) − Δ)A, all dense."""
    ours, theirs = model_of(name), model_of(name)
    start, spaces = weights(ours), random_spaces(ours, LAYERS)
    running = editing(ours, tokenizer, method)
    for batch in ONE_BY_ONE:
        running.edit(batch)
    systems, errors = {}, {}

    def solve(layer, keys, residual, earlier):
        k, kp, c = keys.double(), earlier.double(), COVARIANCES[layer].matrix
        systems[layer] = HYPERPARAMETERS.mom2_update_weight * c + kp @ kp.T + k @ k.T
        right = residual.double() @ k.T - errors.get(layer, 0)
        return torch.linalg.solve(systems[layer], right.T).T

    def post(layer, delta, weight):
        written = oracle.rect(delta, weight) if "rect" in method else delta
        written = written @ spaces[layer].dense() if "P" in method else written
        errors[layer] = (written - delta) @ systems[layer]
        return written

    edit_by_textbook(theirs, tokenizer, ONE_BY_ONE, solve, post)
    assert_near(weights(ours), weights(theirs), start, 1e-6)
    for layer in LAYERS:
        assert torch.allclose(running.editor.owed[layer] @ systems[layer], -errors[layer], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_what_is_owed_is_all_that_was_asked_for_and_is_not_in_the_weights(dtype, tokenizer):
    """What 16 bits round away too."""
    model = model_of(dtype=dtype)
    start = weights(model)
    running = editing(model, tokenizer, "memit-seq+rect+aligned")
    for batch in ONE_BY_ONE:
        running.edit(batch)
    for layer, weight in weights(model).items():
        ideal = start[layer].double() + asked(running, layer)
        owed = running.editor.owed[layer]
        precision = torch.promote_types(dtype, torch.float32)
        assert owed.dtype == precision
        assert float((ideal - weight.double() - owed).norm()) <= 10 * torch.finfo(precision).eps * float(ideal.norm())
        assert float(owed.norm()) > 1e-2 * float((weight.double() - start[layer].double()).norm())


def test_where_nothing_is_taken_it_changes_nothing(tokenizer, exact):
    with_it, without = model_of(), model_of()
    for model, method in ((with_it, "memit-seq+aligned"), (without, "memit-seq")):
        running = editing(model, tokenizer, method)
        for batch in ONE_BY_ONE:
            running.edit(batch)
    for layer, weight in weights(with_it).items():
        assert torch.allclose(weight, weights(without)[layer], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_undone_and_resumed_it_goes_on_as_if_nothing_had_happened(method, tokenizer, tmp_path):
    runs = []
    for path in (tmp_path / "one", tmp_path / "two"):
        running = editing(model_of(dtype=torch.float32), tokenizer, method, autosave=path)
        running.edit(RECORDS[:1])
        running.edit(RECORDS[1:2])
        runs.append(running)
    straight, other = runs
    other.edit(RECORDS[2:])
    with other.at(1):
        pass
    other.undo()
    assert all(torch.equal(owed, other.editor.owed[layer]) for layer, owed in straight.editor.owed.items())
    other.close()
    resumed = type(other).resume(other.autosave, model_of(dtype=torch.float32))
    twin = straight.on_copy(model_of(dtype=torch.float32))
    twin.model.load_state_dict(straight.model.state_dict())
    for each in (straight, resumed, twin):
        each.edit(RECORDS[2:])
        assert each.editor.owed.keys() == set(LAYERS)
    for each in (resumed, twin):
        assert_same(weights(straight.model), weights(each.model))
        assert all(torch.equal(owed, each.editor.owed[layer]) for layer, owed in straight.editor.owed.items())
    assert straight.undo(3)
    assert straight.editor.owed == {}


def test_a_batch_that_fails_owes_what_was_owed_before(tokenizer):
    model = model_of(dtype=torch.float32)
    running = editing(model, tokenizer, "memit-seq+rect+aligned")
    running.edit(RECORDS[:1])
    before, owed, write = weights(model), running.editor.owed, running.editor.write
    copies = {layer: value.clone() for layer, value in owed.items()}

    def failing(projection, update, owed):
        if update.layer == LAYERS[-1]:
            raise Interrupted
        return write(projection, update, owed)

    running.editor.write = failing
    with pytest.raises(Interrupted):
        running.edit(RECORDS[1:])
    running.editor.write = write
    assert_same(weights(model), before)
    assert running.editor.owed is owed
    assert all(torch.equal(value, copies[layer]) for layer, value in owed.items())


def test_a_solver_that_does_not_carry_over_is_refused_by_name(tokenizer):
    with pytest.raises(HyperparameterError, match=r"rome.*aligned"):
        editing(model_of(), tokenizer, "rome+rect+aligned")
