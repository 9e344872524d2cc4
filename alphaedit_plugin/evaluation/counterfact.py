"""CounterFact: facts, and whether a model holds them (Meng et al. 2022; AlphaEdit §4.1)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import RequestError
from ..requests import Request
from .scoring import mean_log_probabilities


@dataclass(frozen=True)
class Fact:
    """A request with what shows whether it took: the old object, paraphrases of the prompt, and neighbours.

    A neighbour is a prompt about another subject of which the old object is true, before the edit and after it.
    """

    request: Request
    target_true: str
    paraphrases: tuple[str, ...]
    neighbours: tuple[str, ...]

    @classmethod
    def parse(cls, record: Mapping[str, Any], name: str) -> Fact:
        """From CounterFact's schema. Raises RequestError naming the record and the field."""
        request = Request.parse(record, name)
        rewrite = record.get("requested_rewrite", record)
        target_true = rewrite.get("target_true")
        if isinstance(target_true, Mapping):
            target_true = target_true.get("str")
        if not isinstance(target_true, str) or not target_true.strip():
            raise RequestError(f"{name}: target_true must be text, not {target_true!r}")
        return cls(
            request,
            target_true.strip(),
            _prompts(record, "paraphrase_prompts", name),
            _prompts(record, "neighborhood_prompts", name),
        )


def _prompts(record: Mapping[str, Any], key: str, name: str) -> tuple[str, ...]:
    prompts = record.get(key)
    if not isinstance(prompts, list) or not prompts or not all(isinstance(p, str) and p.strip() for p in prompts):
        raise RequestError(f"{name}: {key} must be a list of prompts, not {prompts!r}")
    return tuple(prompt.rstrip() for prompt in prompts)


def load_facts(path: str | Path) -> list[Fact]:
    """Facts of a CounterFact JSON file. Raises RequestError naming the file, the record and the field."""
    try:
        records = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as failure:
        raise RequestError(f"cannot read facts from {path}: {failure}") from failure
    if not isinstance(records, list) or not records:
        raise RequestError(f"{path} holds no list of facts")
    return [Fact.parse(record, f"{path}, record {index}") for index, record in enumerate(records)]


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
