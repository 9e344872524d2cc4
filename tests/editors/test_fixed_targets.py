"""Targets that were found on another model than they are written into, against the textbook."""

from __future__ import annotations

import pytest
import torch
from support import oracle
from support.editing import CONTEXTS, LAYERS, session, weights
from support.spaces import random_spaces
from support.successors import BATCHES, HYPERPARAMETERS, add, hidden, keys, z_stars
from support.tiny import model_of

LAST = LAYERS[-1]


@pytest.mark.slow
def test_three_batches_leave_the_weights_that_the_textbook_leaves(tokenizer, exact):
    """Every z* is found before anything is written; each residual is what is missing to it by then."""
    ours, theirs = model_of(), model_of()
    start, spaces = weights(ours), random_spaces(ours, LAYERS)
    running = session(ours, tokenizer, "alphaedit", spaces, HYPERPARAMETERS)
    for batch, targets in [(each, running.editor.fixed_targets(running.check(each))) for each in BATCHES]:
        running.edit(batch, targets)
    wanted = [z_stars(theirs, tokenizer, LAST, batch) for batch in BATCHES]
    earlier = {layer: [] for layer in LAYERS}
    for batch, z_star in zip(BATCHES, wanted, strict=True):
        for left, layer in zip((3, 2, 1), LAYERS, strict=True):
            k = keys(theirs, tokenizer, layer, batch)
            residual = (z_star - hidden(theirs, tokenizer, LAST, batch)).T / left
            previous = torch.cat([k[:, :0], *earlier[layer]], 1)
            projection = spaces[layer].dense()
            add(theirs, layer, oracle.alphaedit_delta(k, residual, previous, projection, HYPERPARAMETERS.L2))
        for layer in LAYERS:
            earlier[layer].append(keys(theirs, tokenizer, layer, batch))
    for layer, expected in weights(theirs).items():
        moved = float((expected - start[layer]).norm())
        assert moved > 1e-3 * float(start[layer].norm())
        assert float((weights(ours)[layer] - expected).norm()) <= 1e-5 * moved


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_what_is_fixed_is_the_place_and_not_the_way_to_it(architecture, tokenizer):
    """Gemma 2 has a z* for each layer."""
    model = model_of(architecture)
    running = session(model, tokenizer, "memit", hyperparameters=HYPERPARAMETERS, contexts=CONTEXTS)
    requests = running.check(BATCHES[0])
    fixed, now = running.editor.fixed_targets(requests), running.editor.targets(requests)
    torch.testing.assert_close(fixed.z_star.float(), now.z_star.float())
    elsewhere = fixed.seen_from(fixed.z + torch.ones_like(fixed.z))
    torch.testing.assert_close(elsewhere.z_star, fixed.z_star)
    assert (fixed.fixed, elsewhere.fixed, fixed.z.dtype) == (True, False, torch.float64)
    running.edit(BATCHES[1])
    moved = running.edit(BATCHES[0], fixed)
    assert len(moved) == len(requests)
