"""What a model writes, against one token at a time."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch
from support.references import PROMPTS
from support.tiny import NAMES, always, model_of, tiny
from support.unusual import UNUSUAL, unusual

from alphaedit_plugin.editors.generation import write
from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.errors import RequestError
from alphaedit_plugin.evaluation.facts import Fact
from alphaedit_plugin.evaluation.texts import Texts
from alphaedit_plugin.model.continuation import continuations

END = 2  # </s>


def starts_of(lengths, shared=(), seed=0):
    chooser = random.Random(seed)
    return [[*shared, *(chooser.randrange(3, 512) for _ in range(length))] for length in lengths]


@torch.no_grad()
def one_by_one(model, start, limit, banned=()):
    """The textbook: the whole text again for every token."""
    ids = list(start)
    for _ in range(limit):
        logits = model(torch.tensor([ids])).logits[0, -1]
        logits[list(banned)] = -torch.inf
        token = int(logits.argmax())
        if token == END:
            break
        ids.append(token)
    return ids[len(start) :]


@pytest.mark.parametrize("name", [*NAMES, *UNUSUAL])
def test_texts_of_unequal_length_go_on_as_one_by_one_on_every_architecture(name):
    """With a cache or without."""
    model = unusual(name, dtype=torch.float32) if name in UNUSUAL else model_of(name, torch.float32)
    apart, alike = starts_of((1, 7, 3, 7)), starts_of((2, 5, 2), shared=range(5, 25))
    for starts in (apart, alike):
        limits = [4, 2, 5, 0][: len(starts)]
        expected = [one_by_one(model, start, limit) for start, limit in zip(starts, limits, strict=True)]
        assert continuations(model, starts, limits, ends={END}) == expected


@pytest.mark.parametrize("name", ["gemma2", "mistral"])
def test_a_sliding_window_slides_where_it_would(name):
    model = model_of(name, torch.float32, sliding_window=6)
    starts = [*starts_of((1, 9), shared=range(5, 25)), *starts_of((3, 12))]
    for part in (starts[:2], starts):
        assert continuations(model, part, [6] * len(part), ends={END}) == [one_by_one(model, s, 6) for s in part]


def test_a_cache_of_a_models_own_kind_only_costs_time(monkeypatch):
    """Remote code has caches that cannot give up rows or be shared: what is missing is read again."""
    from transformers.cache_utils import Cache

    model = model_of(dtype=torch.float32)
    starts = starts_of((1, 4, 2), shared=range(5, 25))
    expected = [one_by_one(model, start, limit) for start, limit in zip(starts, (1, 3, 5), strict=True)]
    monkeypatch.delattr(Cache, "batch_select_indices")
    monkeypatch.delattr(Cache, "batch_repeat_interleave")
    assert continuations(model, starts, [1, 3, 5], ends={END}) == expected


@pytest.mark.parametrize(("name", "kind"), [("gpt2", "tokenizer"), ("llama", "bos_tokenizer"), ("opt", "tokenizer")])
def test_the_text_is_what_transformers_own_generate_writes(request, name, kind):
    model, tokenizer = model_of(name, torch.float32), request.getfixturevalue(kind)
    found = write(model, tokenizer, PROMPTS, 6)
    for prompt, text in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=6,
            do_sample=False,
            eos_token_id=END,
            pad_token_id=0,
            suppress_tokens=sorted({*tokenizer.all_special_ids, *range(len(tokenizer), 512)} - {END}),
        )
        assert prompt + text == tokenizer.decode(out[0], skip_special_tokens=True)


@pytest.mark.parametrize(("batch_tokens", "top_k"), [(1, None), (40, 5), (10_000, 5)])
def test_texts_do_not_depend_on_batches_order_or_padding(tokenizer, batch_tokens, top_k):
    model = model_of()
    expected = write(model, tokenizer, PROMPTS, 6, top_k=top_k)
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    try:
        found = write(model, tokenizer, PROMPTS[::-1], 6, top_k=top_k, batch_tokens=batch_tokens)
    finally:
        tokenizer.padding_side = side
    assert found[::-1] == expected
    assert expected[1] == expected[4]


def test_a_text_ends_where_the_model_ends_it(bos_tokenizer):
    (letter,) = bos_tokenizer("A", add_special_tokens=False)["input_ids"]
    model = always(model_of(dtype=torch.float32), {END: 5.0, 1: 9.0, 0: 8.0, letter: 4.0})
    assert write(model, bos_tokenizer, PROMPTS, 9) == [""] * len(PROMPTS)
    model.get_output_embeddings().bias.data[END] = -100.0
    assert write(model, bos_tokenizer, PROMPTS, 3) == ["AAA"] * len(PROMPTS)  # never the other special tokens
    model.generation_config.eos_token_id = [END, letter]
    assert write(model, bos_tokenizer, PROMPTS, 3) == [""] * len(PROMPTS)


def test_a_text_ends_before_the_stop(tokenizer):
    model = model_of(dtype=torch.float32)
    whole = write(model, tokenizer, PROMPTS, 12)
    stop = whole[0][5:7]
    expected = [text.split(stop)[0] for text in whole]
    assert any(text != cut for text, cut in zip(whole, expected, strict=True))
    assert write(model, tokenizer, PROMPTS, 12, stop=stop) == expected


def test_each_prompt_may_have_a_length_of_its_own(tokenizer):
    model = model_of(dtype=torch.float32)
    for prompt, tokens, text in zip(
        PROMPTS, (0, 1, 2, 5, 7), write(model, tokenizer, PROMPTS, (0, 1, 2, 5, 7)), strict=True
    ):
        assert write(model, tokenizer, [prompt], tokens) == [text]


def test_the_space_before_the_first_written_word_is_kept(tokenizer):
    (paris,) = tokenizer(" Paris", add_special_tokens=False)["input_ids"]
    assert write(always(model_of(dtype=torch.float32), {paris: 1.0}), tokenizer, ["The city of"], 2) == [" Paris Paris"]


def test_a_text_ends_with_the_models_positions(tokenizer):
    model = model_of("gpt2", torch.float32, n_positions=12)
    start = starts_of((10, 12))
    assert continuations(model, start, [9, 9]) == [one_by_one(model, start[0], 2), []]
    with pytest.raises(RequestError, match=r"13 tokens.*12 positions"):
        continuations(model, starts_of((13,)), [1])


def test_nothing_is_written_for_no_prompts(tokenizer):
    assert write(model_of(dtype=torch.float32), tokenizer, [], 5) == []


def test_of_one_likeliest_the_likeliest_is_drawn(tokenizer):
    model = model_of(dtype=torch.float32)
    assert write(model, tokenizer, PROMPTS, 6, top_k=1) == write(model, tokenizer, PROMPTS, 6)


def test_tokens_are_drawn_by_their_probability_among_the_likeliest():
    """Logits ln 1, ln 2, ln 3, ln 4: of the three likeliest, 2/9, 3/9 and 4/9."""
    model = always(model_of(dtype=torch.float32), {10 + n: math.log(n) for n in (1, 2, 3, 4)})
    starts = [[3 + n] for n in range(300)]
    drawn = Counter(token for text in continuations(model, starts, [10] * 300, top_k=3) for token in text)
    assert drawn.keys() == {12, 13, 14}
    for token, share in ((12, 2 / 9), (13, 3 / 9), (14, 4 / 9)):
        assert drawn[token] / 3000 == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 3000))


def test_another_seed_and_another_prompt_draw_otherwise():
    model = always(model_of(dtype=torch.float32), {10: 0.0, 11: 0.0})
    one, two = continuations(model, [[3], [4]], [40, 40], top_k=2)
    (other,) = continuations(model, [[3]], [40], top_k=2, seed=1)
    assert len({tuple(one), tuple(two), tuple(other)}) == 3


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_model_and_random_states_are_left_alone(name, tokenizer):
    model = tiny(name, vocab_size=512).train()
    attention = model.config._attn_implementation
    before = {key: value.clone() for key, value in model.state_dict().items()}
    states = random.getstate(), torch.get_rng_state()
    facts = [Fact((Request("The capital of {} is", "France", "Rome"),), generation=PROMPTS[:2])]
    first, second = (Texts()(model, tokenizer, facts, None) for _ in range(2))
    assert first == second
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert all(module.training for module in model.modules())
    assert model.config._attn_implementation == attention
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_two_near_equals_that_change_places_do_not_swap_their_draws():
    """Rounding decides which of two such tokens is the likelier one: what is drawn must not hang on that."""
    drawn = [
        continuations(always(model_of(dtype=torch.float32), scores), starts_of((3, 5)), [40, 40], top_k=2)
        for scores in ({9: 5.0, 70: 5.0 + 1e-6}, {9: 5.0 + 1e-6, 70: 5.0})
    ]
    assert drawn[0] == drawn[1]
    assert set(drawn[0][0]) == {9, 70}


def test_a_model_that_edits_have_ruined_still_writes(tokenizer):
    model = tiny("llama", vocab_size=512)
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(torch.nan)
    texts = write(model, tokenizer, ["The river", "A"], 4, top_k=5, seed=0)
    assert len(texts) == 2
