"""What a model can still do in general: the six tasks of AlphaEdit §4.3, each as an F1 score."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..editors.reminder import unreminded
from ..errors import RequestError
from .facts import Fact
from .likelihood import score_pairs
from .measure import Estimate, Measured, estimate
from .tasks import TASKS, Example, load_examples, task_of


class Capability:
    """F1 by task (sst, mrpc, cola, rte, mmlu, nli) on examples that no edit is about.

    The model's answer is the one whose tokens have the largest mean log-probability after the prompt; of equals, the
    first. There is one record per example: task, index (in its file), gold and said (answers), right.

    As in the authors' runs (glue_eval) there are 100 examples per task, their labels in equal parts, and no examples in
    the prompt. F1 is averaged over labels, weighted by how often each is right; with equal parts this is the unweighted
    mean, and a model that always gives the same of k answers gets 2 / (k (k + 1)). Unlike the numbers they report, we
    take the likelier answer (their `f1_new`), not what the model writes: no answer is invalid, and a model that has
    lost a format but not an ability keeps its score. The wording is ours. Their RTE takes 1 for entailment, but the
    data has 0; ours follows the data.
    """

    name = "capability"

    def __init__(self, examples: Mapping[str, Sequence[Example]]) -> None:
        """`examples` by task. See `from_folder` and `from_files`."""
        self.examples = {task: list(of_task) for task, of_task in examples.items()}

    @classmethod
    def from_folder(cls, folder: str | Path, *, limit: int | None = 100) -> Capability:
        """All files of a folder whose names begin with the name of a task; see `from_files`.

        Raises RequestError if there is none, and as `from_files` does.
        """
        files = [p for p in sorted(Path(folder).glob("*")) if p.suffix in {".json", ".jsonl"} and task_of(p)]
        if not files:
            names = ", ".join(f"{task.name}*.json" for task in TASKS)
            raise RequestError(f"{folder} holds no file of a known task: {names} (or .jsonl)")
        return cls.from_files(files, limit=limit)

    @classmethod
    def from_files(cls, files: Sequence[str | Path], *, limit: int | None = 100) -> Capability:
        """The first `limit` examples of each file, with labels in equal parts; all of them if `limit` is None.

        Raises RequestError, naming file, record and field, if something cannot be read, and for two files of one task.
        """
        if limit is not None and limit < 1:
            raise RequestError(f"capability needs at least one example a task, not {limit}")
        found: dict[str, tuple[Path, list[Example]]] = {}
        for path in map(Path, files):
            task, examples = load_examples(path, limit)
            if task.name in found:
                raise RequestError(f"{path} and {found[task.name][0]} are both of the task {task.name}: give one")
            found[task.name] = (path, examples)
        return cls({task.name: found[task.name][1] for task in TASKS if task.name in found})

    def identity(self) -> dict[str, Any]:
        """How many examples each task has, and a digest of their texts, answers and order."""
        return {
            task: {
                "examples": len(examples),
                "sha256": hashlib.sha256(json.dumps([asdict(each) for each in examples]).encode()).hexdigest(),
            }
            for task, examples in self.examples.items()
        }

    def __call__(
        self,
        model: nn.Module,
        tokenizer: Any,
        facts: Sequence[Fact] = (),
        before: Measured | None = None,
        *,
        progress: bool = False,
    ) -> Measured:
        """Measure the model as it is; `facts` and `before` are not used."""
        asked = [(task, example) for task, examples in self.examples.items() for example in examples]
        pairs = [(example.prompt, answer) for _, example in asked for answer in example.answers]
        likelihood = score_pairs(model, unreminded(tokenizer), pairs, progress=progress).mean_log_probability.numpy()
        starts = accumulate((len(example.answers) for _, example in asked), initial=0)
        records = []
        for (task, example), start in zip(asked, starts, strict=False):
            said = int(likelihood[start : start + len(example.answers)].argmax())
            records.append(
                {
                    "task": task,
                    "index": example.index,
                    "gold": example.answers[example.gold],
                    "said": example.answers[said],
                    "right": said == example.gold,
                }
            )
        return Measured({task: _f1_of(records, task) for task in self.examples}, records)


def _f1_of(records: Sequence[Mapping[str, Any]], task: str) -> Estimate:
    said = [(record["gold"], record["said"]) for record in records if record["task"] == task]
    places = {answer: place for place, answer in enumerate(sorted({answer for pair in said for answer in pair}))}
    return estimate(np.array([[places[gold], places[answer]] for gold, answer in said]), weighted_f1)


def weighted_f1(items: NDArray[Any]) -> NDArray[Any]:
    """From items … × n × 2 (right label, said label): the mean F1 over labels, weighted by how often each is right.

    F1 of a label is 2 TP / (2 TP + FP + FN): how often it was rightly said, over the mean of how often it was said and
    how often it is right.
    """
    gold, said = items[..., 0], items[..., 1]
    total = np.zeros(items.shape[:-2])
    for label in np.unique(gold):
        is_gold, is_said = gold == label, said == label
        right = (is_gold & is_said).sum(-1)
        either = is_gold.sum(-1) + is_said.sum(-1)
        total += is_gold.mean(-1) * 2 * right / np.maximum(either, 1)
    return total
