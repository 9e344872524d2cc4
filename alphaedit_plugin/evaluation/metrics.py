"""The metrics by name: the title, unit and meaning of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """`group` is the measure it belongs to, `better` max, min or None; a share goes from 0 to 1 and is shown in %."""

    name: str
    title: str
    group: str
    better: Callable[..., Any] | None
    meaning: str
    share: bool = True
    form: str = "{:.1f}"

    def shown(self, value: float) -> float:
        """The value in the unit that is shown."""
        return 100 * value if self.share else value

    @property
    def label(self) -> str:
        """The title with its unit."""
        return f"{self.title} %" if self.share else self.title


def _answers() -> Iterator[Metric]:
    """How often each kind of prompt is answered right, by each way of asking."""
    for kind, answer in (
        ("efficacy", "the new object"),
        ("generalization", "the new object, after paraphrases,"),
        ("specificity", "the data set's answer on other facts"),
    ):
        for how, better, meaning in (
            ("forced", max, f"tokens of {answer} that are the likeliest, under teacher forcing"),
            ("written", max, f"{answer} is in the first sentence that the model writes by itself"),
            ("exact", max, f"{answer} is its whole answer"),
            ("judged", max, f"{answer} is its answer, says a judge"),
            ("gap", None, f"{answer}: forced less written, on the same prompts"),
        ):
            yield Metric(f"{how}_{kind}", f"{kind}, {how}", "answers", better, meaning)
    yield Metric("forced_locality", "locality, forced", "answers", max, "answer tokens on other facts, as before")
    yield Metric("written_locality", "locality, written", "answers", max, "first clauses on other facts, as before")
    yield Metric("gap_locality", "locality, gap", "answers", None, "forced less written, on the same prompts")


_ALL = (
    Metric("efficacy", "efficacy", "facts", max, "the new fact is said after the prompt itself"),
    Metric("generalization", "generalization", "facts", max, "… after its paraphrases"),
    Metric("specificity", "specificity", "facts", max, "other facts are said as the data set has them"),
    Metric("score", "score", "facts", max, "harmonic mean of efficacy, generalization and specificity"),
    Metric("exact", "exact", "facts", max, "every token of the new object is the likeliest one"),
    Metric("retention", "retention", "facts", max, "efficacy of the 100 facts that were written first, asked again"),
    Metric("portability", "portability", "facts", max, "what follows from the new fact is said"),
    Metric("locality", "locality", "facts", max, "other facts are answered with the tokens from before the edits"),
    *_answers(),
    Metric("fluency", "fluency", "texts", max, "weighted entropy of bi- and trigrams in written texts", False),
    Metric("consistency", "consistency", "texts", max, "TF-IDF cosine of written texts to texts about the new object"),
    Metric("multihop", "multi-hop", "multihop", max, "questions over several facts, answered"),
    Metric("multihop_cot", "multi-hop (CoT)", "multihop", max, "… with a chain of thought"),
    Metric("hops", "hops", "multihop", max, "the facts that such questions combine, one by one"),
    Metric("perplexity", "perplexity", "perplexity", min, "of held-out text", False, "{:.2f}"),
    Metric("weight_norm", "‖W‖", "norms", None, "of the edited weights, relative to before any edit", False, "{:.3f}"),
    Metric("state_norm", "‖h‖", "norms", None, "length of hidden states, relative to before any edit", False, "{:.3f}"),
    Metric("sst", "SST", "capability", max, "sentiment, F1"),
    Metric("mrpc", "MRPC", "capability", max, "paraphrase, F1"),
    Metric("cola", "CoLA", "capability", max, "acceptability, F1"),
    Metric("rte", "RTE", "capability", max, "entailment, F1"),
    Metric("mmlu", "MMLU", "capability", max, "knowledge, F1"),
    Metric("nli", "NLI", "capability", max, "inference, F1"),
    Metric("shift", "shift", "shift", min, "how far hidden states of other facts moved, relative to their length"),
    Metric(
        "shift_d1", "D1", "shift", max, "overlap of hidden states before and after, first t-SNE axis", False, "{:.3f}"
    ),
    Metric("shift_d2", "D2", "shift", max, "… along the second axis", False, "{:.3f}"),
    Metric("shift_p", "P", "shift", max, "states after where the densest 95 % of those before lie; 95 is no shift"),
    Metric(
        "hausdorff", "Hausdorff", "shift", min, "largest distance to the nearest state, in spreads", False, "{:.3f}"
    ),
)

METRICS = {metric.name: metric for metric in _ALL}


def metric(name: str) -> Metric:
    """The metric of this name in `METRICS`; others (tasks of lm-evaluation-harness) are shares, more being better."""
    return METRICS.get(name) or Metric(name, name, "capability", max, name)
