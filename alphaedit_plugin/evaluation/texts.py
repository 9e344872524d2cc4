"""The texts that a model writes: how varied their words are, and how consistent with the new object."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from math import isnan, log2, nan
from typing import Any

from torch import nn

from ..editors.chat import Chat
from ..editors.generation import SEED, prompt_ids, write
from ..editors.reminder import unreminded
from .consistency import References
from .facts import Fact
from .measure import Measured, mean_of

TEXT_TOKENS, NEW_TOKENS = 100, 50
TOP_K = 5


class Texts:
    """Texts about the first `limit` facts, so that all variants and checkpoints write about the same facts.

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
            "text_tokens": [TEXT_TOKENS, NEW_TOKENS],
            "top_k": TOP_K,
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
        texts = _texts(model, tokenizer, facts, progress)
        between = "\n" if isinstance(unreminded(tokenizer), Chat) else ""  # of a question and its answer
        joined = [" ".join(f"{prompt}{between}{text}" for prompt, text in pairs) for pairs in texts]
        alike = self.references.cosines(facts, joined) if self.references else [nan] * len(facts)
        records: list[dict[str, Any]] = []
        for fact, pairs, cosine in zip(facts, texts, alike, strict=True):
            records.append(
                {
                    "subject": fact.request.subject,
                    "prompt": fact.request.text,
                    "target_new": fact.request.target_new,
                    "texts": [{"prompt": prompt, "text": text} for prompt, text in pairs],
                    "fluency": 100 * sum(entropy(f"{prompt}{between}{text}") for prompt, text in pairs) / len(pairs),
                    "consistency": None if isnan(cosine) else cosine,
                }
            )
        metrics = ("fluency", "consistency")
        means = {m: mean_of([nan if record[m] is None else record[m] for record in records]) for m in metrics}
        return Measured({metric: mean for metric, mean in means.items() if mean}, records)


def _texts(model: nn.Module, tokenizer: Any, facts: Sequence[Fact], progress: bool) -> list[list[tuple[str, str]]]:
    """(prompt, what the model wrote) for each prompt of each fact."""
    prompts = [list(dict.fromkeys(fact.generation)) or [fact.request.text] for fact in facts]
    flat = [prompt for of_fact in prompts for prompt in of_fact]
    tokens = [max(TEXT_TOKENS - len(prompt_ids(tokenizer, prompt)), NEW_TOKENS) for prompt in flat]
    written = iter(write(model, tokenizer, flat, tokens, top_k=TOP_K, progress=progress))
    return [[(prompt, next(written)) for prompt in of_fact] for of_fact in prompts]


# ------------------------------------------------------------------------------------------------------------ measures

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
