"""Whether a model has learned facts and kept others: the metrics of AlphaEdit §4.1 and appendix A.2, per fact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

import numpy as np
from torch import nn

from ..errors import RequestError
from .facts import Fact, Probe
from .likelihood import score_pairs
from .measure import Measured, estimate, mean_of

EARLIEST = 100
METRICS = ("efficacy", "generalization", "specificity", "portability", "exact")


@dataclass(frozen=True)
class Scores:
    """Shares from 0 to 1, per fact and in order; nan if there is nothing to ask.

    `efficacy` is about the prompt itself, `generalization` about its paraphrases, `specificity` about prompts whose
    answers should not change, `portability` about what follows from the fact. Two definitions, depending on the fields
    of the fact:

    - CounterFact (Meng et al. 2022), if the old object and neighbours are known: an answer counts if the new object is
      more probable than the old one (for neighbours: the old one than the new one), by mean log-probability per token.
    - ZsRE and all others (De Cao et al. 2021): the share of the answer's tokens that are the likeliest; the best of the
      accepted answers counts.

    `exact` is stricter: 1 where each token of the new object is the likeliest one. Teacher forcing makes all of these
    look better than they are ("The Mirage of Model Editing", 2502.11177): see `answers.py` for what the model writes by
    itself.

    `answers` are the likeliest tokens at the places of the answers, for all prompts about other facts.
    """

    efficacy: tuple[float, ...]
    generalization: tuple[float, ...]
    specificity: tuple[float, ...]
    portability: tuple[float, ...]
    exact: tuple[float, ...]
    answers: tuple[list[list[int]], ...]

    def means(self) -> dict[str, float]:
        """The mean of each metric over the facts that have a value; a metric without any is left out."""
        columns = {name: getattr(self, name) for name in METRICS}
        return {name: float(np.nanmean(values)) for name, values in columns.items() if not all(map(isnan, values))}


class FactScores:
    """The metrics of every written fact (`Scores`), their harmonic mean, locality and retention.

    `score` is the harmonic mean of efficacy, generalization and specificity (Meng et al. 2022), resampled over facts
    jointly. `locality` (KnowEdit, Zhang et al. 2024): for prompts about other facts, the share of answer tokens, under
    teacher forcing, that are the same as before the edits, right or wrong. `retention` is the efficacy of the facts
    written first, of which there are `EARLIEST`, once there are more.

    With `sample`, only so many facts are asked, evenly spread over those written so far, and the earliest for their
    retention; after the last all are. Of a record, `number` is the fact's place in the sequence.
    """

    name = "facts"

    def __init__(self, sample: int | None = None) -> None:
        """Raises RequestError for a sample of no facts."""
        if sample is not None and sample < 1:
            raise RequestError(f"a sample holds at least one fact, not {sample}")
        self.sample = sample

    def identity(self) -> Mapping[str, Any]:
        return {} if self.sample is None else {"sample": self.sample}

    def chosen(self, count: int, whole: bool) -> tuple[list[int], list[int]]:
        """(the sample, the earliest) of the numbers below `count`; together they are asked. `whole`: all are."""
        sample = list(range(count)) if whole else evenly(count, self.sample or count)
        return sample, list(range(min(EARLIEST, count)))

    def __call__(
        self,
        model: nn.Module,
        tokenizer: Any,
        facts: Sequence[Fact],
        before: Measured | None,
        *,
        progress: bool = False,
    ) -> Measured:
        sample, earliest = self.chosen(len(facts), before is None or len(facts) == len(before.records))
        asked = sorted({*sample, *earliest})
        scores = score(model, tokenizer, [facts[number] for number in asked], progress=progress)
        columns: dict[str, Sequence[float]] = {name: getattr(scores, name) for name in METRICS}
        if before is not None:
            columns["locality"] = [
                _unchanged(before.records[number]["answers"], now)
                for number, now in zip(asked, scores.answers, strict=True)  # facts edited so far come first
            ]
        place = {number: at for at, number in enumerate(asked)}
        sampled = {name: [values[place[number]] for number in sample] for name, values in columns.items()}
        estimates = {name: value for name, values in sampled.items() if (value := mean_of(values)) is not None}
        retained = mean_of([columns["efficacy"][place[number]] for number in earliest])
        if len(facts) > EARLIEST and retained is not None:
            estimates["retention"] = retained
        parts = ("efficacy", "generalization", "specificity")
        if estimates.keys() >= set(parts):
            estimates["score"] = estimate(np.asarray([sampled[part] for part in parts]).T, _harmonic)
        records = [
            {
                "number": number,
                "case_id": fact.request.case_id,
                "subject": fact.request.subject,
                "relation": fact.relation,
                "prompt": fact.request.text,
                "target_new": fact.request.target_new,
                **{name: None if isnan(values[i]) else values[i] for name, values in columns.items()},
                "answers": scores.answers[i],
            }
            for i, (number, fact) in enumerate((number, facts[number]) for number in asked)
        ]
        return Measured(estimates, records)


def evenly(count: int, sample: int) -> list[int]:
    """`sample` of the numbers below `count`, or all if there are fewer, evenly spread and with the last one."""
    return (
        sorted({count - 1 - number * count // sample for number in range(sample)})
        if sample < count
        else list(range(count))
    )


def _unchanged(before: Sequence[Sequence[int]], now: Sequence[Sequence[int]]) -> float:
    same = [old == new for olds, news in zip(before, now, strict=True) for old, new in zip(olds, news, strict=True)]
    return _mean(same)


def harmonic(means: np.ndarray) -> np.ndarray:
    """… × k → …: the harmonic mean of k means; 0 if one of them is 0 or unknown."""
    with np.errstate(divide="ignore", invalid="ignore"):
        means = np.nan_to_num(means)
        return means.shape[-1] / (1 / means).sum(-1)


def _harmonic(sample: np.ndarray) -> np.ndarray:
    """… × n × k → …: the harmonic mean of the k means over items, ignoring nan."""
    known = ~np.isnan(sample)
    with np.errstate(divide="ignore", invalid="ignore"):
        return harmonic(np.where(known, sample, 0).sum(-2) / known.sum(-2))


def score(model: nn.Module, tokenizer: Any, facts: Sequence[Fact], *, progress: bool = False) -> Scores:
    """All metrics of every fact, from one pass over all prompts."""
    asked, plans = _planned(facts)
    scored = score_pairs(model, tokenizer, asked, progress=progress)
    likelihood, accuracy = scored.mean_log_probability.tolist(), scored.accuracy.tolist()
    rows = [plan.scores(likelihood, accuracy) for plan in plans]
    answers = tuple([scored.predicted[pair] for pair in plan.others] for plan in plans)
    return Scores(**dict(zip(METRICS, map(tuple, zip(*rows, strict=True)), strict=True)), answers=answers)


def asked_of(facts: Sequence[Fact]) -> list[tuple[str, str]]:
    """All (prompt, target) pairs that `score` asks about, each once."""
    return _planned(facts)[0]


def _planned(facts: Sequence[Fact]) -> tuple[list[tuple[str, str]], list[_Plan]]:
    asked: dict[tuple[str, str], int] = {}

    def ask(prompt: str, target: str) -> int:
        return asked.setdefault((prompt, target), len(asked))

    plans = [_Plan(fact, ask) for fact in facts]
    return list(asked), plans


class _Plan:
    """Which (prompt, target) pairs a fact's metrics need, and how the metrics are computed from them."""

    def __init__(self, fact: Fact, ask: Any) -> None:
        self.compares = bool(fact.target_true and fact.neighbours)
        self.written = [ask(request.text, request.target_new) for request in fact.requests]
        new, old = fact.request.target_new, fact.target_true
        self.paraphrases = [ask(prompt, new) for prompt in fact.paraphrases]
        if self.compares:
            self.old = [ask(prompt, old) for prompt in (fact.request.text, *fact.paraphrases)]
            self.neighbours = [(ask(prompt, old), ask(prompt, new)) for prompt in fact.neighbours]

        def probes(of: Sequence[Probe]) -> list[list[int]]:
            return [[ask(probe.prompt, answer) for answer in probe.answers] for probe in of]

        self.locality = probes([probe for kind in fact.locality.values() for probe in kind])
        self.portability = probes([probe for kind in fact.portability.values() for probe in kind])
        self.others = [answers[0] for answers in self.locality]
        if self.compares:
            self.others += [old for old, _ in self.neighbours]

    def scores(self, likelihood: Sequence[float], accuracy: Sequence[float]) -> tuple[float, ...]:
        """The fact's scores, in the order of METRICS."""

        def best(probes: Sequence[Sequence[int]]) -> list[float]:
            return [max(accuracy[pair] for pair in probe) for probe in probes]

        if self.compares:
            wins = [
                float(likelihood[new] > likelihood[old])
                for new, old in zip([self.written[0], *self.paraphrases], self.old, strict=True)
            ]
            efficacy, paraphrased = wins[:1], wins[1:]
            kept = [float(likelihood[old] > likelihood[new]) for old, new in self.neighbours]
        else:
            efficacy, paraphrased = [accuracy[pair] for pair in self.written], [accuracy[p] for p in self.paraphrases]
            kept = best(self.locality)
        exact = [float(accuracy[pair] == 1) for pair in self.written]
        return tuple(map(_mean, (efficacy, paraphrased, kept, best(self.portability), exact)))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else nan
