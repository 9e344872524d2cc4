"""Probabilities of answers against the textbook, one token at a time."""

from __future__ import annotations

import pytest
import torch
from support import oracle
from support.scoring import PAIRS, perplexity_of, slow_accuracy
from support.tiny import NAMES, model_of, tiny

from alphaedit_plugin.evaluation.likelihood import score_pairs


@pytest.mark.parametrize("name", NAMES)
def test_pairs_are_scored_as_by_the_textbook_on_every_architecture(name, tokenizer):
    model = model_of(name)
    said = tokenizer.decode(model(torch.tensor([tokenizer(PAIRS[0][0])["input_ids"]])).logits[0, -1].argmax())
    pairs = (*PAIRS, (PAIRS[0][0], f" {said.strip() or 'a'}"))  # the last is right, if it can be said after a space
    found = score_pairs(model, tokenizer, pairs)
    assert found.mean_log_probability.dtype == found.accuracy.dtype == torch.float64
    for value, accuracy, (prompt, target) in zip(
        found.mean_log_probability.tolist(), found.accuracy.tolist(), pairs, strict=True
    ):
        assert value == pytest.approx(
            oracle.success(model, tokenizer, prompt, target.strip(), target.strip())[0], rel=1e-5
        )
        assert accuracy == pytest.approx(slow_accuracy(model, tokenizer, prompt, target.strip()))


@pytest.mark.parametrize("batch_tokens", [1, 30, 10_000])
def test_scores_of_pairs_do_not_depend_on_batches_or_order(batch_tokens, bos_tokenizer):
    model = model_of()
    expected = score_pairs(model, bos_tokenizer, PAIRS)
    found = score_pairs(model, bos_tokenizer, PAIRS[::-1], batch_tokens=batch_tokens)
    assert torch.allclose(found.mean_log_probability.flip(0), expected.mean_log_probability, rtol=1e-6)
    assert torch.equal(found.accuracy.flip(0), expected.accuracy)


def test_scoring_leaves_the_model_as_it_was(tokenizer):
    model = tiny("llama", vocab_size=512).train()
    attention = model.config._attn_implementation
    score_pairs(model, tokenizer, PAIRS)
    perplexity_of(model, [[1, 2, 3]])
    assert all(module.training for module in model.modules())
    assert model.config._attn_implementation == attention
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
