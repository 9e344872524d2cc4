"""What a model answers when it writes by itself, beside what teacher forcing makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

from torch import nn

from ..editors.generation import write
from ..editors.requests import encode
from .facts import Fact
from .judge import Judge, Question
from .likelihood import score_pairs
from .measure import Measured, mean_of
from .metrics import METRICS
from .saying import JUDGES, contains, exact, first_clause, normal

TOKENS, TO_SPARE = 50, 5
_NAMES = [name for name, metric in METRICS.items() if metric.group == "answers"]


@dataclass(frozen=True)
class _Asked:
    """One prompt, and the answers that are right after it; of which `kind` it is."""

    kind: str
    prompt: str
    answers: tuple[str, ...]


class Answers:
    """Answers about the first `limit` facts (None: about all), so that all variants and checkpoints are asked the same.

    After the prompts of a fact's requests (efficacy), its paraphrases (generalization), and its prompts about other
    facts (specificity), the model always writes the likeliest token, until it ends the text itself or after 50 tokens
    (of an answer of more than 45 tokens, five more than it has). Nothing else stops it: neither newline nor point. Yang
    et al. 2025 ("The Mirage of Model Editing", 2502.11177): teacher forcing shows a model the right tokens up to each
    place, and counts a success that the model, left alone, does not write.

    - `written_…`: its first sentence contains the answer as whole words (`saying.contains`).
    - `exact_…`: what comes before some punctuation mark or line break is the answer and no more (`saying.exact`).
    - `judged_…`: so says the `judge`, if there is one.
    - `forced_…`: the same prompts under teacher forcing: the share of the answer's tokens that are the likeliest, the
      best of the accepted answers (ZsRE's and EasyEdit's definition, whatever the data).
    - `gap_…`: forced less written, prompt by prompt.

    Of locality, written is that what comes first after a prompt about another fact, up to any punctuation mark
    (`saying.first_clause`), is what came before the edits, right or wrong; forced is the share of answer tokens that
    are. The new object is what a fact's own prompts ask for, the data set's answers what the others do. All are means
    per fact, over its prompts of that kind.
    """

    name = "answers"

    def __init__(self, *, limit: int | None = 50, judge: Judge | None = None) -> None:
        self.limit, self.judge = limit, judge

    def identity(self) -> Mapping[str, Any]:
        return {
            "limit": self.limit,
            "tokens": [TOKENS, TO_SPARE],
            "judges": JUDGES,
            "judge": dict(self.judge.identity()) if self.judge else None,
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
        """Raises JudgeError if the judge gives no verdict."""
        facts = facts[: self.limit]
        asked = [_asked(fact) for fact in facts]
        answered = iter(self._answered(model, tokenizer, [each for of in asked for each in of], progress))
        records: list[dict[str, Any]] = []
        for number, (fact, of) in enumerate(zip(facts, asked, strict=True)):
            answers = [next(answered) for _ in of]
            if before is not None:
                answers += _kept(before.records[number]["answers"], answers)
            records.append(
                {
                    "number": number,
                    "case_id": fact.request.case_id,
                    "subject": fact.request.subject,
                    "prompt": fact.request.text,
                    "target_new": fact.request.target_new,
                    "written": answers[0]["text"],
                    **{name: _mean(answers, *name.split("_")) for name in _NAMES},
                    "answers": answers,
                }
            )
        means = {name: mean_of([nan if (of := record[name]) is None else of for record in records]) for name in _NAMES}
        return Measured({name: mean for name, mean in means.items() if mean}, records)

    def _answered(
        self, model: nn.Module, tokenizer: Any, asked: Sequence[_Asked], progress: bool
    ) -> list[dict[str, Any]]:
        """What became of each prompt."""
        pairs = [(each.prompt, answer) for each in asked for answer in each.answers]
        scored = score_pairs(model, tokenizer, pairs, progress=progress)
        forced = iter(zip(scored.accuracy.tolist(), scored.predicted, strict=True))
        tokens = [max(TOKENS, TO_SPARE + _longest(tokenizer, each)) for each in asked]
        texts = write(model, tokenizer, [each.prompt for each in asked], tokens, progress=progress)
        questions = [Question(each.prompt, each.answers, text) for each, text in zip(asked, texts, strict=True)]
        verdicts = self.judge(questions, progress=progress) if self.judge else [None] * len(asked)
        found = []
        for each, text, verdict in zip(asked, texts, verdicts, strict=True):
            accuracy, predicted = zip(*(next(forced) for _ in each.answers), strict=True)
            found.append(
                {
                    "kind": each.kind,
                    "prompt": each.prompt,
                    "accepted": list(each.answers),
                    "text": text,
                    "forced": max(accuracy),
                    "written": contains(text, each.answers),
                    "exact": exact(text, each.answers),
                    "judged": verdict,
                    "tokens": predicted[0],
                }
            )
        return found


def _asked(fact: Fact) -> list[_Asked]:
    """The fact's prompts, its requests first."""
    new = (fact.request.target_new,)
    probes = [probe for kind in fact.locality.values() for probe in kind]
    return [
        *(_Asked("efficacy", request.text, (request.target_new,)) for request in fact.requests),
        *(_Asked("generalization", prompt, new) for prompt in fact.paraphrases),
        *(_Asked("specificity", prompt, (fact.target_true,)) for prompt in fact.neighbours if fact.target_true),
        *(_Asked("specificity", probe.prompt, probe.answers) for probe in probes),
    ]


def _longest(tokenizer: Any, asked: _Asked) -> int:
    return max(len(encode(tokenizer, "{}", asked.prompt, answer).target) for answer in asked.answers)


def _kept(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each prompt about another fact, whether it is answered as `before`."""
    found = []
    for then, each in zip(before, now, strict=True):
        if each["kind"] == "specificity":
            said = first_clause(then["text"])
            same = [a == b for a, b in zip(then["tokens"], each["tokens"], strict=True)]
            found.append(
                {
                    "kind": "locality",
                    "prompt": each["prompt"],
                    "accepted": [said],
                    "forced": sum(same) / len(same),
                    "written": normal(first_clause(each["text"])) == normal(said),
                }
            )
    return found


def _mean(answers: Sequence[Mapping[str, Any]], how: str, kind: str) -> float | None:
    """The mean over the answers of this kind; None if there are none, or if nobody said this of them."""
    of = [each for each in answers if each["kind"] == kind]
    if how == "gap":
        return sum(each["forced"] - each["written"] for each in of) / len(of) if of else None
    values = [each[how] for each in of if each.get(how) is not None]
    return sum(values) / len(values) if values else None
