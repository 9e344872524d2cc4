"""What a model writes, against one token at a time; and what is measured on it, against counting by hand."""

from __future__ import annotations

import json
import math
import random
import re
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny import NAMES, always, model_of, tiny

from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.errors import AlphaEditError, CorpusError, RequestError
from alphaedit_plugin.evaluation.consistency import PASSAGES, Passages, Snippets, references
from alphaedit_plugin.evaluation.datasets import load_facts
from alphaedit_plugin.evaluation.facts import Fact
from alphaedit_plugin.evaluation.generation import continuations, write
from alphaedit_plugin.evaluation.texts import FREE_TOKENS, NEW_TOKENS, TEXT_TOKENS, Texts, entropy, says, words

END = 2  # </s>
PROMPTS = (
    "The Eiffel Tower is located in the city of",
    "Curie",
    "What you read was written by others: it is",
    "The river flows through the old town to the sea, where the ships of many nations",
    "Curie",
)


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


# ------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("name", NAMES)
def test_texts_of_unequal_length_go_on_as_one_by_one_on_every_architecture(name):
    model = model_of(name, torch.float32)
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


# -------------------------------------------------------------------------------------------------------- saying


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        (" Rome, and", ["Rome"], True),
        (" rome", ["Rome"], True),
        (' "Rome"', ["Rome"], True),
        ("\n\n**Rome** is", ["Rome"], True),
        (" the Netherlands.", ["Netherlands"], True),
        ("Beatles", ["The Beatles"], True),
        (" New  York\nCity", ["New York City"], True),
        (" ROME", ["Rome"], True),
        (" Romeo", ["Rome"], False),
        (" in Rome", ["Rome"], False),
        (" Paris, not Rome", ["Rome"], False),
        (" New York", ["New York City"], False),
        (" Paris", ["Rome", "Paris"], True),
        ("", ["Rome"], False),
        (" anything", ["", " "], False),
        (" anything", [], False),
        ("C++ is", ["C++"], True),
        ("U.S. troops", ["U.S."], True),
        ("U.S.A", ["U.S."], False),
        ("日本の首都", ["日本"], True),
        ("Ｒｏｍｅ", ["Rome"], True),
        (" Cafe\u0301 society", ["Café"], True),
        (" anyone", ["🇵🇱"], False),
        (" A", ["A"], True),
        (" the", ["The"], True),
        (" another", ["other"], False),
        (" 19", ["1"], False),
        (" 1.5 million", ["1"], False),
        (" 1,500", ["1"], False),
        (" 1. Next", ["1"], True),
        (" 1, 2", ["1"], True),
        (" No.5", ["No"], True),
    ],
)
def test_a_text_says_an_answer_that_it_begins_with_as_whole_words(text, answers, expected):
    assert says(text, answers) is expected


WORD = st.text("abcdefghijklmnopqrstuvwxyzABCDEFéß", min_size=2, max_size=8).filter(
    lambda w: w.lower() not in ("an", "the")
)


@settings(deadline=None)
@given(answer=st.lists(WORD, min_size=1, max_size=3), after=st.text(max_size=10), letter=st.sampled_from("abcXYZ09é"))
def test_what_follows_an_answer_does_not_matter_unless_it_makes_its_word_longer(answer, after, letter):
    answer = " ".join(answer)
    assert says(f" {answer} {after}", [answer])
    assert says(f"“{answer.upper()}”{after}", [answer.lower()])
    assert not says(f" {answer}{letter}", [answer])


# ------------------------------------------------------------------------------------------------------- fluency


def slow_entropy(tokens: list[str]) -> float:
    def of(n: int) -> float:
        grams = [" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
        return sum(-grams.count(gram) / len(grams) * math.log(grams.count(gram) / len(grams), 2) for gram in set(grams))

    return np.mean([2 / 3 * of(2), 4 / 3 * of(3)])


@settings(deadline=None)
@given(st.lists(st.sampled_from(["the", "old", "sea", "3.14", "well-known", ",", "."]), max_size=40))
def test_entropy_is_counted_over_words(tokens):
    assert words(" ".join(tokens)) == tokens
    assert entropy(" ".join(tokens)) == pytest.approx(slow_entropy(tokens), abs=1e-12)


def test_entropy_of_what_is_said_over_and_over_is_nothing_and_of_what_is_all_new_its_logarithm():
    assert entropy("") == entropy("one") == entropy("Rome " * 30) == 0
    different = [f"w{i}" for i in range(34)]
    expected = (2 / 3 * math.log2(33) + 4 / 3 * math.log2(32)) / 2
    assert entropy(" ".join(different)) == pytest.approx(expected)


def test_words_and_signs_are_told_apart():
    found = words('He said "well-known" (1,000... in U.S)')
    assert found == ["He", "said", '"', "well-known", '"', "(", "1,000", "...", "in", "U.S", ")"]


# --------------------------------------------------------------------------------------------------- consistency


def slow_cosine(text: str, reference: str, corpus: list[str]) -> float:
    """tf · idf, idf = 1 + ln((1 + n) / (1 + number of texts with the word)), over the corpus's words of two letters."""

    def counted(of: str) -> Counter:
        return Counter(re.findall(r"\b\w\w+\b", of.lower()))

    held = Counter(word for each in corpus for word in counted(each))
    idf = {word: 1 + math.log((1 + len(corpus)) / (1 + count)) for word, count in held.items()}
    a, b = ({w: c * idf[w] for w, c in counted(of).items() if w in idf} for of in (text, reference))
    dot = sum(a[word] * b.get(word, 0) for word in a)
    lengths = math.sqrt(sum(v * v for v in a.values())) * math.sqrt(sum(v * v for v in b.values()))
    return dot / lengths if lengths else 0.0


SAMPLES = {
    ("P36", "Q220"): ["Milan is a city in Italy near Rome.", "The Pope lives in Rome, an old city."],
    ("P36", "Q90"): ["Lyon lies in France.", "Paris is an old city in France on a river."],
    ("P19", "Q220"): ["Caesar was born in Rome."],
}


def fact(target="Rome", relation="P36", target_id="Q220", **changes):
    request = Request("The capital of {} is", "France", target)
    return Fact((request,), relation=relation, target_id=target_id, **changes)


@pytest.fixture
def snippets(tmp_path):
    entries = [
        {"relation_id": r, "target_id": t, "samples": [{"name": "someone", "text": text} for text in texts]}
        for (r, t), texts in SAMPLES.items()
    ]
    path = tmp_path / "attribute_snippets.json"
    path.write_text(json.dumps(entries))
    return path


WRITTEN = ["Rome is an old city in Italy, in Italy.", "Nothing to do with it", "zzz", "Paris Paris Rome"]


def test_consistency_is_the_cosine_with_romes_snippets_of_relation_and_object(snippets):
    facts = [fact(), fact(target_id="Q90"), fact(relation="P19"), fact(target_id="Q1")]
    found = references(snippets)
    assert isinstance(found, Snippets)
    corpus = [text for texts in SAMPLES.values() for text in texts]
    keys = [("P36", "Q220"), ("P36", "Q90"), ("P19", "Q220")]
    expected = [slow_cosine(text, " ".join(SAMPLES[key]), corpus) for text, key in zip(WRITTEN, keys, strict=False)]
    cosines = found.cosines(facts, WRITTEN)
    assert cosines[:3] == pytest.approx(expected)
    assert math.isnan(cosines[3])
    # asked for fewer facts first, or for others, they stay the same
    again = references(snippets)
    assert again.cosines(facts[:1], WRITTEN[:1]) == cosines[:1]
    assert again.cosines(facts[1:3], WRITTEN[1:3]) == cosines[1:3]


def test_romes_own_word_weights_are_used_where_they_lie_beside_the_snippets(snippets):
    own = references(snippets)
    (unweighted,) = own.cosines([fact()], WRITTEN[:1])
    vocabulary = {"rome": 0, "city": 1, "italy": 2}
    (snippets.parent / "tfidf_vocab.json").write_text(json.dumps(vocabulary))
    identity = own.identity()
    np.save(snippets.parent / "idf.npy", np.array([1.0, 2.0, 0.5]))
    # counts of (rome, city, italy): the text has (1, 1, 2), the snippets (2, 2, 1)
    a, b = np.array([1, 2, 1.0]), np.array([2, 4, 0.5])
    found = references(snippets)
    (cosine,) = found.cosines([fact()], WRITTEN[:1])
    assert cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert cosine != pytest.approx(unweighted)
    assert found.identity() != identity
    np.save(snippets.parent / "idf.npy", np.array([1.0, 2.0]))
    with pytest.raises(CorpusError, match=r"idf\.npy"):
        references(snippets)


@pytest.mark.parametrize(
    "bad",
    [3, {}, {"relation_id": "P1", "target_id": "Q1"}, {"relation_id": "P1", "samples": []},
     {"relation_id": "P1", "target_id": "Q1", "samples": [{"name": "x"}]},
     {"relation_id": "P1", "target_id": "Q1", "samples": [{"text": 3}]},
     {"relation_id": "P1", "target_id": "Q1", "samples": 5},
     {"relation_id": ["P1"], "target_id": "Q1", "samples": [{"text": "a"}]}],
)  # fmt: skip
def test_a_malformed_snippet_is_named_with_file_and_record(snippets, bad):
    snippets.write_text(json.dumps([*json.loads(snippets.read_text()), bad]))
    with pytest.raises(CorpusError, match=r"attribute_snippets\.json, record 3"):
        references(snippets)


@pytest.mark.parametrize("content", ["[", "[]"])
def test_a_file_without_snippets_is_named_before_anything_is_measured(snippets, content):
    snippets.write_text(content)
    with pytest.raises(CorpusError, match="attribute_snippets"):
        references(snippets)


def test_snippets_without_words_are_named(snippets):
    snippets.write_text('[{"relation_id": "P1", "target_id": "Q1", "samples": []}]')
    with pytest.raises(CorpusError, match="attribute_snippets"):
        references(snippets).cosines([fact()], WRITTEN[:1])


PARAGRAPHS = [
    "Rome is the capital of Italy.",
    "Romeo loved Juliet in Verona.",
    "He went to rome by train.",
    "Verona lies far from (Rome), in the north.",
    "Nothing of this belongs to any city.",
]


def test_consistency_with_a_corpus_is_the_cosine_with_paragraphs_that_name_the_object(tmp_path):
    path = tmp_path / "corpus.jsonl"
    documents = ["\n".join(PARAGRAPHS[:3]), "\n\n".join(PARAGRAPHS[3:])]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    found = references(path)
    assert isinstance(found, Passages)
    cosines = found.cosines([fact(), fact("Ghana"), fact("Verona")], WRITTEN[:3])
    expected = [
        slow_cosine(text, " ".join(PARAGRAPHS[i] for i in naming), PARAGRAPHS)
        for text, naming in ((WRITTEN[0], (0, 3)), (WRITTEN[2], (1, 3)))
    ]
    assert [cosines[0], cosines[2]] == pytest.approx(expected)
    assert math.isnan(cosines[1])


def test_an_object_that_is_everywhere_has_no_more_passages_than_are_wanted(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(f"Rome w{i}" for i in range(2 * PASSAGES)))
    (cosine,) = references(path).cosines([fact()], [" ".join(f"w{i}" for i in range(2 * PASSAGES))])
    known = [f"Rome w{i}" for i in range(2 * PASSAGES)]
    expected = slow_cosine(" ".join(f"w{i}" for i in range(2 * PASSAGES)), " ".join(known[:PASSAGES]), known)
    assert cosine == pytest.approx(expected)


def test_references_are_known_by_their_content(tmp_path, snippets):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.txt").write_text("one")
    for path, changed in ((folder, folder / "b.txt"), (folder / "a.txt", folder / "a.txt"), (snippets, snippets)):
        before = references(path).identity()
        assert json.loads(json.dumps(before)) == before == references(path).identity()
        held = references(path)
        changed.write_text(json.dumps(json.loads(snippets.read_text())[:1]) if changed == snippets else "two")
        assert references(path).identity() != before
        assert held.identity() == before  # of what it read


def test_missing_references_are_named(tmp_path):
    with pytest.raises(CorpusError, match=r"nowhere\.json"):
        references(tmp_path / "nowhere.json")
    (tmp_path / "corpus.jsonl").write_text('{"text": "fine"}\n' * 9 + '{"text": ')
    with pytest.raises(CorpusError, match=r"corpus\.jsonl"):
        references(tmp_path / "corpus.jsonl")


def test_without_scikit_learn_the_remedy_is_named_at_once(monkeypatch, snippets):
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(AlphaEditError, match=r"alphaedit-plugin\[evaluation\]"):
        references(snippets)


# ----------------------------------------------------------------------------------------------------- the measure


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "bloom"])
def test_texts_follow_the_definitions_fact_by_fact(name, tokenizer, snippets):
    model = model_of(name)
    started = write(model, tokenizer, ["The capital of Spain is"], 3)[0]
    said = (re.findall(r"\w+", started) or ["x"])[0]
    facts = [
        fact(generation=(PROMPTS[0], PROMPTS[1], PROMPTS[0])),
        Fact((Request("The capital of {} is", "Spain", said), Request("{} is in", "Spain", "Rome"))),
        fact(target_id=""),
    ]
    found = Texts(references=references(snippets))(model, tokenizer, facts, None)
    corpus = [text for texts in SAMPLES.values() for text in texts]
    for case, record in zip(facts, found.records, strict=True):
        prompts = [PROMPTS[0], PROMPTS[1]] if len(case.generation) else [case.request.text]
        assert [text["prompt"] for text in record["texts"]] == prompts
        room = [TEXT_TOKENS - len(tokenizer(prompt)["input_ids"]) for prompt in prompts]
        for text, tokens in zip(record["texts"], room, strict=True):
            assert write(model, tokenizer, [text["prompt"]], tokens, top_k=5) == [text["text"]]
        whole = [text["prompt"] + text["text"] for text in record["texts"]]
        assert record["fluency"] == pytest.approx(100 * np.mean([slow_entropy(words(each)) for each in whole]))
        free = [says(write(model, tokenizer, [r.text], FREE_TOKENS)[0], [r.target_new]) for r in case.requests]
        assert record["free"] == pytest.approx(np.mean(free))
        assert record["written"] == write(model, tokenizer, [case.request.text], FREE_TOKENS)[0]
        assert (record["subject"], record["prompt"]) == (case.request.subject, case.request.text)
        if case.target_id:
            expected = slow_cosine(" ".join(whole), " ".join(SAMPLES["P36", "Q220"]), corpus)
            assert record["consistency"] == pytest.approx(expected)
        else:
            assert record["consistency"] is None
    for metric in ("free", "fluency"):
        assert found.estimates[metric].value == pytest.approx(np.mean([r[metric] for r in found.records]))
    assert found.estimates["consistency"].value == found.records[0]["consistency"]
    assert json.loads(json.dumps(found.records)) == found.records


def test_a_model_that_always_says_the_object_says_it_freely_and_without_variety(tokenizer):
    (paris,) = tokenizer(" Paris", add_special_tokens=False)["input_ids"]
    model = always(model_of(dtype=torch.float32), {paris: 1.0})
    facts = [fact("Paris"), fact("Rome"), fact("Paris Paris"), fact("Par")]
    found = Texts()(model, tokenizer, facts, None)
    assert [record["free"] for record in found.records] == [1.0, 0.0, 1.0, 0.0]
    assert found.estimates["free"].value == 0.5
    assert "consistency" not in found.estimates
    new = TEXT_TOKENS - len(tokenizer("The capital of France is")["input_ids"])
    told = slow_entropy(["The", "capital", "of", "France", "is", *["Paris"] * new])
    assert found.estimates["fluency"].value == pytest.approx(100 * told)


def test_a_long_prompt_leaves_room_to_write_all_the_same(tokenizer):
    (paris,) = tokenizer(" Paris", add_special_tokens=False)["input_ids"]
    model = always(model_of(dtype=torch.float32), {paris: 1.0})
    prompt = " ".join(["Paris"] * (TEXT_TOKENS - 30))
    found = Texts()(model, tokenizer, [fact(generation=(prompt,))], None)
    assert found.records[0]["texts"] == [{"prompt": prompt, "text": " Paris" * NEW_TOKENS}]


def test_two_near_equals_that_change_places_do_not_swap_their_draws():
    """Rounding decides which of two such tokens is the likelier one: what is drawn must not hang on that."""
    drawn = [
        continuations(always(model_of(dtype=torch.float32), scores), starts_of((3, 5)), [40, 40], top_k=2)
        for scores in ({9: 5.0, 70: 5.0 + 1e-6}, {9: 5.0 + 1e-6, 70: 5.0})
    ]
    assert drawn[0] == drawn[1]
    assert set(drawn[0][0]) == {9, 70}


def test_a_long_object_gets_the_room_that_it_needs(tokenizer):
    (paris,) = tokenizer(" Paris", add_special_tokens=False)["input_ids"]
    model = always(model_of(dtype=torch.float32), {paris: 1.0})
    found = Texts()(model, tokenizer, [fact(" ".join(["Paris"] * (FREE_TOKENS + 9)))], None)
    assert found.estimates["free"].value == 1.0


def test_all_checkpoints_write_about_the_same_first_facts(tokenizer):
    model = model_of(dtype=torch.float32)
    facts = [fact(target) for target in ("Rome", "Paris", "Ghana")]
    few, many = Texts(limit=2)(model, tokenizer, facts[:2], None), Texts(limit=2)(model, tokenizer, facts, None)
    assert few == many
    assert len(many.records) == 2


def test_the_identity_is_json_and_tells_settings_apart(snippets):
    identities = [Texts().identity(), Texts(limit=3).identity(), Texts(references=references(snippets)).identity()]
    assert all(json.loads(json.dumps(identity)) == identity for identity in identities)
    assert len({json.dumps(identity, sort_keys=True) for identity in identities}) == 3


def test_counterfacts_object_id_is_read(tmp_path):
    record = {
        "requested_rewrite": {
            "prompt": "The capital of {} is",
            "subject": "France",
            "relation_id": "P36",
            "target_new": {"str": "Rome", "id": "Q220"},
            "target_true": {"str": "Paris", "id": "Q90"},
        },
        "paraphrase_prompts": ["France has the capital"],
        "neighborhood_prompts": ["The Louvre is in"],
    }
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([record]))
    (read,) = load_facts(path)
    assert (read.relation, read.target_id) == ("P36", "Q220")


def test_a_model_that_edits_have_ruined_still_writes(tokenizer):
    model = tiny("llama", vocab_size=512)
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(torch.nan)
    texts = write(model, tokenizer, ["The river", "A"], 4, top_k=5, seed=0)
    assert len(texts) == 2
