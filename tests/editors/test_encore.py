"""ENCORE against its textbook: what bounds ‖Δ‖, what earlier keys weigh, and when a target stops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import oracle, world
from support.editing import COVARIANCES, LAYERS, RECORDS, session, weights
from support.learned import learned
from support.spaces import random_spaces
from support.successors import BATCHES, HYPERPARAMETERS, add, hidden, keys, z_stars
from support.tiny import model_of
from support.weights import assert_same
from torch import Tensor

from alphaedit_plugin.editors.hyperparameters import TargetSettings
from alphaedit_plugin.editors.optimisers import Adam
from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.editors.targets import Targets, optimise_targets
from alphaedit_plugin.editors.variant import Variant
from alphaedit_plugin.errors import HyperparameterError
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.session.session import Session

LAST = LAYERS[-1]


def encore_delta(k, residual, earlier, covariance, lam: float, lambda_p: float, lambda_n: float) -> Tensor:
    """R Kᵀ(λC + λ_p KpKpᵀ + λ_n I + KKᵀ)⁻¹, dense, in float64."""
    k, residual, earlier = k.double(), residual.double(), earlier.double()
    system = lam * covariance + lambda_p * earlier @ earlier.T + k @ k.T
    system = system + lambda_n * torch.eye(len(system), dtype=torch.float64)
    return torch.linalg.solve(system, k @ residual.T).T


@pytest.mark.slow
@pytest.mark.parametrize(("lambda_p", "lambda_n"), [(1.0, 10.0), (0.25, 0.5), (4.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize(("name", "projected"), [("llama", False), ("gpt2", True)])
def test_three_batches_leave_the_weights_that_the_textbook_leaves(
    name, projected, lambda_p, lambda_n, tokenizer, exact
):
    ours, theirs = model_of(name), model_of(name)
    start, spaces = weights(ours), random_spaces(ours, LAYERS)
    method = f"encore@lambda_p={lambda_p}@lambda_n={lambda_n}@most_probable=false" + "+P" * projected
    running = session(ours, tokenizer, method, spaces, HYPERPARAMETERS)
    earlier: dict[int, list[Tensor]] = {layer: [] for layer in LAYERS}
    for records in BATCHES:
        running.edit(records)
        wanted = z_stars(theirs, tokenizer, LAST, records)
        for left, layer in zip((3, 2, 1), LAYERS, strict=True):
            k = keys(theirs, tokenizer, layer, records)
            residual = (wanted - hidden(theirs, tokenizer, LAST, records)).T / left
            previous = torch.cat([k[:, :0], *earlier[layer]], 1)
            delta = encore_delta(
                k,
                residual,
                previous,
                COVARIANCES[layer].matrix,
                HYPERPARAMETERS.mom2_update_weight,
                lambda_p,
                lambda_n,
            )
            add(theirs, layer, delta @ spaces[layer].dense() if projected else delta)
            earlier[layer].append(k)
    for layer, expected in weights(theirs).items():
        moved = float((expected - start[layer]).norm())
        assert moved > 1e-4 * float(start[layer].norm())
        assert float((weights(ours)[layer] - expected).norm()) <= 1e-6 * moved


def test_without_its_regularisation_it_is_memit_seq(tokenizer):
    ours, theirs = model_of(), model_of()
    start = weights(ours)
    for model, method in ((ours, "encore@lambda_n=0@most_probable=false"), (theirs, "memit-seq")):
        running = session(model, tokenizer, method, hyperparameters=HYPERPARAMETERS)
        for batch in BATCHES:
            running.edit(batch)
    for layer, expected in weights(theirs).items():
        assert float((weights(ours)[layer] - expected).norm()) <= 1e-8 * float((expected - start[layer]).norm())


def test_the_dearer_the_norm_the_shorter_the_update(tokenizer):
    sizes = []
    for lambda_n in (0.0, 10.0, 1000.0):
        model = model_of()
        start = weights(model)
        running = session(model, tokenizer, f"encore@lambda_n={lambda_n}", hyperparameters=HYPERPARAMETERS)
        running.edit(RECORDS)
        sizes.append(float((weights(model)[0] - start[0]).norm()))
    assert sizes[0] > sizes[1] > sizes[2]


def _said(model, tokenizer, request: Request, layer: int, delta: Tensor) -> bool:
    """Whether Hugging Face's own forward, δ added, predicts every token of the object in every context."""
    block, record = Decoder(model).block(layer), vars(request)
    for context in world.CONTEXTS:
        text, end = oracle._text(record, context)
        prompt, target = oracle._encode(tokenizer, text)[0], oracle.target_ids(tokenizer, text, request.target_new)
        position = oracle.subject_last(tokenizer, text, end)
        with torch.no_grad(), oracle._hooked(oracle._adding(block, delta, position)):
            found = oracle._logits(model, prompt + target[:-1])[len(prompt) - 1 :].argmax(-1)
        if found.tolist() != target:
            return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("optimiser", ["adam", "normalised"])
def test_a_target_stops_at_the_first_step_at_which_the_model_says_the_object(optimiser):
    """Objects of several tokens too, and each by itself, whatever else is in the batch."""
    model, tokenizer = learned("llama")
    model, layer = model.double(), 2
    requests = [fact.request for fact in world.counterfacts(3)]
    requests.append(replace(requests[0], target_new=f"{requests[1].target_new} {requests[0].target_new}"))
    plain = TargetSettings(steps=30, lr=0.2, clamp=2.0, optimiser=optimiser)

    def found(chosen, **changes) -> Targets:
        return optimise_targets(model, tokenizer, chosen, world.CONTEXTS, layer, replace(plain, **changes))

    stopped = found(requests, most_probable=True)
    spent = {"adam": 29, "normalised": 15}[optimiser]
    assert (stopped.steps[:3] < spent).all()
    assert (stopped.losses[:3] > Adam.enough).any(), "none has stopped earlier than it would"
    for row, request in enumerate(requests):
        steps = int(stopped.steps[row])
        assert _said(model, tokenizer, request, layer, stopped.delta[row]) == (steps < spent)
        if optimiser == "adam":  # the other one's first steps see two contexts, and end when it is said in these
            for fewer in range(steps):
                before = found([request], steps=fewer + 1).delta[0]
                assert not _said(model, tokenizer, request, layer, before)


def test_only_encore_stops_early_and_only_if_it_is_asked_to(tokenizer):
    assert session(model_of(), tokenizer, "encore").editor.target_settings.most_probable
    assert not session(model_of(), tokenizer, "encore@most_probable=false").editor.target_settings.most_probable
    assert not session(model_of(), tokenizer, "memit-seq").editor.target_settings.most_probable


@pytest.mark.parametrize("method", ["encore", "encore@lambda_p=0.5@blue=true", "encore@nas=true+rect+P"])
def test_it_is_undone_saved_and_resumed_bit_for_bit(method, tokenizer, tmp_path):
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
    assert_same(weights(models[2]), weights(models[0]))
    whole.undo()
    assert_same(weights(models[0]), weights(models[1]))
    whole.edit(BATCHES[2])
    assert_same(weights(models[0]), weights(models[2]))


@pytest.mark.parametrize("key", ["lambda_p", "lambda_n"])
def test_a_negative_weight_is_refused(key):
    with pytest.raises(HyperparameterError, match=rf"encore@{key}=-1.*{key} must not be negative, not -1"):
        Variant.parse(f"encore@{key}=-1")
