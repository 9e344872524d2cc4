"""NAS against its textbook: every z* as long as on the unedited model, in whatever order a session goes on."""

from __future__ import annotations

import json

import pytest
import torch
from support import oracle
from support.editing import COVARIANCES, LAYERS, RECORDS, session, weights
from support.paths import ROOT
from support.spaces import random_spaces
from support.successors import BATCHES, HYPERPARAMETERS, add, hidden, keys, value, z_stars
from support.tiny import model_of
from support.weights import assert_same
from torch import Tensor

from alphaedit_plugin.editors.nas import FACTS, trimmed_mean
from alphaedit_plugin.errors import ModelStructureError
from alphaedit_plugin.session.session import Session

LAST = LAYERS[-1]


def reference_norm(model, tokenizer, layer: int) -> float:
    """The mean ‖v0 + δ‖ of the shipped facts, by the textbook's targets, without the largest one of twenty."""
    nested = json.loads((ROOT / "examples" / "facts.json").read_text())[:FACTS]
    rewrites = [each["requested_rewrite"] for each in nested]
    records = [{**each, "target_new": each["target_new"]["str"]} for each in rewrites]
    delta = z_stars(model, tokenizer, layer, records) - hidden(model, tokenizer, layer, records)
    norms = (value(model, tokenizer, layer, records) + delta).norm(dim=1).tolist()
    norms.remove(max(norms))
    return sum(norms) / len(norms)


def textbook(model, tokenizer, method: str, spaces, batches=BATCHES) -> None:
    earlier: dict[int, list[Tensor]] = {layer: [] for layer in LAYERS}
    norm = reference_norm(model, tokenizer, LAST)
    for records in batches:
        z, v0 = hidden(model, tokenizer, LAST, records), value(model, tokenizer, LAST, records)
        v_star = v0 + z_stars(model, tokenizer, LAST, records) - z
        wanted = z - v0 + v_star * (norm / v_star.norm(dim=1, keepdim=True))
        for left, layer in zip((3, 2, 1), LAYERS, strict=True):
            k = keys(model, tokenizer, layer, records)
            residual = (wanted - hidden(model, tokenizer, LAST, records)).T / left
            previous = torch.cat([k[:, :0], *earlier[layer]], 1)
            if method == "alphaedit":
                delta = oracle.alphaedit_delta(k, residual, previous, spaces[layer].dense(), HYPERPARAMETERS.L2)
            else:
                delta = oracle.memit_delta(k, residual, COVARIANCES[layer].matrix, HYPERPARAMETERS.mom2_update_weight)
            add(model, layer, delta)
        for layer in LAYERS:
            earlier[layer].append(keys(model, tokenizer, layer, records))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), [("llama", "memit"), ("llama", "alphaedit"), ("gpt2", "alphaedit")])
def test_three_batches_leave_the_weights_that_the_textbook_leaves(name, method, tokenizer, exact):
    ours, theirs = model_of(name), model_of(name)
    start, spaces = weights(ours), random_spaces(ours, LAYERS)
    running = session(ours, tokenizer, f"{method}@nas=true", spaces, HYPERPARAMETERS)
    for batch in BATCHES:
        running.edit(batch)
    textbook(theirs, tokenizer, method, spaces)
    for layer, expected in weights(theirs).items():
        moved = float((expected - start[layer]).norm())
        assert moved > 1e-3 * float(start[layer].norm())
        assert float((weights(ours)[layer] - expected).norm()) <= 1e-5 * moved


@pytest.mark.parametrize("method", ["memit@nas=true@mom2_update_weight=1e-9", "memit@nas=true@blue=true"])
def test_every_value_is_as_long_as_on_the_unedited_model_however_many_were_written(method, tokenizer):
    """Asked of what the layer puts out, with next to no regularisation and the last layer alone."""
    model = model_of()
    hyperparameters = HYPERPARAMETERS.with_layers((1,)).changed({"mom2_update_weight": 1e-9}, "here")
    running = session(model, tokenizer, method, hyperparameters=hyperparameters, contexts=["{}"])
    lengths = []
    for batch in BATCHES:
        running.edit(batch)
        lengths += value(model, tokenizer, 1, batch).norm(dim=1).tolist()
    assert max(lengths) <= min(lengths) * (1 + 1e-4)


def test_the_largest_twentieth_does_not_count():
    assert trimmed_mean(torch.tensor([1.0, 100.0, *[2.0] * 18])) == pytest.approx((1 + 18 * 2) / 19)
    assert trimmed_mean(torch.tensor([1.0, 3.0])) == 2.0


@pytest.mark.parametrize("method", ["alphaedit@nas=true", "memit@nas=true@blue=true"])
def test_the_length_is_the_unedited_models_after_a_resume_and_an_undo_too(method, tokenizer, tmp_path):
    """Found in the middle of a sequence it is what it was at its beginning, and the rest follows bit for bit."""
    models = [model_of(dtype=torch.float32) for _ in range(3)]
    spaces = random_spaces(models[0], LAYERS)
    whole, half = (session(m, tokenizer, method, spaces, HYPERPARAMETERS) for m in models[:2])
    for batch in BATCHES:
        whole.edit(batch)
    for batch in BATCHES[:2]:
        half.edit(batch)
    half.save(tmp_path / "s")
    resumed = Session.resume(tmp_path / "s", models[2])
    resumed.edit(BATCHES[2])
    assert resumed.editor._reference_norms == whole.editor._reference_norms
    assert_same(weights(models[2]), weights(models[0]))
    whole.undo()
    assert_same(weights(models[0]), weights(models[1]))
    whole.edit(BATCHES[2])
    assert_same(weights(models[0]), weights(models[2]))
    whole.undo(3)
    whole.edit(RECORDS)
    fresh = session(model_of(dtype=torch.float32), tokenizer, method, spaces, HYPERPARAMETERS)
    fresh.edit(RECORDS)
    assert_same(weights(models[0]), weights(fresh.model))


def test_a_model_that_norms_what_a_layer_puts_out_is_refused_before_anything_is_touched(tokenizer):
    model = model_of("gemma2", torch.float32)
    start = weights(model)
    running = session(model, tokenizer, "memit@nas=true")
    with pytest.raises(ModelStructureError, match="leave nas out"):
        running.edit(RECORDS)
    assert_same(weights(model), start)
