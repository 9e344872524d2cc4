"""Whether a model holds facts, and what it has kept: the metrics of AlphaEdit §4.1 and appendix A.2, fact by fact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

import numpy as np
from torch import nn

from .facts import Fact, Probe
from .scoring import score_pairs

RESAMPLES, SEED = 2000, 0


@dataclass(frozen=True)
class Scores:
    """Shares from 0 to 1, for each fact in order; nan where there is nothing to ask.

    `efficacy` is about the prompt itself, `generalization` about its paraphrases, `specificity` about prompts whose
    answers should not change, `portability` about what follows from the fact. Two definitions, by what a fact knows:

    - CounterFact (Meng et al. 2022), where the old object and neighbours of it are known: an answer holds if the new
      object is more probable than the old one, for neighbours the old one than the new one; by mean log-probability
      per token.
    - ZsRE and all others (De Cao et al. 2021): the share of the answer's tokens that are the likeliest, of the
      accepted answers the best.

    `exact` is stricter: 1 where each token of the new object is the likeliest one. Teacher forcing flatters all of
    these ("The Mirage of Model Editing", 2502.11177): see `generation.py` for what the model writes by itself.
    """

    efficacy: tuple[float, ...]
    generalization: tuple[float, ...]
    specificity: tuple[float, ...]
    portability: tuple[float, ...]
    exact: tuple[float, ...]

    def means(self) -> dict[str, float]:
        """Over those facts that have something to ask; metrics for which there are none are left out."""
        return {name: float(np.nanmean(values)) for name, values in vars(self).items() if not all(map(isnan, values))}

    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % bootstrap intervals of the means, over facts."""
        return {
            name: bootstrap([value for value in values if not isnan(value)])
            for name, values in vars(self).items()
            if not all(map(isnan, values))
        }


def bootstrap(values: Sequence[float], *, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of the mean of `values` (Efron & Tibshirani 1993, 13.3); always the same resamples."""
    sample = np.random.default_rng(SEED).choice(np.asarray(values), (RESAMPLES, len(values)))
    low, high = np.quantile(sample.mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def score(model: nn.Module, tokenizer: Any, facts: Sequence[Fact], *, progress: bool = False) -> Scores:
    """All metrics of every fact, from one pass over all prompts."""
    asked: dict[tuple[str, str], int] = {}

    def ask(prompt: str, target: str) -> int:
        return asked.setdefault((prompt, target), len(asked))

    plans = [_Plan(fact, ask) for fact in facts]
    scored = score_pairs(model, tokenizer, list(asked), progress=progress)
    likelihood, accuracy = scored.mean_log_probability.tolist(), scored.accuracy.tolist()
    rows = [plan.scores(likelihood, accuracy) for plan in plans]
    return Scores(*map(tuple, zip(*rows, strict=True)))


class _Plan:
    """Which (prompt, target) pairs a fact's metrics need, and what they make of them."""

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

    def scores(self, likelihood: Sequence[float], accuracy: Sequence[float]) -> tuple[float, ...]:
        """In the order of Scores' fields."""

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
