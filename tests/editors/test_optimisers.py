"""The optimisers of targets: as written down, each request by itself, inside the ball."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.editing import CONTEXTS, REQUESTS
from support.tiny import NAMES, model_of

from alphaedit_plugin.editors.hyperparameters import NORMALISED, Hyperparameters, TargetSettings
from alphaedit_plugin.editors.optimisers import OPTIMISERS
from alphaedit_plugin.editors.target_loss import Rows, TargetLoss
from alphaedit_plugin.editors.targets import optimise_targets
from alphaedit_plugin.errors import HyperparameterError
from alphaedit_plugin.model.decoder import Decoder

LAYER = 1
SETTINGS = TargetSettings(steps=8, clamp=0.5, optimiser=NORMALISED)
SHAPES = [(3, 5), (3, 2, 5)]
"""Of the δ of three requests: one for each, or one for each of two layers."""


def gradients_of(shape: tuple[int, ...], count: int) -> torch.Tensor:
    return torch.randn(count, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def textbook_step(delta: torch.Tensor, gradients: list[torch.Tensor], radius: float) -> torch.Tensor:
    """δ ← clip(δ − 0.4 · 0.85ⁱ · R · s/‖s‖) with s = u/(√(Σ u²) + 0.01/√d), u = g/‖g‖, in the step after the i-th."""
    units = [gradient / gradient.norm() for gradient in gradients]
    s = units[-1] / (sum(u**2 for u in units) ** 0.5 + 0.01 / len(units[-1]) ** 0.5)
    moved = delta - 0.4 * 0.85 ** (len(units) - 1) * radius * s / s.norm()
    return moved if moved.norm() <= radius else moved * radius / moved.norm()


@pytest.mark.parametrize("shape", SHAPES)
def test_normalised_steps_follow_their_formula(shape):
    """For each vector of R its own."""
    radius = torch.rand(*shape[:-1], 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.5
    optimiser = OPTIMISERS[NORMALISED](torch.zeros(shape, dtype=torch.float64), lr=7.0)
    delta, expected = torch.zeros(2, *shape, dtype=torch.float64).unbind(0)
    seen: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for gradient in gradients_of(shape, 9):
        delta = optimiser.step(torch.arange(3), delta, gradient, radius)
        for at in torch.cartesian_prod(*map(torch.arange, shape[:-1])).reshape(-1, len(shape) - 1).tolist():
            one = tuple(at)
            seen.setdefault(one, []).append(gradient[one])
            expected[one] = textbook_step(expected[one], seen[one], float(radius[one]))
        assert torch.allclose(delta, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_how_long_gradients_are_does_not_matter(scale):
    gradients, rows, radius = gradients_of((3, 5), 6), torch.arange(3), torch.ones(3, 1, dtype=torch.float64)
    ends = []
    for factor in (1.0, scale):
        optimiser, delta = OPTIMISERS[NORMALISED](torch.zeros(3, 5), lr=0.5), torch.zeros(3, 5)
        for gradient in gradients:
            delta = optimiser.step(rows, delta, (factor * gradient).float(), radius.float())
        ends.append(delta)
    assert torch.allclose(*ends, rtol=1e-4)


def test_entries_that_are_large_for_every_fact_do_not_lead():
    """A first step moves every entry alike, however much larger one entry of the gradient is."""
    gradient = torch.ones(1, 100)
    gradient[0, 7] = 50.0
    step = OPTIMISERS[NORMALISED](torch.zeros(1, 100), lr=0.5).step(
        torch.tensor([0]), torch.zeros(1, 100), gradient, torch.ones(1, 1)
    )
    assert step.norm() == pytest.approx(0.4, rel=1e-6)
    assert step.max() < 0
    assert step.abs().max() < 1.1 * step.abs().min()


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_request_is_moved_by_its_own_gradients_alone(name, shape):
    """Others may join or leave at any step."""
    together, alone = (OPTIMISERS[name](torch.zeros(shape, dtype=torch.float64), lr=0.1) for _ in range(2))
    radius = torch.ones(*shape[:-1], 1, dtype=torch.float64)
    first, second = torch.zeros(2, *shape, dtype=torch.float64).unbind(0)
    one = torch.tensor([1])
    for i, gradient in enumerate(gradients_of(shape, 6)):
        rows = torch.tensor([[0, 1, 2], [1, 2], [1]][i // 2])
        first[rows] = together.step(rows, first[rows], gradient[rows], radius[rows])
        second[one] = alone.step(one, second[one], gradient[one], radius[one])
    assert torch.allclose(first[1], second[1], rtol=1e-12)
    assert together.taken.tolist() == [2, 6, 4]


@given(name=st.sampled_from(sorted(OPTIMISERS)), scale=st.floats(1e-30, 1e30), steps=st.integers(1, 12))
def test_every_step_stays_in_the_ball_whatever_the_gradient(name, scale, steps):
    optimiser = OPTIMISERS[name](torch.zeros(3, 5), lr=0.5)
    delta, radius = torch.zeros(3, 5), torch.tensor([[0.1], [1.0], [30.0]])
    for gradient in gradients_of((3, 5), steps).float() * scale:
        gradient[0] = 0.0  # what no gradient moves stays
        delta = optimiser.step(torch.arange(3), delta, gradient, radius)
        assert torch.isfinite(delta).all()
        assert (delta.norm(dim=1) <= radius[:, 0] * (1 + 1e-6)).all()
    assert torch.equal(delta[0], torch.zeros(5))


@pytest.mark.parametrize("name", NAMES)
def test_targets_are_where_a_textbook_descent_gets_to(name, tokenizer, exact):
    """Two steps on all contexts, then on two until these are content, then on all; nothing cached, one at a time."""
    model, decoder = model_of(name), Decoder(model_of(name))
    found = optimise_targets(decoder, tokenizer, REQUESTS, CONTEXTS, LAYER, SETTINGS)
    for row, request in enumerate(REQUESTS):
        delta, gradients = torch.zeros_like(found.z[row]), []
        for contexts, most in ((CONTEXTS, 2), (CONTEXTS[:2], SETTINGS.steps - 1), (CONTEXTS, SETTINGS.steps - 1)):
            while True:
                loss, gradient = loss_at(model, tokenizer, request, contexts, delta)
                if loss < 0.07 or len(gradients) == most:
                    break
                gradients.append(gradient)
                delta = textbook_step(delta, gradients, float(SETTINGS.clamp * found.z[row].norm()))
        assert found.steps[row] == len(gradients)
        assert (found.delta[row] - delta).norm() <= 1e-12 * delta.norm()
        assert float(found.losses[row]) == pytest.approx(loss, rel=1e-6)


def loss_at(model, tokenizer, request, contexts, delta):
    """(loss, its gradient) of whole sequences. (The loss itself has its own oracle in `test_targets.py`.)"""

    problem = TargetLoss(Decoder(model), LAYER, [Rows.of(tokenizer, request, contexts)], use_prefix_cache=False)
    variable = delta[None].clone().requires_grad_()
    loss = problem.losses(variable, SETTINGS)
    (gradient,) = torch.autograd.grad(loss.sum(), [variable])
    return float(loss.detach()), gradient[0]


def test_a_batch_gives_what_its_requests_give_one_by_one(tokenizer, exact):
    """Also where the heads of prefixes are run once for all of them."""
    model = model_of("llama")
    decoder = Decoder(model)
    for _ in range(2):  # the cache is known to be good from the second time on
        together = optimise_targets(decoder, tokenizer, REQUESTS, CONTEXTS, LAYER, SETTINGS)
    for row, request in enumerate(REQUESTS):
        alone = optimise_targets(model, tokenizer, [request], CONTEXTS, LAYER, SETTINGS)
        assert torch.allclose(together.delta[row], alone.delta[0], rtol=1e-12, atol=1e-15)
        assert together.steps[row] == alone.steps[0]


def test_the_first_steps_and_the_decision_that_a_request_is_done_see_all_contexts(tokenizer, monkeypatch):
    model, seen = model_of("llama"), []
    losses = TargetLoss.losses

    def watched(self, delta, settings):
        seen.append(self.contexts)
        return losses(self, delta, settings)

    monkeypatch.setattr(TargetLoss, "losses", watched)
    monkeypatch.setattr(OPTIMISERS[NORMALISED], "enough", 1e-9)
    settings = replace(SETTINGS, steps=13)
    found = optimise_targets(model, tokenizer, REQUESTS, CONTEXTS, LAYER, settings, use_prefix_cache=False)
    assert seen == [3] * 2 + [2] * 9 + [3] * 3  # each stage looks once more than it steps, but for the first
    assert found.steps.tolist() == [12] * len(REQUESTS)
    monkeypatch.setattr(OPTIMISERS[NORMALISED], "enough", 1e9)
    seen.clear()
    found = optimise_targets(model, tokenizer, REQUESTS, CONTEXTS, LAYER, settings, use_prefix_cache=False)
    assert seen[0] == seen[-1] == 3
    assert not found.delta.any()
    assert found.steps.tolist() == [0] * len(REQUESTS)


def test_the_prefixes_heads_are_run_once_for_all_requests(tokenizer, monkeypatch):
    model, run = model_of("llama", torch.float32), []
    decoder = Decoder(model)
    optimise_targets(decoder, tokenizer, REQUESTS, CONTEXTS, LAYER, replace(SETTINGS, steps=1))
    assert decoder.prefix_cache is True
    model.register_forward_pre_hook(
        lambda _module, _args, kwargs: run.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    optimise_targets(decoder, tokenizer, REQUESTS, CONTEXTS, LAYER, replace(SETTINGS, steps=1))
    head = min(len(tokenizer(context.replace("{}", ""))["input_ids"]) for context in CONTEXTS[1:])
    (rows, tokens), rest = run[0], run[1]
    assert rows == len(CONTEXTS) - 1  # the bare prompt and the KL term's row have no head
    assert tokens >= head > 2
    assert rest[0] == len(REQUESTS) * (len(CONTEXTS) + 1)


def test_who_sets_a_step_size_asks_for_adam():
    settings = Hyperparameters(layers=(1,))
    assert settings.target_optimiser == NORMALISED
    assert settings.changed({"v_lr": 0.1}, "here").target_optimiser == "adam"
    assert settings.changed({"clamp_norm_factor": 0.1}, "here").target_optimiser == NORMALISED
    with pytest.raises(HyperparameterError, match=r"here: v_lr is Adam's step size"):
        settings.changed({"v_lr": 0.1, "target_optimiser": NORMALISED}, "here")


def test_settings_that_were_saved_before_there_was_a_choice_are_adams():
    saved = Hyperparameters(layers=(1,), target_optimiser="adam").as_dict()
    assert "target_optimiser" not in saved
    assert Hyperparameters.from_saved(saved, "here").target_optimiser == "adam"
    assert Hyperparameters.from_mapping(saved, "here").target_optimiser == NORMALISED
    now = Hyperparameters(layers=(1,))
    assert Hyperparameters.from_saved(now.as_dict(), "here") == now


def test_an_unknown_optimiser_is_refused():
    with pytest.raises(HyperparameterError, match="target_optimiser must be 'normalised' or 'adam', not 'sgd'"):
        Hyperparameters.from_mapping({"layers": [1], "target_optimiser": "sgd"}, "here")
