"""BLUE against its textbook: first and last layer, a z* for each on the model of that moment, residuals undivided."""

from __future__ import annotations

import pytest
import torch
from support import oracle
from support.editing import CONTEXTS, COVARIANCES, LAYERS, RECORDS, REQUESTS, session, weights
from support.spaces import random_spaces
from support.successors import BATCHES, HYPERPARAMETERS, add, hidden, keys, z_stars
from support.tiny import model_of
from support.weights import assert_same
from torch import Tensor

from alphaedit_plugin.editors.memit import MEMIT
from alphaedit_plugin.editors.preserved import Preserved
from alphaedit_plugin.editors.variant import Variant
from alphaedit_plugin.errors import HyperparameterError
from alphaedit_plugin.session.session import Session

FIRST, LAST = LAYERS[0], LAYERS[-1]


def textbook(model, tokenizer, method: str, spaces, layers=(FIRST, LAST), batches=BATCHES) -> None:
    earlier: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    h = HYPERPARAMETERS
    for records in batches:
        for layer in layers:
            wanted = z_stars(model, tokenizer, layer, records)
            k = keys(model, tokenizer, layer, records)
            residual = (wanted - hidden(model, tokenizer, layer, records)).T
            previous = torch.cat([k[:, :0], *earlier[layer]], 1)
            covariance, projection = COVARIANCES[layer].matrix, spaces[layer].dense()
            if method.startswith("alphaedit"):
                delta = oracle.alphaedit_delta(k, residual, previous, projection, h.L2)
            elif method.startswith("memit-seq"):
                delta = oracle.memit_seq_delta(k, residual, previous, covariance, h.mom2_update_weight)
            else:
                delta = oracle.memit_delta(k, residual, covariance, h.mom2_update_weight)
            add(model, layer, delta @ projection if method.endswith("+P") else delta)
            earlier[layer].append(keys(model, tokenizer, layer, records))


def assert_near(found, expected, start, share: float) -> None:
    for layer in (FIRST, LAST):
        moved = float((expected[layer] - start[layer]).norm())
        assert moved > 1e-3 * float(start[layer].norm())
        assert float((found[layer] - expected[layer]).norm()) <= share * moved, layer


@pytest.mark.slow
@pytest.mark.parametrize("method", ["memit", "memit+P", "memit-seq", "alphaedit"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_three_batches_leave_the_weights_that_the_textbook_leaves(name, method, tokenizer, exact):
    ours, theirs = model_of(name), model_of(name)
    start, spaces = weights(ours), random_spaces(ours, LAYERS)
    solver, plus, marks = method.partition("+")
    running = session(ours, tokenizer, f"{solver}@blue=true{plus}{marks}", spaces, HYPERPARAMETERS)
    for batch in BATCHES:
        running.edit(batch)
    textbook(theirs, tokenizer, method, spaces)
    assert_near(weights(ours), weights(theirs), start, 1e-5)  # P is in float32
    assert torch.equal(weights(ours)[LAYERS[1]], start[LAYERS[1]])


@pytest.mark.slow
def test_an_editor_that_is_given_layers_edits_each_of_them_as_the_authors_code_does(tokenizer, exact):
    ours, theirs = model_of(), model_of()
    start, spaces = weights(ours), random_spaces(ours, LAYERS)
    base = HYPERPARAMETERS.changed({"blue": True}, "here", MEMIT.settings)
    MEMIT(ours, tokenizer, base, Preserved(COVARIANCES), contexts=CONTEXTS).edit(REQUESTS)
    textbook(theirs, tokenizer, "memit", spaces, LAYERS, [RECORDS])
    assert_near(weights(ours), weights(theirs), start, 1e-7)
    assert not torch.equal(weights(ours)[LAYERS[1]], start[LAYERS[1]])


def test_blue_prepares_and_edits_two_layers_or_one(tokenizer):
    variant = Variant.parse("alphaedit@blue=true")
    model = model_of()
    assert variant.hyperparameters(model, "", HYPERPARAMETERS).layers == (FIRST, LAST)
    assert variant.hyperparameters(model, "", HYPERPARAMETERS.with_layers((1,))).layers == (1,)
    assert Variant.parse("alphaedit@blue=false").hyperparameters(model, "", HYPERPARAMETERS).layers == LAYERS
    assert str(variant) == "alphaedit@blue=true"
    with pytest.raises(HyperparameterError, match=r"blue must be true or false, not 2"):
        Variant.parse("memit@blue=2")
    with pytest.raises(HyperparameterError, match="blue"):
        Variant.parse("rome@blue=true")


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_with_next_to_no_regularisation_the_last_layer_reaches_its_own_target(name, tokenizer):
    """Also where a norm follows the out-projection, as far as it lets the layer move."""
    model = model_of(name)
    method = "memit@blue=true@mom2_update_weight=1e-6"
    running = session(model, tokenizer, method, hyperparameters=HYPERPARAMETERS, contexts=["{}"])
    running.edit(RECORDS)
    assert float(running.batches[0].written.missed.max()) < (1e-3 if name == "llama" else 0.1)


def test_it_is_undone_saved_and_resumed_bit_for_bit(tokenizer, tmp_path):
    models = [model_of(dtype=torch.float32) for _ in range(3)]
    spaces = random_spaces(models[0], LAYERS)
    whole, half = (session(m, tokenizer, "alphaedit@blue=true", spaces, HYPERPARAMETERS) for m in models[:2])
    for batch in BATCHES:
        whole.edit(batch)
    for batch in BATCHES[:2]:
        half.edit(batch)
    half.save(tmp_path / "s")
    resumed = Session.resume(tmp_path / "s", models[2])
    resumed.edit(BATCHES[2])
    assert_same(weights(models[2]), weights(models[0]))
    whole.undo()
    assert_same(weights(models[0]), weights(models[1]))
    whole.edit(BATCHES[2])
    assert_same(weights(models[0]), weights(models[2]))
