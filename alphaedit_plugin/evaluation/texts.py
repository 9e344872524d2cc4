"""What a model writes by itself: whether it says the new object, how varied its words are, and how consistent."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from math import isnan, log2, nan
from typing import Any

from torch import nn

from ..editors.chat import Chat
from ..editors.generation import SEED, prompt_ids, write
from ..editors.reminder import unreminded
from ..editors.requests import encode
from .consistency import References
from .facts import Fact
from .measure import Measured, mean_of

FREE_TOKENS = 20
TEXT_TOKENS, NEW_TOKENS = 100, 50
TOP_K = 5


class Texts:
    """Texts about the first `limit` facts, so that all variants and checkpoints write about the same facts.

    - `free`: the share of a fact's requests whose prompt the model continues with the new object (`says`), when it
      always writes the likeliest token. Yang et al. 2025 ("The Mirage of Model Editing", 2502.11177): teacher forcing
      often counts a success that the model does not say.
    - `fluency`: `entropy` of each written text with its prompt, mean over a fact's prompts, × 100 (AlphaEdit A.2). It
      is low if the model repeats itself.
    - `consistency`: cosine of a fact's joined texts with the `references` on the new object; not measured without
      references.

    Texts are written as CounterFact's authors do: 100 tokens including the prompt, drawn from the 5 likeliest. They
    write from each of ten prompts, most of which are equal; we use each different prompt once, with its own seed. Their
    texts continue after an end-of-text token, ours end there. If a prompt leaves fewer than 50 tokens (LEME, WikiBio),
    50 are written anyway. If a fact has no prompts to write from, its request's prompt is used.
    """

    name = "texts"

    def __init__(self, *, limit: int = 50, references: References | None = None) -> None:
        self.limit, self.references = limit, references

    def identity(self) -> Mapping[str, Any]:
        return {
            "limit": self.limit,
            "free_tokens": FREE_TOKENS,
            "text_tokens": [TEXT_TOKENS, NEW_TOKENS],
            "top_k": TOP_K,
            "says": SAYS,
            "seed": SEED,
            "references": dict(self.references.identity()) if self.references else None,
        }

    def __call__(
        self,
        model: nn.Module,
        tokenizer: Any,
        facts: Sequence[Fact],
        before: Measured | None,
        *,
        progress: bool = False,
    ) -> Measured:
        facts = facts[: self.limit]
        said = _said(model, tokenizer, facts, progress)
        texts = _texts(model, tokenizer, facts, progress)
        between = "\n" if isinstance(unreminded(tokenizer), Chat) else ""  # of a question and its answer
        joined = [" ".join(f"{prompt}{between}{text}" for prompt, text in pairs) for pairs in texts]
        alike = self.references.cosines(facts, joined) if self.references else [nan] * len(facts)
        records: list[dict[str, Any]] = []
        for fact, written, pairs, cosine in zip(facts, said, texts, alike, strict=True):
            right = [says(text, [r.target_new]) for r, text in zip(fact.requests, written, strict=True)]
            records.append(
                {
                    "subject": fact.request.subject,
                    "prompt": fact.request.text,
                    "target_new": fact.request.target_new,
                    "written": written[0],
                    "texts": [{"prompt": prompt, "text": text} for prompt, text in pairs],
                    "free": sum(right) / len(right),
                    "fluency": 100 * sum(entropy(f"{prompt}{between}{text}") for prompt, text in pairs) / len(pairs),
                    "consistency": None if isnan(cosine) else cosine,
                }
            )
        metrics = ("free", "fluency", "consistency")
        means = {m: mean_of([nan if record[m] is None else record[m] for record in records]) for m in metrics}
        return Measured({metric: mean for metric, mean in means.items() if mean}, records)


def _said(model: nn.Module, tokenizer: Any, facts: Sequence[Fact], progress: bool) -> list[list[str]]:
    """How the model continues each request's prompt, for as many tokens as the new object may take."""
    requests = [request for fact in facts for request in fact.requests]
    lengths = [len(encode(tokenizer, "{}", request.text, request.target_new).target) for request in requests]
    tokens = [max(FREE_TOKENS, length + 5) for length in lengths]
    written = iter(write(model, tokenizer, [r.text for r in requests], tokens, progress=progress))
    return [[next(written) for _ in fact.requests] for fact in facts]


def _texts(model: nn.Module, tokenizer: Any, facts: Sequence[Fact], progress: bool) -> list[list[tuple[str, str]]]:
    """(prompt, what the model wrote) for each prompt of each fact."""
    prompts = [list(dict.fromkeys(fact.generation)) or [fact.request.text] for fact in facts]
    flat = [prompt for of_fact in prompts for prompt in of_fact]
    tokens = [max(TEXT_TOKENS - len(prompt_ids(tokenizer, prompt)), NEW_TOKENS) for prompt in flat]
    written = iter(write(model, tokenizer, flat, tokens, top_k=TOP_K, progress=progress))
    return [[(prompt, next(written)) for prompt in of_fact] for of_fact in prompts]


# ------------------------------------------------------------------------------------------------------------ measures

_OPENING = " \t\n\"'“”„‘’«»`*_([{"
_ARTICLE = re.compile(r"(the|an|a)\s+(?=\S)")
_GOES_ON = re.compile(r"\d[.,]\d")  # a number
# Scripts without spaces between words: Thai to Tibetan, Burmese, Khmer, kana, Chinese characters.
_UNSPACED = re.compile("[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")


SAYS = 2
"""Change this number whenever `says` changes its answers: old measurements are then repeated."""


def says(text: str, answers: Sequence[str]) -> bool:
    """Whether `text` begins with one of `answers`, as whole words.

    Case, leading quotes and brackets, the width of spaces, and an English article do not matter.
    """
    begun = _normal(text)
    for answer in map(_normal, answers):
        after = begun[len(answer) :]
        ends = not _of_word(after[:1]) and not _GOES_ON.match(answer[-1:] + after)
        if answer and begun.startswith(answer) and (ends or _UNSPACED.match(answer[-1])):
            return True
    return False


def _normal(text: str) -> str:
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split()).lstrip(_OPENING)
    return _ARTICLE.sub("", folded, count=1) if _ARTICLE.match(folded) else folded


def _of_word(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character or " ").startswith("M")


# Numbers and words with the signs inside them ("3.14", "well-known"); then every other sign separately.
_WORDS = re.compile(r"\w+(?:[-.,'’&/]\w+)*|\.\.\.|[^\w\s]")


def words(text: str) -> list[str]:
    """Words, numbers and signs in order. The field uses NLTK's `word_tokenize`, which splits contractions too.

    On Wikipedia texts of 75 words the fluency of the two differs by 0.02 on average, and by at most 10 of 600.
    """
    return _WORDS.findall(text)


def entropy(text: str) -> float:
    """Mean of ⅔·H₂ and 4⁄3·H₃, in bits, Hₙ = −Σ f log₂ f over the n-grams of `words` (Zhang et al. 2018; ROME §3.4).

    0 for a text that is too short to have n-grams.
    """
    tokens = words(text)
    return (2 / 3 * _entropy(tokens, 2) + 4 / 3 * _entropy(tokens, 3)) / 2


def _entropy(tokens: Sequence[str], n: int) -> float:
    counts = Counter(zip(*(tokens[i:] for i in range(n)), strict=False))
    total = counts.total()
    return -sum(count / total * log2(count / total) for count in counts.values()) + 0.0
