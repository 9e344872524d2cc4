"""Tasks of EleutherAI's lm-evaluation-harness, to measure any general capability of a model."""

from __future__ import annotations

import copy
import io
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, redirect_stderr
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import nn

from ..editors.chat import plain
from ..errors import AlphaEditError
from ..model.gradients import gradients
from ..model.trace import evaluating
from ..restoring import restoring
from ..storage.files import file_digest
from .facts import Fact
from .measure import Estimate, Measured

PREFIX = "lm_eval:"
_MAIN = ("acc_norm", "acc", "f1", "exact_match", "em", "mcc")
"""The first of these metrics that a task has is taken: shares, where more is better."""
_NOT_TASKS = (".pyc", ".lock")


class HarnessError(AlphaEditError):
    """lm-evaluation-harness is missing, or cannot run a task."""


class Harness:
    """The main metric of each task, with the 95 % interval of its standard error, as `lm_eval:TASK`.

    A group of tasks (mmlu) gives its aggregate or, if it has none, each of its members, as a tag does. There is one
    record per example: task (with prefix; in a group, the member), index (lm_eval's doc_id), and value (its share of
    the main metric). lm_eval seeds all randomness itself, so a model gets the same result every time; the random states
    are restored.
    """

    name = "lm_eval"

    def __init__(
        self, tasks: Sequence[str], *, limit: int | None = None, include_path: str | Path | None = None
    ) -> None:
        """The first `limit` examples per task (all, if None); `include_path` is a folder with the user's own tasks.

        Raises HarnessError if lm_eval is not installed, or does not know a task, which it names.
        """
        self._lm_eval = _lm_eval()
        self.tasks, self.limit = list(tasks), limit
        self.include_path = None if include_path is None else str(include_path)
        files = sorted(Path(self.include_path).rglob("*")) if self.include_path else []
        self._own_tasks = [
            file_digest(path, HarnessError) for path in files if path.is_file() and path.suffix not in _NOT_TASKS
        ]
        self._manager = self._lm_eval.tasks.TaskManager(include_path=self.include_path)
        for task in self.tasks:
            if task not in self._manager.all_tasks:
                close = get_close_matches(task, self._manager.all_tasks)
                hint = f"did you mean {', '.join(close)}?" if close else "`lm_eval ls tasks` lists them"
                raise HarnessError(f"lm_eval knows no task {task!r}: {hint}")

    def identity(self) -> dict[str, Any]:
        """Tasks, limit, lm_eval's version, and digests of the user's own files; other tasks' data is not included."""
        return {
            "tasks": self.tasks,
            "limit": self.limit,
            "lm_eval": self._lm_eval.__version__,
            "own_tasks": self._own_tasks,
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
        """Measure the model as it is; `facts` and `before` are not used.

        Raises HarnessError, naming the task, if its data cannot be loaded or if it has no metric that we know.
        """
        from lm_eval.models.huggingface import HFLM

        estimates: dict[str, Estimate] = {}
        records: list[dict[str, Any]] = []
        quiet = nullcontext() if progress else redirect_stderr(io.StringIO())  # lm_eval's progress bars go to stderr
        with _same_random_states(), evaluating(model), gradients(False), quiet:
            # A copy: the wrapper gives the tokenizer a padding token.
            wrapped = HFLM(pretrained=model, tokenizer=copy.deepcopy(plain(tokenizer)), batch_size=8)
            for task in self.tasks:
                found = self._run(wrapped, task)
                for name, metrics in _scored(task, found):
                    metric, filtered = _main_metric(name, metrics)
                    estimates[PREFIX + name] = _estimate(metrics, metric, filtered)
                    records += [
                        {"task": PREFIX + member, "index": sample["doc_id"], "value": float(sample[metric])}
                        for member, samples in found["samples"].items()
                        if member == name or name not in found["samples"]
                        for sample in samples
                        if isinstance(sample.get(metric), int | float) and sample.get("filter", filtered) == filtered
                    ]
        return Measured(estimates, records)

    def _run(self, wrapped: Any, task: str) -> Mapping[str, Any]:
        try:
            found = self._lm_eval.simple_evaluate(
                model=wrapped, tasks=[task], limit=self.limit, task_manager=self._manager
            )
        except Exception as failure:  # the hub's, the network's, the data's and the task's errors share no type
            raise HarnessError(
                f"lm_eval cannot run the task {task!r}: {type(failure).__name__}: {failure}. Its data must be on this "
                "machine or within reach of it"
            ) from failure
        return found  # type: ignore[no-any-return]


def _lm_eval() -> Any:
    try:
        import lm_eval
        import lm_eval.models.huggingface
        import lm_eval.tasks
    except ImportError as failure:
        raise HarnessError(
            f"tasks of lm-evaluation-harness need lm_eval ({failure}): pip install 'alphaedit-plugin[harness]'"
        ) from failure
    return lm_eval


def _scored(task: str, found: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The task with its metrics or, for a group or tag without metrics, its members."""
    results = found["results"]
    if any(_number(value) for key, value in results.get(task, {}).items() if "," in key):
        return [(task, results[task])]
    return [(name, results[name]) for name in results if name in found["samples"]]


def _main_metric(task: str, metrics: Mapping[str, Any]) -> tuple[str, str]:
    """(metric, filter): lm_eval writes "metric,filter" for a metric of the answers as a filter left them."""
    for metric in _MAIN:
        for key, value in metrics.items():
            name, _, filtered = key.partition(",")
            if name == metric and filtered and _number(value):
                return metric, filtered
    known = ", ".join(sorted({key.partition(",")[0] for key in metrics if "," in key and "_stderr" not in key}))
    raise HarnessError(f"the task {task!r} has none of {', '.join(_MAIN)}, but {known or 'no metric'}: leave it out")


def _estimate(metrics: Mapping[str, Any], metric: str, filtered: str) -> Estimate:
    value, error = float(metrics[f"{metric},{filtered}"]), metrics.get(f"{metric}_stderr,{filtered}")
    if not _number(error):
        return Estimate(value)
    half = 1.96 * float(error)
    return Estimate(value, value - half, value + half)


def _number(value: Any) -> TypeGuard[float]:
    """Whether it is a number: lm_eval writes "N/A" or a blank if there is none."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and value == value


@restoring
def _same_random_states() -> Iterator[None]:
    """Restore the random states of Python, numpy and torch, on every device, when the block ends."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - it is the global one that lm_eval seeds
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
