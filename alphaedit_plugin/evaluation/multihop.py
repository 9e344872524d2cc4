"""Questions that combine several facts, edited ones among them (MQuAKE, Zhong et al. 2023, 2305.14795)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from typing import Any

from torch import nn

from ..editors.generation import write
from .facts import Fact
from .measure import Measured, mean_of
from .saying import SAYS, says

ANSWER_TOKENS, THOUGHT_TOKENS = 20, 100

EXAMPLES = (
    (
        "What is the capital of the country where the painter Frida Kahlo was born?",
        "Frida Kahlo was born in Mexico. The capital of Mexico is Mexico City.",
        "Mexico City",
    ),
    (
        "In which language did the author of The Trial write?",
        "The author of The Trial is Franz Kafka. Franz Kafka wrote in German.",
        "German",
    ),
    (
        "What is the currency of the country of which the inventor of the World Wide Web is a citizen?",
        "The inventor of the World Wide Web is Tim Berners-Lee. Tim Berners-Lee is a citizen of the United Kingdom. "
        "The currency of the United Kingdom is the pound sterling.",
        "pound sterling",
    ),
    (
        "Which continent is home to the country whose capital is Nairobi?",
        "The country whose capital is Nairobi is Kenya. Kenya is in Africa.",
        "Africa",
    ),
)
"""(question, thoughts, answer): shown to a model before each question, as examples of how to answer."""

_PLAIN = "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, _, answer in EXAMPLES)
_THOUGHTFUL = "".join(
    f"Question: {question}\nThoughts: {thoughts}\nAnswer: {answer}\n\n" for question, thoughts, answer in EXAMPLES
)


class MultiHop:
    """Answers about the first `limit` facts that have questions or hops (None: about all); shares over those facts.

    - `multihop`: a case counts when any of its questions (MQuAKE: three wordings of one) is answered right, after
      examples of questions and answers.
    - `multihop_cot`: the same with a chain of thought, in the examples and from the model, before the answer.
    - `hops`: the share of a case's single facts that the model says. The model continues a statement without examples,
      as MQuAKE does for edited facts; it answers a question after examples. MQuAKE's "edit-wise" success is this over
      edited facts alone, its "instance-wise" the share of cases with all hops right: `all_hops` in the records.

    Every token is the model's likeliest one. An answer is right if it begins with the new answer or one of its other
    names (`says`); MQuAKE requires equality, which a model that writes a few more words would miss.
    """

    name = "multihop"

    def __init__(self, *, limit: int | None = 50) -> None:
        self.limit = limit

    def identity(self) -> Mapping[str, Any]:
        tokens = [ANSWER_TOKENS, THOUGHT_TOKENS]
        return {"limit": self.limit, "examples": EXAMPLES, "tokens": tokens, "says": SAYS}

    def __call__(
        self,
        model: nn.Module,
        tokenizer: Any,
        facts: Sequence[Fact],
        before: Measured | None,
        *,
        progress: bool = False,
    ) -> Measured:
        cases = [fact for fact in facts if fact.questions or fact.hops][: self.limit]
        questions = [question.prompt for case in cases for question in case.questions]
        hops = [hop.prompt for case in cases for hop in case.hops]

        def ask(prompts: list[str], tokens: int, stop: str) -> dict[str, str]:
            return dict(
                zip(prompts, write(model, tokenizer, prompts, tokens, stop=stop, progress=progress), strict=True)
            )

        short = ask([_asked(q) for q in questions] + [_single(hop) for hop in hops], ANSWER_TOKENS, "\n")
        thought = ask([_asked_to_think(question) for question in questions], THOUGHT_TOKENS, "\n\n")
        records = [_record(case, short, thought) for case in cases]
        means = {metric: mean_of([_number(record[metric]) for record in records]) for metric in _METRICS}
        return Measured({metric: mean for metric, mean in means.items() if mean}, records)


_METRICS = ("multihop", "multihop_cot", "hops")


def _asked(question: str) -> str:
    return f"{_PLAIN}Question: {question}\nAnswer:"


def _asked_to_think(question: str) -> str:
    return f"{_THOUGHTFUL}Question: {question}\nThoughts:"


def _single(hop: str) -> str:
    return _asked(hop) if hop.endswith("?") else hop


def _concluded(thoughts: str) -> str:
    """The answer at the end of a chain of thought; "" if it reaches none."""
    return thoughts.partition("Answer:")[2].partition("\n")[0]


def _record(case: Fact, short: Mapping[str, str], thought: Mapping[str, str]) -> dict[str, Any]:
    asked = []
    for question in case.questions:
        answer, thoughts = short[_asked(question.prompt)], thought[_asked_to_think(question.prompt)]
        asked.append(
            {
                "question": question.prompt,
                "answers": list(question.answers),
                "written": answer,
                "right": says(answer, question.answers),
                "thoughts": thoughts,
                "right_cot": says(_concluded(thoughts), question.answers),
            }
        )
    single, right = [], []
    for hop in case.hops:
        written = short[_single(hop.prompt)]
        right.append(says(written, hop.answers))
        single.append({"prompt": hop.prompt, "answers": list(hop.answers), "written": written, "right": right[-1]})
    return {
        "subject": case.request.subject,
        "questions": asked,
        "single_hops": single,
        "multihop": float(any(each["right"] for each in asked)) if asked else None,
        "multihop_cot": float(any(each["right_cot"] for each in asked)) if asked else None,
        "hops": sum(right) / len(right) if right else None,
        "all_hops": float(all(right)) if right else None,
    }


def _number(value: float | None) -> float:
    return nan if value is None else value
