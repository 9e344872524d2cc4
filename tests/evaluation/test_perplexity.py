"""Perplexity against the textbook, and where it is known beforehand."""

from __future__ import annotations

import math

import pytest
import torch
from support import oracle
from support.scoring import PAIRS, perplexity_of
from support.tiny import always, model_of, tiny

from alphaedit_plugin.evaluation.measure import Estimate
from alphaedit_plugin.evaluation.perplexity import Perplexity


@pytest.mark.parametrize("batch_tokens", [1, 12, 1024])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom", "gemma2"])
def test_perplexity_is_the_textbooks_whatever_the_batches(name, batch_tokens):
    model = model_of(name)
    windows = [[5, 9, 3, 200, 7], [1, 2], [4, 4, 4, 400, 11, 30, 2, 9], [8]]
    expected = oracle.perplexity(model, windows)
    assert perplexity_of(model, windows, batch_tokens=batch_tokens) == pytest.approx(expected, rel=1e-5)


def test_a_model_that_knows_nothing_has_the_vocabularys_size_as_perplexity():
    model = tiny("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    assert perplexity_of(model, [[1, 2, 3, 4]]) == pytest.approx(model.config.vocab_size)


def test_the_measure_of_perplexity_has_intervals_over_windows(tokenizer):
    model = model_of()
    text = " ".join(prompt for prompt, _ in PAIRS) * 40
    found = Perplexity(text, tokenizer)(model, tokenizer, [], None).estimates["perplexity"]
    ids = tokenizer(text)["input_ids"]
    windows = [ids[i : i + 256] for i in range(0, len(ids), 256)]
    assert len(windows) > 2
    assert found.value == pytest.approx(oracle.perplexity(model, windows), rel=1e-5)
    assert found.low < found.value < found.high


def test_a_model_ruined_beyond_numbers_has_infinite_perplexity_without_interval(tokenizer):
    model = model_of()
    measure = Perplexity(" ".join(prompt for prompt, _ in PAIRS) * 40, tokenizer)
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(math.nan)
    found = measure(model, tokenizer, [], None)
    assert found.estimates["perplexity"] == Estimate(math.inf)
    assert len(found.records) == len(measure.windows)
    assert all(record["loss"] is None for record in found.records)


def test_perplexity_of_an_even_coin_over_two_tokens_is_two():
    """A head that likes two tokens alike and no others."""
    model = always(tiny("llama"), {0: 0.0, 1: 0.0})
    assert perplexity_of(model, [[0, 1, 1, 0, 0]]) == pytest.approx(2.0)
    assert math.isfinite(perplexity_of(model, [[0, 1], [1, 0, 1]]))
