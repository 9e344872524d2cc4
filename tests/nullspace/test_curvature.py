"""Covariances of the loss's gradients: exact whatever the batching, and leaving the model as it was."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny import ARCHITECTURES, model_of, tiny
from support.tokenizer import make_tokenizer
from support.tries import tries
from support.weights import assert_unchanged, parameters

from alphaedit_plugin.errors import ModelStructureError, StatisticsError
from alphaedit_plugin.nullspace.corpus import documents, windows
from alphaedit_plugin.nullspace.curvature import output_gradients, prepare_output_gradients
from alphaedit_plugin.storage.store import Store

LAYERS = [1, 3]
WINDOWS = [[5, 9, 11, 3], [60], [7, 7, 7, 100, 2, 0, 0, 1, 33], [0, 0], [8, 4, 2], [1, 2, 3, 4, 5, 6, 7]]

fixed = cache(tiny)  # for tests that leave the model as it is


def by_autograd(model, name, windows, layer):
    """(B, N) from Hugging Face's own loss and a backward pass per text, with the output's gradient retained."""
    module = model.get_submodule(ARCHITECTURES[name][1].format(layer))
    found, total = [], 0
    for window in windows:
        if len(window) < 2:
            continue
        kept = []

        def retain(_module, _args, output, kept=kept):
            output = output.detach().requires_grad_(True) if not output.requires_grad else output
            output.retain_grad()
            kept.append(output)
            return output

        handle = module.register_forward_hook(retain)
        ids = torch.tensor([list(window)])
        with torch.enable_grad():
            loss = model(input_ids=ids, labels=ids).loss * (len(window) - 1)
            loss.backward()
        handle.remove()
        found.append(kept[0].grad[0, :-1].double())
        assert not kept[0].grad[0, -1].any()
        total += len(window) - 1
    stacked = torch.cat(found)
    return stacked.T @ stacked / total, total


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_they_are_those_of_hugging_faces_own_loss(name):
    model = tiny(name, dtype=torch.float64)
    found = output_gradients(model, WINDOWS, LAYERS, batch_tokens=16)
    for layer in LAYERS:
        expected, tokens = by_autograd(model, name, WINDOWS, layer)
        assert found[layer].count == tokens
        assert torch.allclose(found[layer].matrix, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@tries(15)
@given(
    windows=st.lists(st.lists(st.integers(0, 127), min_size=1, max_size=12), min_size=1, max_size=6),
    batch_tokens=st.integers(1, 80),
    data=st.data(),
)
def test_neither_batching_nor_order_nor_padding_count(name, windows, batch_tokens, data):
    windows.append([3, 5, 8])
    model = fixed(name, dtype=torch.float64)
    alone = output_gradients(model, windows, [1], batch_tokens=1)[1]
    together = output_gradients(model, data.draw(st.permutations(windows)), [1], batch_tokens=batch_tokens)[1]
    assert together.count == alone.count == sum(len(window) - 1 for window in windows)
    assert float((together.total - alone.total).norm()) <= 1e-10 * float(alone.total.norm())


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_its_gradients_and_all_random_states_stay_as_they_were(trained, dtype):
    model = tiny("gpt2", dtype=dtype, resid_pdrop=0.5).train().requires_grad_(trained)
    before, state = parameters(model), torch.get_rng_state()
    if trained:
        next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    with torch.no_grad():  # as callers may be
        first = output_gradients(model, WINDOWS, LAYERS)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert_unchanged(model, before)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad is trained for parameter in model.parameters())
    grads = [parameter.grad for parameter in model.parameters()]
    assert [grad is not None for grad in grads] == [trained, *[False] * (len(grads) - 1)]
    assert not trained or bool((grads[0] == 1).all())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    again = output_gradients(model, WINDOWS, LAYERS)
    assert all(torch.equal(first[layer].total, again[layer].total) for layer in LAYERS)


def test_what_cannot_give_gradients_says_so():
    with pytest.raises(StatisticsError, match="no tokens"):
        output_gradients(tiny("llama"), [[1], [2]], [1])
    with pytest.raises(ModelStructureError, match="head"):
        output_gradients(tiny("llama").model, WINDOWS, [1])


def test_enough_is_enough_and_it_is_the_beginning_of_the_text(tmp_path):
    """Ten tokens for each of the 16 dimensions of an output, of a text that is longer."""
    model, tokenizer, store = model_of(dtype=torch.float32), make_tokenizer(bos=True), Store(tmp_path / "cache")
    text = tmp_path / "text.txt"
    text.write_text("the king sleeps in the house and reads a book\n\n" * 60)
    found = prepare_output_gradients(model, tokenizer, LAYERS, source=text, tokens=500, store=store)
    cut = [each[: 160 - start] for start, each in begun(windows(documents(text), tokenizer, 500)) if start < 160]
    assert sum(map(len, cut)) == 160
    by_hand = output_gradients(model, cut, LAYERS)
    for layer in LAYERS:
        assert found[layer].count == by_hand[layer].count == 160 - len(cut)
        assert torch.equal(found[layer].total, by_hand[layer].total)


def begun(texts):
    """(how many tokens come before it, each text)."""
    return zip(itertools.accumulate((len(each) for each in texts), initial=0), texts, strict=False)


def test_they_are_kept_and_those_of_another_head_are_others(tmp_path):
    model, tokenizer, store = model_of(dtype=torch.float32), make_tokenizer(bos=True), Store(tmp_path / "cache")
    text = tmp_path / "text.txt"
    text.write_text("the king sleeps in the house and reads a book\n\n" * 30)

    def prepared():
        return prepare_output_gradients(model, tokenizer, LAYERS, source=text, tokens=100, store=store)

    first, again = prepared(), prepared()
    assert all(torch.equal(first[layer].total, again[layer].total) for layer in LAYERS)
    assert len(store.entries()) == len(LAYERS)
    model.get_output_embeddings().weight.mul_(2)
    assert not torch.equal(prepared()[1].total, first[1].total)
    assert len(store.entries()) == 2 * len(LAYERS)
