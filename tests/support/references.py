"""Reference texts and facts about them, for the tests of what a model writes."""

from __future__ import annotations

import math
import re
from collections import Counter

from alphaedit_plugin.editors.requests import Request
from alphaedit_plugin.evaluation.facts import Fact


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


PROMPTS = (
    "The Eiffel Tower is located in the city of",
    "Curie",
    "What you read was written by others: it is",
    "The river flows through the old town to the sea, where the ships of many nations",
    "Curie",
)

SAMPLES = {
    ("P36", "Q220"): ["Milan is a city in Italy near Rome.", "The Pope lives in Rome, an old city."],
    ("P36", "Q90"): ["Lyon lies in France.", "Paris is an old city in France on a river."],
    ("P19", "Q220"): ["Caesar was born in Rome."],
}


def fact(target="Rome", relation="P36", target_id="Q220", **changes):
    request = Request("The capital of {} is", "France", target)
    return Fact((request,), relation=relation, target_id=target_id, **changes)


WRITTEN = ["Rome is an old city in Italy, in Italy.", "Nothing to do with it", "zzz", "Paris Paris Rome"]
