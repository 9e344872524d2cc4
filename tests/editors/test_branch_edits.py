"""What the hidden state moves by is what was asked, whatever a block makes of its out-projection's output."""

from __future__ import annotations

import pytest
import torch
from support.tiny import NAMES, model_of

from alphaedit_plugin.editors.hyperparameters import Hyperparameters
from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.nullspace.covariance import Covariance
from alphaedit_plugin.session.session import Session

REQUESTS = [
    Request("{} is located in the city of", "The Eiffel Tower", "Rome"),
    Request("The mother tongue of {} is", "Danielle Darrieux", "English"),
    Request("In the war the people said that {} plays the sport of", "Jordan", "chess"),
]
CASES = [(name, {}) for name in NAMES] + [("granite", {"residual_multiplier": 0.22})]
SETTINGS = Hyperparameters(layers=(2,), mom2_update_weight=1e-9, v_num_grad_steps=8, v_lr=0.2)


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
    print(name, session.editor.direct, cosine.tolist(), (achieved.norm(dim=1) / wanted.norm(dim=1)).tolist())
    assert cosine.min() > 0.999
    assert ((achieved.norm(dim=1) / wanted.norm(dim=1)) - 1).abs().max() < 1e-2
