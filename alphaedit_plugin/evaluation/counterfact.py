"""CounterFact: whether a model holds facts (Meng et al. 2022; AlphaEdit §4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from .facts import Fact
from .scoring import mean_log_probabilities


@dataclass(frozen=True)
class Scores:
    """Shares from 0 to 1, for each fact in order; the means are over facts.

    efficacy: the new object is more probable than the old one after the prompt itself;
    generalization: the same after the paraphrases; specificity: the old one is more probable after the neighbours.
    Probabilities are compared by their mean logarithm per token.
    """

    efficacy: tuple[float, ...]
    generalization: tuple[float, ...]
    specificity: tuple[float, ...]

    def means(self) -> dict[str, float]:
        return {name: sum(values) / len(values) for name, values in vars(self).items()}


def score(model: nn.Module, tokenizer: Any, facts: Sequence[Fact], *, progress: bool = False) -> Scores:
    """Efficacy, generalization and specificity of every fact."""
    pairs: list[tuple[str, str]] = []
    for fact in facts:
        for prompt in (fact.request.text, *fact.paraphrases, *fact.neighbours):
            pairs += [(prompt, fact.request.target_new), (prompt, fact.target_true)]
    log_probabilities = mean_log_probabilities(model, tokenizer, pairs, progress=progress).view(-1, 2)
    new_is_likelier = (log_probabilities[:, 0] > log_probabilities[:, 1]).double()
    old_is_likelier = (log_probabilities[:, 1] > log_probabilities[:, 0]).double()

    efficacy, generalization, specificity = [], [], []
    start = 0
    for fact in facts:
        neighbours = start + 1 + len(fact.paraphrases)
        end = neighbours + len(fact.neighbours)
        efficacy.append(float(new_is_likelier[start]))
        generalization.append(float(new_is_likelier[start + 1 : neighbours].mean()))
        specificity.append(float(old_is_likelier[neighbours:end].mean()))
        start = end
    return Scores(tuple(efficacy), tuple(generalization), tuple(specificity))
