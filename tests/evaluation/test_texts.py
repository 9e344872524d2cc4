"""What is measured on what a model writes, against counting by hand."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.references import PROMPTS, SAMPLES, fact, slow_cosine
from support.tiny import always, model_of

from alphaedit_plugin.editors.generation import write
from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.evaluation.consistency import references
from alphaedit_plugin.evaluation.datasets import load_facts
from alphaedit_plugin.evaluation.facts import Fact
from alphaedit_plugin.evaluation.texts import NEW_TOKENS, TEXT_TOKENS, Texts, entropy, words

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


# ----------------------------------------------------------------------------------------------------- the measure


@pytest.mark.slow
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
        assert (record["subject"], record["prompt"]) == (case.request.subject, case.request.text)
        if case.target_id:
            expected = slow_cosine(" ".join(whole), " ".join(SAMPLES["P36", "Q220"]), corpus)
            assert record["consistency"] == pytest.approx(expected)
        else:
            assert record["consistency"] is None
    assert found.estimates["fluency"].value == pytest.approx(np.mean([r["fluency"] for r in found.records]))
    assert found.estimates["consistency"].value == found.records[0]["consistency"]
    assert json.loads(json.dumps(found.records)) == found.records


def test_a_model_that_always_says_the_same_has_no_variety(tokenizer):
    (paris,) = tokenizer(" Paris", add_special_tokens=False)["input_ids"]
    model = always(model_of(dtype=torch.float32), {paris: 1.0})
    found = Texts()(model, tokenizer, [fact("Paris"), fact("Rome")], None)
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
