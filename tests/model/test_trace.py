"""Reading a forward pass: inputs, outputs and chosen logits, in padded batches."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny import NAMES, tiny
from support.tries import tries

from alphaedit_plugin.model.batches import batches, pad
from alphaedit_plugin.model.decoder import Decoder
from alphaedit_plugin.model.trace import evaluating, inputs_of, logits_at

TEXTS = [[5, 9, 11, 3], [60], [7, 100, 0, 1, 33, 2]]

fixed = cache(tiny)


@tries(25)
@given(
    texts=st.lists(st.lists(st.integers(0, 127), min_size=1, max_size=12), max_size=10),
    tokens=st.integers(1, 60),
    sort=st.booleans(),
)
def test_batches_hold_every_text_once_within_the_limit(texts, tokens, sort):
    made = list(batches(texts, tokens, sort=sort))
    rows = [row for batch in made for row in batch.rows]
    assert sorted(rows) == list(range(len(texts)))
    assert sort or rows == list(range(len(texts)))
    for batch in made:
        assert batch.ids.numel() <= tokens or len(batch.rows) == 1
        assert batch.ids.shape == batch.mask.shape
        assert batch.lengths.tolist() == [len(texts[row]) for row in batch.rows]
        for row, ids, mask in zip(batch.rows, batch.ids, batch.mask, strict=True):
            assert ids[mask.bool()].tolist() == texts[row]
            assert not mask[len(texts[row]) :].any()


@pytest.mark.parametrize("name", NAMES)
def test_logits_at_chosen_places_of_a_padded_batch_are_those_of_each_text_alone(name):
    model = fixed(name)
    ids, mask = pad(TEXTS)
    rows, positions = torch.tensor([0, 2, 1, 2]), torch.tensor([3, 5, 0, 1])
    with torch.no_grad():
        with logits_at(Decoder(model).head, rows, positions):
            found = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        alone = [model(input_ids=torch.tensor([text]), use_cache=False).logits[0] for text in TEXTS]
    expected = torch.stack([alone[row][position] for row, position in zip(rows, positions, strict=True)])
    assert found.shape == (1, *expected.shape)
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)
    assert not Decoder(model).head._forward_pre_hooks


def test_without_a_last_module_the_pass_runs_to_its_end():
    model = fixed("llama")
    modules = {layer: p.module for layer, p in Decoder(model).out_projections([0, 2]).items()}
    ends = []
    keys = inputs_of(modules, lambda: ends.append(model(input_ids=torch.tensor([[5, 9]])).logits))
    assert {layer: tuple(key.shape) for layer, key in keys.items()} == {0: (1, 2, 24), 2: (1, 2, 24)}
    assert len(ends) == 1


def test_an_error_in_the_pass_is_not_swallowed_and_leaves_no_hook():
    model = fixed("llama")
    with pytest.raises(IndexError):
        inputs_of({0: model.model.layers[0].mlp.down_proj}, lambda: model(input_ids=torch.tensor([[9999]])))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_evaluating_switches_dropout_off_and_every_flag_back():
    model = tiny("gpt2").train()
    model.transformer.h[1].eval()
    before = {name: module.training for name, module in model.named_modules()}
    inside = []
    with pytest.raises(IndexError), evaluating(model):
        inside.append([module.training for module in model.modules() if module.training].pop())
    assert inside == []  # there was none to pop
    assert {name: module.training for name, module in model.named_modules()} == before
