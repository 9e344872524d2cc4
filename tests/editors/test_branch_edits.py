"""What the hidden state moves by is what was asked, whatever a block makes of its out-projection's output."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import oracle
from support.tiny import NAMES, model_of

from alphaedit_plugin.editors.hyperparameters import Hyperparameters
from alphaedit_plugin.editors.keys import Sweep
from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.nullspace.covariance import Covariance
from alphaedit_plugin.session.session import Session

REQUESTS = [
    Request("{} is located in the city of", "The Eiffel Tower", "Rome"),
    Request("The mother tongue of {} is", "Danielle Darrieux", "English"),
    Request("In the war the people said that {} plays the sport of", "Jordan", "chess"),
]
CONTEXTS = ("{}", "The river flows. {}")
CASES = [(name, {}) for name in NAMES] + [("granite", {"residual_multiplier": 0.22})]
SETTINGS = Hyperparameters(layers=(2,), mom2_update_weight=1e-9, v_num_grad_steps=8, v_lr=0.2, target_optimiser="adam")


def hidden_at(model, tokenizer, layer: int) -> torch.Tensor:
    """By Hugging Face's own forward, one prompt at a time."""
    found = []
    for request in REQUESTS:
        before, _, _ = request.prompt.partition("{}")
        encoded = tokenizer(before + request.subject, return_tensors="pt")
        found.append(model(**encoded, output_hidden_states=True).hidden_states[layer + 1][0, -1])
    return torch.stack(found)


def covariances(model, layers, seed: int = 0) -> dict[int, Covariance]:
    found = {}
    for layer in layers:
        d_in = Decoder(model).out_projection(layer).d_in
        keys = torch.randn(400, d_in, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + layer))
        found[layer] = Covariance.empty(d_in)
        found[layer].add(keys)
    return found


@pytest.mark.parametrize(("name", "changes"), CASES, ids=[f"{n}{'+' if c else ''}" for n, c in CASES])
@torch.no_grad()
def test_one_layer_moves_the_hidden_state_by_what_was_asked(name, changes, tokenizer):
    model = model_of(name, **changes)
    session = Session(
        model, tokenizer, "memit", hyperparameters=SETTINGS, covariances=covariances(model, (2,)), contexts=["{}"]
    )
    targets = session.editor.targets(REQUESTS)
    before = hidden_at(model, tokenizer, 2)
    session.edit(REQUESTS, targets)
    achieved = hidden_at(model, tokenizer, 2) - before
    wanted = targets.delta.reshape(len(REQUESTS), -1).double()
    assert (wanted.norm(dim=1) > 1e-3).all()
    cosine = torch.nn.functional.cosine_similarity(achieved, wanted)
    assert cosine.min() > 0.999
    assert ((achieved.norm(dim=1) / wanted.norm(dim=1)) - 1).abs().max() < 1e-2


@pytest.mark.parametrize(
    ("name", "changes"),
    [("gemma2", {}), ("gemma3_text", {}), ("olmo2", {}), ("granite", {"residual_multiplier": 0.22})],
    ids=["gemma2", "gemma3", "olmo2", "granite"],
)
def test_what_layers_add_together_is_what_the_textbook_finds(name, changes, tokenizer, exact):
    """Adam on a δ for each layer, each request alone, by whole forward passes; unit and norm by their definitions."""
    model = model_of(name, **changes)
    layers = (1, 2)
    settings = replace(SETTINGS, layers=layers)
    session = Session(
        model, tokenizer, "memit", hyperparameters=settings, covariances=covariances(model, layers), contexts=CONTEXTS
    )
    targets = session.editor.targets(REQUESTS)
    decoder = Decoder(model)
    modules = [decoder.out_projection(layer).module for layer in layers]
    target = settings.target_settings
    for row, request in enumerate(REQUESTS):
        record = {"prompt": request.prompt, "subject": request.subject, "target_new": request.target_new}
        sites = []
        for layer, module in zip(layers, modules, strict=True):
            value = oracle.current_z(model, tokenizer, record, module)
            if name == "granite":  # linear: δ is in the units of the hidden state, which the layers move together
                hidden = oracle.current_z(model, tokenizer, record, decoder.block(layer))
                sites.append((module, 1 / 0.22, hidden.norm() / len(layers)))
            else:
                size = torch.tensor((len(value) / len(layers)) ** 0.5)
                sites.append((module, value.square().mean().sqrt(), size))
        expected = oracle.compute_shifts(
            model,
            tokenizer,
            record,
            CONTEXTS,
            sites,
            steps=target.steps,
            lr=target.lr,
            weight_decay=target.weight_decay,
            kl_factor=target.kl_factor,
            clamp=target.clamp,
        )
        for layer, shift in enumerate(expected):
            assert float(shift.norm()) > 0
            assert float((targets.shift[row, layer] - shift).norm() / shift.norm()) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_the_branch_is_found_by_moving_the_out_projections_output(name, tokenizer):
    """`effect` says what the block returns when u is moved, and `move` is its inverse where it can be reached."""
    model = model_of(name)
    decoder = Decoder(model)
    projection = decoder.out_projection(2)
    sweep = Sweep(model, tokenizer, REQUESTS, ["{}"])
    branch = sweep.branch(projection)
    shift = torch.randn(branch.value.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shift *= 0.5 * branch.value.norm(dim=1, keepdim=True) / shift.norm(dim=1, keepdim=True)
    before = hidden_at(model, tokenizer, 2)
    moved = []
    for row, request in enumerate(REQUESTS):
        text = request.prompt.partition("{}")[0] + request.subject

        def add(_module, _args, output, row=row):
            return torch.cat([output[..., :-1, :], output[..., -1:, :] + shift[row]], -2)

        handle = projection.module.register_forward_hook(add)
        states = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        handle.remove()
        moved.append(states[3][0, -1])
    effect = torch.stack(moved) - before
    assert torch.allclose(branch.effect(shift), effect, rtol=1e-5, atol=1e-6 * float(effect.norm()))
    assert torch.allclose(branch.effect(branch.move(effect)), effect, rtol=1e-2, atol=1e-3 * float(effect.norm()))
    assert branch.is_identity(torch.float64) == torch.allclose(effect, shift, rtol=1e-6, atol=1e-9)
