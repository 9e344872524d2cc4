"""Text from files, cut into windows of tokens."""

from __future__ import annotations

import logging
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.data_files import write_documents
from support.tries import tries

from alphaedit_plugin.errors import CorpusError
from alphaedit_plugin.nullspace.corpus import documents, windows

WORDS = [f"word{i}" for i in range(3000)]


@pytest.fixture
def long_file(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text(" ".join(WORDS))
    return path


# ------------------------------------------------------------------------------------------------------ files


def test_a_text_file_is_cut_into_pieces_of_whole_words_from_all_over_it(long_file):
    pieces = list(documents(long_file))
    found = [word for piece in pieces for word in piece.split()]
    assert len(pieces) > 5
    assert set(found) <= set(WORDS)
    assert len(found) == len(set(found)) >= len(WORDS) - 2 * len(pieces)


@pytest.mark.parametrize("text", ["one", "two words", "Ünïcode 日本語 text.", "日本語" * 50, "ends with a newline\n"])
def test_a_file_shorter_than_a_piece_loses_nothing(tmp_path, text):
    path = tmp_path / "short.txt"
    path.write_text(text, encoding="utf-8")
    assert [piece.strip() for piece in documents(path)] == [text.strip()]


@tries(20)
@given(text=st.text(min_size=1, max_size=400), window=st.integers(1, 20))
def test_pieces_never_hold_a_broken_character_or_text_that_is_not_in_the_file(tmp_path_factory, text, window):
    path = tmp_path_factory.mktemp("corpus") / "any.txt"
    data = text.encode("utf-8", errors="ignore")
    path.write_bytes(data)
    pieces, refused = [], False
    try:
        pieces.extend(documents(path, window=window))
    except CorpusError:
        refused = True
    assert all(piece in data.decode("utf-8") for piece in pieces)
    assert refused == (not "".join(pieces).strip())


def test_jsonl_gives_each_lines_text_and_skips_blank_lines(tmp_path):
    path = write_documents(tmp_path / "a.jsonl", ["one", "two\nlines", "日本"])
    path.write_text(path.read_text() + "\n  \n")
    assert sorted(documents(path)) == sorted(["one", "two\nlines", "日本"])


@pytest.mark.parametrize(
    "line",
    ["{not json", '{"txt": 1}', '{"text": 5}', '{"text": null}', '["text"]', '"text"', "3", b"\xff\xfe\xfa"],
)
def test_a_malformed_line_is_named_with_its_file(tmp_path, line):
    path = tmp_path / "a.jsonl"
    raw = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(b'{"text": "fine"}\n\n{"text": "fine too"}\n' + raw + b'\n{"text": "fine"}\n')
    with pytest.raises(CorpusError, match=r"a\.jsonl, line 4:"):
        list(documents(path))


def test_a_folder_gives_all_its_texts_and_nothing_else(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("apple one two")
    (tmp_path / "sub" / "B.MD").write_text("banana one two")
    (tmp_path / "weights.bin").write_bytes(b"cherry one two")
    write_documents(tmp_path / "sub" / "c.jsonl", ["date", "elder"])
    firsts = sorted(text.split()[0] for text in documents(tmp_path))
    assert firsts == ["apple", "banana", "date", "elder"]


def test_a_folder_without_text_is_refused_by_name(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(CorpusError, match=str(tmp_path)):
        documents(tmp_path)


@pytest.mark.parametrize("name", ["missing.txt", "./missing", "~/missing", "/missing", "missing.jsonl"])
def test_a_missing_file_is_refused_by_name(name):
    with pytest.raises(CorpusError, match=name):
        list(documents(name))


def test_a_path_may_begin_with_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_documents(tmp_path / "a.jsonl", ["one"])
    assert list(documents("~/a.jsonl")) == ["one"]


@pytest.mark.parametrize("name", ["empty.txt", "empty.jsonl"])
@pytest.mark.parametrize("content", ["", " \n\n  \n"])
def test_an_empty_file_is_refused_by_name(tmp_path, tokenizer, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(CorpusError, match=name):
        windows(documents(tmp_path / name), tokenizer, 10)


def test_the_order_is_decided_by_the_seed_alone(long_file):
    first = list(documents(long_file, seed=1))
    random.seed(7)
    state = random.getstate()
    assert list(documents(long_file, seed=1)) == first
    assert random.getstate() == state
    other = list(documents(long_file, seed=2))
    assert other != first
    assert sorted(other) == sorted(first)


# ---------------------------------------------------------------------------------------------------- windows


@tries(25)
@given(
    texts=st.lists(st.text(max_size=60), min_size=1, max_size=8),
    budget=st.integers(1, 80),
    window=st.integers(2, 20),
)
@pytest.mark.parametrize("kind", ["tokenizer", "bos_tokenizer"])
def test_windows_hold_the_budget_exactly_and_cut_each_text_in_order(request, kind, texts, budget, window):
    tokenizer = request.getfixturevalue(kind)
    opening = len(tokenizer("")["input_ids"])
    whole = [token for text in texts if text.strip() for token in tokenizer(text)["input_ids"][opening:]]
    if not whole:
        with pytest.raises(CorpusError):
            windows(texts, tokenizer, budget, window=window)
        return
    found = windows(texts, tokenizer, budget, window=window)
    content = [token for ids in found for token in ids[opening:]]
    assert all(1 <= len(ids) <= window for ids in found)
    assert all(ids[:opening] == tokenizer("")["input_ids"] for ids in found)
    assert content == whole[: len(content)]
    assert sum(map(len, found)) == budget or (content == whole and sum(map(len, found)) < budget)


def test_no_more_texts_are_read_than_the_budget_needs(tokenizer):
    texts = iter(["The capital of France is Paris."] * 100)
    windows(texts, tokenizer, 10)
    assert len(list(texts)) >= 97


def test_too_little_text_is_reported_with_both_numbers(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        found = windows(["The capital"], tokenizer, 1000)
    have = sum(map(len, found))
    assert str(have) in caplog.text
    assert "1000" in caplog.text


def test_the_tokenizers_own_truncation_is_as_before(tokenizer):
    text = "The capital of France is Paris. " * 20
    before = tokenizer(text)["input_ids"]
    windows([text], tokenizer, 100, window=5)
    assert tokenizer(text)["input_ids"] == before
