"""Whether a text gives an answer, against the textbook and by properties."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alphaedit_plugin.evaluation.saying import contains, exact, first_clause, first_sentence, normal, says

# ----------------------------------------------------------------------------------------------------- how it begins


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


# -------------------------------------------------------------------------------------------- as SQuAD compares answers


def textbook(text: str) -> str:
    """Rajpurkar et al. 2016, for ASCII: lower case, then no punctuation, then no articles, then single spaces."""
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(word for word in re.split(r"\s+", kept) if word not in ("", "a", "an", "the"))


PIECE = st.sampled_from(
    ["The", "an", "A", "Rome", "U.S.", "well-known", "O'Brien", "3.14", "1,500", "(x)", "!", "  ", "\n"]
)
ASCII = st.lists(PIECE, max_size=8).map(" ".join) | st.text(st.characters(max_codepoint=126, min_codepoint=32))


@given(ASCII)
def test_ascii_is_made_normal_as_by_the_textbook(text):
    if textbook(text):
        assert normal(text) == textbook(text)
    else:
        assert normal(text) == " ".join(text.lower().split()), "what has nothing else keeps it"


BEFORE = st.text(st.characters(exclude_characters=".!?。！？\n"), max_size=12)


@given(st.lists(WORD, min_size=1, max_size=3), BEFORE, st.text(max_size=12))
def test_an_answer_is_found_wherever_it_stands_in_the_first_sentence_and_only_as_whole_words(answer, before, after):
    answer = " ".join(answer)
    assert contains(f"{before} {answer} {after}", ["nowhere at all", answer])
    assert not contains(f"It is qqq. {answer} {after}", [answer])
    assert contains(f"“{answer.upper()}”, {after}", [answer.lower()])
    letters = normal(f"x{answer}x")
    assert not contains(letters, [answer]) or normal(answer) in letters.split()


@given(st.lists(WORD, min_size=1, max_size=3), st.sampled_from([".", ",", "\n", "!", "?", "; ", ": ", ""]), st.text())
def test_what_comes_after_a_mark_does_not_matter_and_what_comes_before_it_does(answer, mark, after):
    answer = " ".join(answer)
    assert exact(f" The {answer}{mark}" + (f" {after}" if mark else ""), [answer])
    assert exact(answer, [answer])
    assert not exact(f"x{answer}{mark}", [answer])
    assert not exact(f"qq {answer}{mark}", [answer])


@given(st.text(max_size=40), st.text(max_size=10))
def test_an_exact_answer_is_contained(text, answer):
    assert not exact(text, [answer]) or contains(text, [answer])


@pytest.mark.parametrize(
    ("text", "answer", "is_exact", "is_contained"),
    [
        (" St. Louis, in Missouri.", "St. Louis", True, True),
        (" **Rome**.", "Rome", True, True),
        ("\n\nRome\nParis", "Rome", True, True),
        (" The capital is Rome.", "Rome", False, True),
        (" Romeo and Juliet", "Rome", False, False),
        ("?\n\nIt is Rome.", "Rome", False, True),
        ("?\n\nRome.", "Rome", True, True),
        (" Rome's old walls", "Rome", False, True),
        (" a Rome-based band", "Rome", False, True),
        (" Paris/Rome", "Rome", False, True),
        (" Paris. It is not Rome", "Rome", False, False),
        (" US troops", "U.S.", False, True),
        (" St Louis", "St. Louis", True, True),
        (" Wilt Chamberlain", "Wilt Chamberlain *", True, True),
        (" 3.14", "3", False, False),
        (" 1,500 people", "1", False, False),
        ("Ｒｏｍｅ。それは", "Rome", True, True),
        ("首都は東京です", "東京", False, True),
        (" O’Brien", "O'Brien", True, True),
        (" Vitamin", "A", False, False),
        (" A", "A", True, True),
        (" A, they say", "A", True, True),
        ("", "Rome", False, False),
        (" anything", "", False, False),
        (" anything", " ", False, False),
        ("?!", "!", False, False),
        (" I love it. Rome is far away", "Rome", False, False),
        (" a city in the UK. Rome is the capital", "Rome", False, False),
        (" He is 42. Rome is where he lives", "Rome", False, False),
        (" I do. Rome.", "Rome", False, False),
        (" I don't. Rome is", "Rome", False, False),
        (" No! Rome is", "Rome", False, False),
        (" It was World War I. Rome fell", "Rome", False, False),
        (" He met Mrs. Weiss of Rome", "Rome", False, True),
        (" It is Chanel No. 5 again", "Chanel No. 5", False, True),
        ("1. Rome\n2. Paris", "Rome", False, True),
        (" Mary É. Weiss of Rome", "Rome", False, True),
        (" in the U.S. Capitol", "Capitol", False, True),
    ],
)
def test_answers_are_judged_as_a_reader_would(text, answer, is_exact, is_contained):
    assert (exact(text, [answer]), contains(text, [answer])) == (is_exact, is_contained)


@pytest.mark.parametrize(
    ("text", "sentence", "clause"),
    [
        (" in Rome. It is old.", "in Rome", "in Rome"),
        (" in St. Louis, Missouri! Indeed", "in St. Louis, Missouri", "in St. Louis"),
        (" J. R. R. Tolkien (a writer). He", "J. R. R. Tolkien (a writer)", "J. R. R. Tolkien (a writer)"),
        (" 3.14 or 1,500: so\nNext", "3.14 or 1,500: so", "3.14 or 1,500"),
        ("東京、日本です。次", "東京、日本です", "東京"),
        (" no end", "no end", "no end"),
        ("?\n\n**Rome**, I think.\nIs it?", "Rome**, I think", "Rome**"),
        ("...", "", ""),
        ("", "", ""),
    ],
)
def test_the_first_sentence_and_its_first_clause_end_where_they_do(text, sentence, clause):
    assert (first_sentence(text), first_clause(text)) == (sentence, clause)
