"""Turns options into measures before any model is loaded, so that a wrong option is found at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CompareError, CorpusError, RequestError
from ..evaluation.fact_scores import FactScores
from ..evaluation.facts import Fact
from ..evaluation.measure import Measure
from ..evaluation.norms import Norms
from ..evaluation.perplexity import Perplexity
from ..storage.shipped import shipped

if TYPE_CHECKING:
    from ..evaluation.judge import Judge

MULTIHOP_CASES = 100


@dataclass(frozen=True)
class Measuring:
    """The options: metrics of the facts, perplexity of `held_out` (or of the text that ships), and what else is wanted.

    `snippets` are reference texts for consistency; `tasks` a folder of general-capability tasks, `harness` names of
    lm-evaluation-harness, both with at most `task_limit` examples; `shift` is a file of prompts whose hidden states are
    compared: the first `shift_limit` prompts that are about none of the facts. At checkpoints before the end a `sample`
    of the facts is asked. `norms` are those of edited weights and of hidden states of the text. About the first
    `answers` facts the model is asked without teacher forcing; `judge`, the address of `judge_model`, marks them.
    """

    held_out: Path | None = None
    snippets: Path | None = None
    tasks: Path | None = None
    task_limit: int = 100
    harness: tuple[str, ...] = ()
    shift: Path | None = None
    shift_limit: int = 200
    sample: int | None = None
    norms: bool = False
    answers: int = 0
    judge: str | None = None
    judge_model: str | None = None

    @cached_property
    def text(self) -> str:
        """The text for perplexity. Raises CorpusError if it cannot be read."""
        try:
            return self.held_out_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as failure:
            raise CorpusError(f"cannot read the held-out text {self.held_out_file}: {failure}") from failure

    @property
    def held_out_file(self) -> Path:
        return self.held_out or shipped("examples/heldout.txt")

    def read(self, texts: int) -> Measures:
        """Everything that needs no model. With `texts`, the model will write about this number of facts.

        Raises CompareError, RequestError, CorpusError or JudgeError for options that cannot be fulfilled.
        """
        found: list[Measure] = []
        writing = None
        if self.snippets is not None and not texts:
            raise CompareError("--snippets needs texts to hold against them: say --texts N")
        if texts:
            from ..evaluation.consistency import references
            from ..evaluation.texts import Texts

            writing = Texts(limit=texts, references=references(self.snippets) if self.snippets else None)
        if self.answers:
            from ..evaluation.answers import Answers

            found.append(Answers(limit=self.answers, judge=self._judge()))
        elif self.judge is not None or self.judge_model is not None:
            raise CompareError("--judge needs answers to mark: say --answers N")
        if self.tasks is not None:
            from ..evaluation.capability import Capability

            found.append(Capability.from_folder(self.tasks, limit=self.task_limit))
        if self.harness:
            from ..evaluation.harness import Harness

            found.append(Harness(self.harness, limit=self.task_limit))
        prompts: list[str] = []
        if self.shift is not None:
            from ..evaluation.shift import FEWEST, prompts_from

            if self.shift_limit < FEWEST:
                raise RequestError(f"--shift-limit must be at least {FEWEST}, not {self.shift_limit}")
            prompts = prompts_from(self.shift)
        return Measures(self.text, writing, found, prompts, self.shift_limit, self.sample, self.norms)

    def _judge(self) -> Judge | None:
        if self.judge is None and self.judge_model is None:
            return None
        if self.judge is None or self.judge_model is None:
            raise CompareError("--judge ADDRESS and --judge-model NAME go together")
        from ..evaluation.judge import Judge

        return Judge(self.judge, self.judge_model)


@dataclass(frozen=True)
class Measures:
    """The measures of a whole run, and the ingredients of measures that still need a model, a layer or facts."""

    text: str
    texts: Measure | None
    others: list[Measure]
    prompts: list[str]
    shift_limit: int
    sample: int | None = None
    norms: bool = False

    def held_out_prompts(self, facts: Sequence[Fact]) -> list[str]:
        """The first prompts of the shift that are about none of the facts; empty if no shift is measured.

        Raises RequestError if there are too few.
        """
        if not self.prompts:
            return []
        from ..evaluation.shift import FEWEST, held_out

        found = list(dict.fromkeys(held_out(self.prompts, facts)))
        if len(found) < FEWEST:
            raise RequestError(
                f"only {len(found)} of the prompts of --shift name no edited subject, and {FEWEST} are needed: give "
                "others"
            )
        return found[: self.shift_limit]

    def of(
        self,
        tokenizer: Any,
        facts: Sequence[Fact],
        prompts: Sequence[str],
        layers: Sequence[int],
        template: str | None = None,
    ) -> Iterator[Measure]:
        """All measures of one cell: the shift of `prompts`, if there are any, at the last of the edited `layers`, and
        norms of their out-projections, which `template` names.
        """
        yield FactScores(self.sample)
        if self.texts is not None:
            yield self.texts
        if any(fact.questions for fact in facts):
            from ..evaluation.multihop import MultiHop

            yield MultiHop(limit=MULTIHOP_CASES)
        yield Perplexity(self.text, tokenizer)
        if self.norms:
            yield Norms(self.text, tokenizer, layers, template)
        yield from self.others
        if prompts:
            from ..evaluation.shift import Shift

            yield Shift(prompts, max(layers))
