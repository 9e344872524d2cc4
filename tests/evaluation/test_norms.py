"""Norms of weights and hidden states, against Hugging Face's own hidden states."""

from __future__ import annotations

import math

import pytest
import torch
from support.tiny import model_of, tiny

from alphaedit_plugin.errors import CorpusError
from alphaedit_plugin.evaluation.norms import Norms, state_norms
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.model.gradients import gradients

TEXT = "When the king came home from the war, the people of the village had already forgotten his name. " * 40


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma2"])
@pytest.mark.parametrize("batch_tokens", [16, 4096])
def test_lengths_are_those_of_hidden_states_without_each_windows_first(name, batch_tokens):
    model, windows = model_of(name), [[1, 2, 3, 4, 5], [7, 8], [9, 10, 11]]
    found = state_norms(Decoder(model), windows, 1, batch_tokens=batch_tokens)
    for norm, window in zip(found.tolist(), windows, strict=True):
        with gradients(False):
            states = model(torch.tensor([window]), output_hidden_states=True).hidden_states[2]  # of block 1
        assert norm == pytest.approx(float(states[0, 1:].double().norm(dim=-1).mean()), rel=1e-5)


def test_before_any_edit_all_is_one_and_a_weight_twice_as_large_counts_as_two(tokenizer):
    model = tiny("llama", vocab_size=512)
    measure = Norms(TEXT, tokenizer, (2, 0))
    assert len(measure.windows) > 1
    before = measure(model, tokenizer, [], None)
    assert {name: of.value for name, of in before.estimates.items()} == {"weight_norm": 1.0, "state_norm": 1.0}
    with gradients(False):
        model.model.layers[2].mlp.down_proj.weight.mul_(3.0)
    after = measure(model, tokenizer, [], before).estimates
    assert after["weight_norm"].value == pytest.approx(2.0)
    plain = state_norms(Decoder(model), measure.windows, 2) / torch.tensor(before.records[0]["norms"][2:])
    assert after["state_norm"].value == pytest.approx(float(plain.mean()))
    assert after["state_norm"].value > 1


def test_states_that_are_not_finite_are_infinitely_long(tokenizer):
    model = tiny("llama", vocab_size=512)
    measure = Norms(TEXT, tokenizer, (0, 1))
    before = measure(model, tokenizer, [], None)
    with gradients(False):
        model.model.layers[1].mlp.down_proj.weight.fill_(math.nan)
    found = measure(model, tokenizer, [], before)
    assert found.estimates["state_norm"].value == math.inf
    assert None in found.records[0]["norms"]


def test_no_text_is_an_error(tokenizer):
    with pytest.raises(CorpusError, match="held-out text is empty"):
        Norms("", tokenizer, (0,))
