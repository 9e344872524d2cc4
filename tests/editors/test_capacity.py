"""The room that kept keys leave: against the trace of the dense smoother, and the dimensions of the null space."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.editing import LAYERS, session
from support.spaces import random_spaces
from support.successors import BATCHES, HYPERPARAMETERS
from support.tiny import model_of
from support.tries import tries

from alphaedit_plugin.editors.capacity import Capacity
from alphaedit_plugin.editors.ridge import Ridge


@tries(100)
@given(
    d=st.integers(1, 10),
    sizes=st.lists(st.integers(1, 5), max_size=5),
    exponent=st.floats(-2, 3),
    seed=st.integers(0, 99),
)
def test_what_is_used_is_the_trace_of_the_dense_smoother(d, sizes, exponent, seed):
    """tr((KKᵀ + λI)⁻¹KKᵀ), whichever of the two matrices is the smaller."""
    generator, weight = torch.Generator().manual_seed(seed), 10**exponent
    blocks = [torch.randn(d, size, generator=generator, dtype=torch.float64) for size in sizes]
    ridge = Ridge(weight, d)
    for block in blocks:
        ridge = ridge.add(block)[1]
    keys = torch.cat([torch.zeros(d, 0, dtype=torch.float64), *blocks], 1)
    gram = keys @ keys.T
    expected = torch.linalg.solve(gram + weight * torch.eye(d, dtype=torch.float64), gram).trace()
    found = Capacity.of(d, ridge.weights())
    assert found.used == pytest.approx(float(expected), abs=1e-8)
    assert -1e-9 <= found.left <= d
    assert (found.condition is None) == (not sizes)
    if sizes and keys.shape[1] <= d:
        eigenvalues = torch.linalg.eigvalsh(keys.T @ keys) + weight
        assert found.condition == pytest.approx(float(eigenvalues[-1] / eigenvalues[0]), rel=1e-6)


def test_without_regularisation_a_key_fills_a_dimension_and_one_that_repeats_none():
    key = torch.tensor([[1.0], [2.0], [0.0]], dtype=torch.float64)
    ridge = Ridge(0.0, 3).add(key)[1].add(2 * key)[1]
    assert Capacity.of(3, ridge.weights()) == Capacity(3, 1.0, 1.0)


@pytest.mark.parametrize("method", ["alphaedit", "memit-seq", "evoedit", "betaedit@refresh=2", "encore", "memit"])
def test_facts_fill_the_room_that_a_method_has_and_undoing_frees_it(method, tokenizer):
    model = model_of()
    spaces = random_spaces(model, LAYERS)
    running = session(model, tokenizer, method, spaces, HYPERPARAMETERS)
    seen = [running.editor.capacity(0)]
    counts = [0]
    for batch in BATCHES:
        running.edit(batch, on_failure="ignore")
        counts.append(len(running.facts))
        seen.append(running.editor.capacity(counts[-1]))
    if method == "memit":
        assert seen == [{}] * 4  # it keeps nothing
        return
    for layer in LAYERS:
        used = [of[layer].used for of in seen[1:]]
        assert used[0] > 0
        if "refresh" not in method:  # then P and its metric change
            assert used == sorted(used)
            assert [running.editor.capacity(count)[layer] for count in counts[1:]] == [of[layer] for of in seen[1:]]
        assert all(0 <= of[layer].used <= of[layer].dimensions for of in seen[1:])
        width = running.projections[layer].d_in
        if method in ("alphaedit", "evoedit"):
            assert seen[-1][layer].dimensions == spaces[layer].nullity
        elif method in ("memit-seq", "encore"):
            assert seen[-1][layer].dimensions == width
    running.undo()
    assert running.editor.capacity(counts[-2]) == seen[-2]
