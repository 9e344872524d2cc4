"""Whether a text that a model wrote gives an answer."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence

_OPENING = " \t\n\"'“”„‘’«»`*_([{"
_ARTICLE = re.compile(r"(the|an|a)\s+(?=\S)")
_GOES_ON = re.compile(r"\d[.,]\d")  # a number
# Scripts without spaces between words: Thai to Tibetan, Burmese, Khmer, kana, Chinese characters.
_UNSPACED = re.compile("[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")

SAYS = 2
"""Change this number whenever `says` changes its answers: old measurements are then repeated."""

JUDGES = 2
"""The same for `exact`, `contains` and `first_clause`."""


def says(text: str, answers: Sequence[str]) -> bool:
    """Whether `text` begins with one of `answers`, as whole words.

    Case, leading quotes and brackets, the width of spaces, and an English article do not matter.
    """
    begun = _begun(text)
    for answer in map(_begun, answers):
        after = begun[len(answer) :]
        ends = not _of_word(after[:1]) and not _GOES_ON.match(answer[-1:] + after)
        if answer and begun.startswith(answer) and (ends or _UNSPACED.match(answer[-1])):
            return True
    return False


def _begun(text: str) -> str:
    folded = _folded(text).lstrip(_OPENING)
    return _ARTICLE.sub("", folded, count=1) if _ARTICLE.match(folded) else folded


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _of_word(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character or " ").startswith("M")


# ------------------------------------------------------------------------------------------ as SQuAD compares answers

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation + "‘’")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_AFTER = r"(?=\W*(?:\s|$))"  # of a mark: so that 3.14 and 1,500 hold none
_MARK = re.compile(rf"[.,;:!?]+{_AFTER}|[。！？，；：、]|\n")
_SHORT = ("St", "Dr", "Mr", "Mrs", "Ms", "Jr", "Sr", "Mt", "Ft", "vs", "Prof", "Gen", "Sgt", "Capt", "Gov", "Sen", "ca")
_OPEN = "".join(rf"(?<!\b(?i:{short}))" for short in _SHORT)
_LETTER = r"(?<![^\w'’][^\W\d_I])(?<!^[^\W\d_I])"
_POINT = rf"{_OPEN}{_LETTER}(?<!^1)\.(?!(?<=\b[Nn]o\.)\s*\d)[.!?]*"
_SENTENCE = re.compile(rf"(?:{_POINT}|[!?][.!?]*){_AFTER}|[。！？]|\n")
"""No end: the point of a known abbreviation ("St."), of a letter ("J. R.", "U.S.", but not of "I"), of "No. 5", and of
the "1." that begins a list. What ends in such a point ("in the U.S. Rome is") goes on, for nothing tells them apart.
"""
_CLAUSE = re.compile(rf"[,;:]+{_AFTER}|[，；：、]|{_SENTENCE.pattern}")


def normal(text: str) -> str:
    """The text as SQuAD compares answers (Rajpurkar et al. 2016): without case, punctuation, English articles, and more
    than one space between words. Other punctuation than ASCII's becomes a space. What has nothing else keeps it ("A").
    """
    folded = _folded(text)
    bare = "".join(" " if unicodedata.category(c).startswith("P") else c for c in folded.translate(_NO_PUNCTUATION))
    return " ".join(_ARTICLES.sub(" ", bare).split()) or folded


def exact(text: str, answers: Sequence[str]) -> bool:
    """Whether the answer that `text` gives is one of `answers`, and no more, after `normal`.

    A model goes on after its answer, which is therefore what comes before some punctuation mark or line break: "St.
    Louis, in Missouri." answers "St. Louis".
    """
    text = text.strip()
    given = {normal(text), *(normal(text[: end.start()]) for end in _MARK.finditer(text))}
    return any(normal(answer) in given for answer in answers if answer.strip())


def contains(text: str, answers: Sequence[str]) -> bool:
    """Whether one of `answers` stands in the first sentence of `text`, as whole words, after `normal`; or is `exact`.

    What comes later is no answer: a model that does not stop names anything sooner or later. Signs may part words too:
    "Rome's" and "Rome-based" hold Rome, but "1,500" holds no 1.
    """
    first = first_sentence(text)
    return exact(text, answers) or any(
        _stands_in(form(answer), form(first)) for answer in answers for form in (normal, _parted)
    )


_PARTING = re.compile(rf"(?<!\d)[{re.escape(string.punctuation)}’]|[{re.escape(string.punctuation)}’](?!\d)")


def _parted(text: str) -> str:
    return normal(_PARTING.sub(" ", text))


def _stands_in(answer: str, within: str) -> bool:
    if not answer:
        return False
    if _UNSPACED.match(answer[0]) and _UNSPACED.match(answer[-1]):
        return answer in within
    return f" {answer} " in f" {within} "


def first_sentence(text: str) -> str:
    """The first sentence or line of `text` that has a word, without the signs around it."""
    return _first(_SENTENCE, text)


def first_clause(text: str) -> str:
    """The first sentence up to a comma or another mark inside it."""
    return _first(_CLAUSE, text)


def _first(end: re.Pattern[str], text: str) -> str:
    return end.split(re.sub(r"^\W+", "", text), maxsplit=1)[0].strip()
