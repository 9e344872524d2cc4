"""Text that the model itself writes."""

from __future__ import annotations

import copy
import random
from itertools import chain

import pytest
import torch
from support.tiny import NAMES, tiny
from tokenizers import processors

from alphaedit_plugin.model.sampling import sample, self_written

# --------------------------------------------------------------------------------------------- self-written


@pytest.fixture
def model():
    return tiny("llama", vocab_size=512)


def test_self_written_text_is_as_long_as_asked_and_the_same_every_time(model, tokenizer):
    written = self_written(model, tokenizer, 100, window=16)
    assert [len(ids) for ids in written] == [16] * 7  # the fewest windows that hold 100
    assert self_written(model, tokenizer, 100, window=16) == written
    assert self_written(model, tokenizer, 100, window=16, seed=1) != written


def test_windows_of_different_batches_differ(model, tokenizer):
    written = self_written(model, tokenizer, 160, window=16, batch_size=5)
    assert len({tuple(ids[1:]) for ids in written}) == len(written) == 10


def test_self_written_text_begins_with_a_word_and_holds_no_special_token(model, tokenizer):
    written = self_written(model, tokenizer, 400, window=16)
    assert all(len(tokenizer.decode([ids[0]]).strip()) > 2 for ids in written)
    assert not set(chain(*written)) & set(tokenizer.all_special_ids)


def test_self_written_text_begins_with_bos_where_the_tokenizer_adds_it(model, bos_tokenizer):
    written = self_written(model, bos_tokenizer, 64, window=16)
    assert all(ids[0] == bos_tokenizer.bos_token_id for ids in written)
    assert not set(chain(*(ids[1:] for ids in written))) & set(bos_tokenizer.all_special_ids)


def test_self_written_text_begins_with_bos_also_where_that_is_the_end_token_too_as_in_opt(model, tokenizer):
    opt_like = copy.deepcopy(tokenizer)
    opt_like.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", 2)]
    )
    opt_like.bos_token = "</s>"
    assert opt_like("word")["input_ids"][0] == opt_like.eos_token_id
    assert all(ids[0] == opt_like.bos_token_id for ids in self_written(model, opt_like, 64, window=16))


def test_self_written_text_uses_only_tokens_that_the_tokenizer_has(tokenizer):
    padded = tiny("llama", vocab_size=len(tokenizer) + 200)
    assert max(chain(*self_written(padded, tokenizer, 400, window=16))) < len(tokenizer)


def test_writing_leaves_the_callers_random_state_attention_mode_and_weights_alone(model, tokenizer):
    choice = model.config._attn_implementation
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    random.seed(3)
    states = torch.get_rng_state(), random.getstate()
    self_written(model, tokenizer, 64, window=16)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert model.config._attn_implementation == choice
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_a_model_left_in_training_mode_writes_the_same_text(tokenizer):
    model = tiny("gpt2", vocab_size=512)
    expected = self_written(model, tokenizer, 64, window=16)
    model.train()
    assert self_written(model, tokenizer, 64, window=16) == expected
    assert model.training


# --------------------------------------------------------------------------------------------------- sampling


def last_logits(model, ids):
    """By one whole forward pass, without a cache."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]


@pytest.mark.parametrize("name", NAMES)
def test_sampling_the_best_token_is_greedy_decoding_by_whole_forward_passes(name):
    model = tiny(name)
    starts = [[5, 9], [60, 3], [7, 7]]
    expected = []
    for start in starts:
        ids = list(start)
        while len(ids) < 9:
            ids.append(int(last_logits(model, ids).argmax()))
        expected.append(ids)
    assert sample(model, starts, 9, seed=0, top_k=1) == expected


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_every_sampled_token_is_among_the_best_that_are_not_banned(name):
    model = tiny(name)
    banned = list(range(0, 128, 2))
    for ids in sample(model, [[5, 9], [60, 3]], 12, seed=4, top_k=3, banned=banned):
        for place in range(2, len(ids)):
            logits = last_logits(model, ids[:place])
            logits[banned] = -torch.inf
            assert ids[place] in logits.topk(3).indices


def test_the_distribution_is_the_models_own(model):
    """Frequencies of the first sampled token against its probabilities, by their total variation."""
    model = tiny("llama", vocab_size=8, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    n = 4000
    drawn = torch.tensor(sample(model, [[5, 3]] * n, 3, seed=0))[:, -1]
    frequencies = torch.bincount(drawn, minlength=8) / n
    assert (frequencies - last_logits(model, [5, 3]).softmax(-1)).abs().sum() / 2 < 0.03


def test_starts_come_back_first_and_every_step_is_reported(model):
    steps = []
    written = sample(model, [[5, 9], [60, 3]], 7, seed=0, on_step=steps.append)
    assert [ids[:2] for ids in written] == [[5, 9], [60, 3]]
    assert sum(steps) == sum(map(len, written)) == 14
