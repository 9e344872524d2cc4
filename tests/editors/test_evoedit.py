"""EvoEdit against its dense textbook form, and what it promises of facts written before."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.editing import CONTEXTS, HYPERPARAMETERS, LAYERS, RECORDS, REQUESTS, session, weights
from support.spaces import assert_inside, in_float64, random_spaces
from support.textbook import assert_near, edit_by_textbook
from support.tiny import model_of
from support.weights import assert_same

from alphaedit_plugin.editors.evoedit import Deflation
from alphaedit_plugin.editors.keys import Sweep, half_bare
from alphaedit_plugin.errors import EditError
from alphaedit_plugin.model.decoder import Decoder

HYPERPARAMETERS = replace(HYPERPARAMETERS, L2=0.3)
ONE_BY_ONE = [[record] for record in RECORDS]


def deflated(p, keys):
    """P − QQᵀ, Q the left singular vectors of PK whose singular values are not rounding."""
    q, sigma, _ = torch.linalg.svd(p @ keys.double(), full_matrices=False)
    q = q[:, sigma > 1e-6 * torch.linalg.matrix_norm(p @ keys.double(), 2)] if keys.shape[1] else q
    return p - q @ q.T


def textbook(keys, residual, p, lam):
    """Δ = R KᵀP (K KᵀP + λI)⁻¹."""
    k, r = keys.double(), residual.double()
    system = k @ k.T @ p + lam * torch.eye(len(p), dtype=torch.float64)
    return torch.linalg.solve(system.T, (r @ k.T @ p).T).T


def some_keys(d, m, seed):
    return torch.randn(d, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("lam", [0.3, 10.0])
def test_the_null_space_is_deflated_batch_by_batch_as_the_textbook_does(lam):
    d, p = 20, torch.eye(20, dtype=torch.float64)
    memory = Deflation(lam, 1e-6, d)
    for seed, m in enumerate((3, 1, 5, 4)):
        keys, residual = some_keys(d, m, seed), some_keys(7, m, 100 + seed)
        solution, memory = memory.add(keys)
        assert torch.allclose(residual @ solution.T, textbook(keys, residual, p, lam), atol=1e-12)
        p = deflated(p, keys)
    q = torch.cat(memory.bases, 1)
    assert torch.allclose(torch.eye(d, dtype=torch.float64) - q @ q.T, p, atol=1e-12)
    assert memory.count == 13


@pytest.mark.parametrize("lam", [0.0, 0.3])
def test_a_key_that_was_written_is_not_touched_again_even_if_it_comes_again(lam):
    first, second = some_keys(12, 3, 0), some_keys(12, 2, 1)
    _, memory = Deflation(lam, 1e-6, 12).add(first)
    solution, memory = memory.add(torch.cat([second, first[:, :1]], 1))
    assert float((solution.T @ first).abs().max()) < 1e-12
    assert float(solution[:, :2].norm()) > 1e-2
    assert [basis.shape[1] for basis in memory.bases] == [3, 2]
    again, memory = memory.add(first)
    assert float(again.abs().max()) < 1e-9
    assert memory.bases[-1].shape[1] == 0


def test_when_the_null_space_is_full_nothing_is_written():
    memory = Deflation(0.3, 1e-6, 6)
    for seed in range(3):
        solution, memory = memory.add(some_keys(6, 3, seed))
    assert float(solution.abs().max()) < 1e-12


@pytest.mark.parametrize("count", [0, 2, 3, 5, 6])
def test_what_is_forgotten_leaves_no_trace(count):
    blocks = [some_keys(12, m, seed).float() for seed, m in enumerate((2, 1, 3))]
    memory = Deflation(0.3, 1e-6, 12)
    for block in blocks:
        memory = memory.add(block)[1]
    shorter, expected, left = memory.truncated(count), Deflation(0.3, 1e-6, 12), count
    for block in blocks:
        if left:
            expected = expected.add(block[:, :left])[1]
            left -= min(left, block.shape[1])
    assert shorter.count == expected.count == count
    assert all(torch.equal(one, other) for one, other in zip(shorter.bases, expected.bases, strict=True))
    assert memory.truncated(6).bases == memory.bases


def test_a_key_that_is_not_finite_is_an_edit_error():
    with pytest.raises(EditError, match="not finite"):
        Deflation(0.3, 1e-6, 4).add(torch.tensor([[1.0], [torch.nan], [0.0], [0.0]]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_three_batches_leave_the_weights_that_the_textbook_leaves(name, tokenizer, exact):
    ours, theirs = model_of(name), model_of(name)
    start, spaces = weights(ours), in_float64(random_spaces(ours, LAYERS))
    editing = session(ours, tokenizer, "evoedit", spaces, HYPERPARAMETERS)
    for batch in ONE_BY_ONE:
        editing.edit(batch)

    def solve(layer, keys, residual, earlier):
        return textbook(keys, residual, deflated(spaces[layer].dense(), earlier), HYPERPARAMETERS.L2)

    edit_by_textbook(theirs, tokenizer, ONE_BY_ONE, solve)
    assert_near(weights(ours), weights(theirs), start, 1e-7)


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 1e-5), (torch.float64, 1e-11)], ids=str)
def test_later_edits_map_the_keys_of_earlier_ones_to_what_they_were(dtype, share, tokenizer):
    """In the first edited layer, whose keys no edit changes; AlphaEdit only tries to. All stays in the null space."""
    moved = {}
    for method in ("evoedit", "alphaedit"):
        model = model_of(dtype=dtype)
        start, spaces = weights(model), random_spaces(model, LAYERS)
        spaces = in_float64(spaces) if dtype == torch.float64 else spaces
        editing = session(model, tokenizer, method, spaces, HYPERPARAMETERS)
        editing.edit(RECORDS[:1])
        between = weights(model)[0]
        key = half_bare(Sweep(model, tokenizer, REQUESTS[:1], CONTEXTS).keys(Decoder(model).out_projection(0)))[0]
        editing.edit(RECORDS[1:])
        delta = weights(model)[0].double() - between.double()
        moved[method] = float((delta @ key.double()).norm() / (delta.norm() * key.double().norm()))
        assert_inside(spaces, start, weights(model), share)
    assert moved["evoedit"] <= share
    assert moved["alphaedit"] > 10 * share


def test_undone_and_resumed_it_goes_on_as_if_nothing_had_happened(tokenizer, tmp_path):
    runs = []
    for path in (tmp_path / "one", tmp_path / "two"):
        model = model_of(dtype=torch.float32)
        editing = session(model, tokenizer, "evoedit", random_spaces(model, LAYERS), HYPERPARAMETERS, autosave=path)
        editing.edit(RECORDS[:1])
        runs.append(editing)
    straight, other = runs
    other.edit(RECORDS[2:])
    other.undo()
    other.close()
    fresh = model_of(dtype=torch.float32)
    resumed = type(other).resume(other.autosave, fresh)
    for editing in (straight, resumed):
        editing.edit(RECORDS[1:])
    assert_same(weights(straight.model), weights(resumed.model))
    for layer, memory in straight.editor.memory.items():
        ours, theirs = memory, resumed.editor.memory[layer]
        assert all(torch.equal(one, two) for one, two in zip(ours.bases, theirs.bases, strict=True))
