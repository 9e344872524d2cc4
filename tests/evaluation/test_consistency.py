"""Texts beside reference texts, against cosines counted by hand."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
from support.data_files import write_documents
from support.references import SAMPLES, WRITTEN, fact, slow_cosine

from alphaedit_plugin.errors import AlphaEditError, CorpusError
from alphaedit_plugin.evaluation.consistency import PASSAGES, Passages, Snippets, references


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
    path = write_documents(tmp_path / "corpus.jsonl", ["\n".join(PARAGRAPHS[:3]), "\n\n".join(PARAGRAPHS[3:])])
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
