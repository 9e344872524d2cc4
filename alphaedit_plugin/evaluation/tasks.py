"""The six tasks of general capability, as multiple choice: a prompt, the answers that it allows, the right one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

from ..errors import RequestError
from ..storage.records import Json, mapping, read_records, text_of


@dataclass(frozen=True)
class Example:
    """From record `index`: one of `answers` follows `prompt` and a space; `gold` is the index of the right one."""

    index: int
    prompt: str
    answers: tuple[str, ...]
    gold: int


@dataclass(frozen=True)
class Task:
    """A name, and a function that makes an example from a record, its index and its name for errors."""

    name: str
    parse: Callable[[Json, int, str], Example]


def _choice(
    name: str, fields: tuple[str, ...], template: str, answers: tuple[str, ...], labels: tuple[str, ...] = ()
) -> Task:
    """A task whose records hold `fields` and a "label": the index of an answer, or its name in `labels`."""

    def parse(record: Json, index: int, where: str) -> Example:
        texts = {field: text_of(record, field, where) for field in fields}
        return Example(index, template.format(**texts), answers, _label(record, "label", len(answers), labels, where))

    return Task(name, parse)


def _multiple_choice(record: Json, index: int, where: str) -> Example:
    """MMLU (Hendrycks et al. 2021): the answer is a letter, as in the paper, so all answers share one pass."""
    choices = record.get("choices")
    if not isinstance(choices, list) or not 2 <= len(choices) <= 26 or not all(isinstance(c, str) for c in choices):
        raise RequestError(f"{where}: choices must be a list of 2 to 26 texts, not {choices!r}")
    letters = tuple(ascii_uppercase[: len(choices)])
    listed = "\n".join(f"{letter}. {choice.strip()}" for letter, choice in zip(letters, choices, strict=True))
    gold = _label(record, "answer", len(choices), letters, where)
    return Example(index, f"{text_of(record, 'question', where)}\n{listed}\nAnswer:", letters, gold)


# Answers stand in the order of the data's labels: GLUE's RTE has 0 for entailment. Each is one token of the usual
# vocabularies, so that all answers after a prompt share one row. On SmolLM2-135M SST is above chance.
_INFERENCE = ("entailment", "not_entailment")
TASKS = (
    _choice("sst", ("sentence",), "Review: {sentence}\nSentiment:", ("negative", "positive")),
    _choice(
        "mrpc",
        ("sentence1", "sentence2"),
        "First: {sentence1}\nSecond: {sentence2}\nQuestion: Do both sentences say the same?\nAnswer:",
        ("No", "Yes"),
    ),
    _choice(
        "cola",
        ("sentence",),
        "Sentence: {sentence}\nQuestion: Is this sentence grammatical?\nAnswer:",
        ("No", "Yes"),
    ),
    _choice(
        "rte",
        ("sentence1", "sentence2"),
        "Text: {sentence1}\nStatement: {sentence2}\nQuestion: Does the statement follow from the text?\nAnswer:",
        ("Yes", "No"),
        _INFERENCE,
    ),
    Task("mmlu", _multiple_choice),
    _choice(
        "nli",
        ("sentence1", "sentence2"),
        "Text: {sentence1}\nStatement: {sentence2}\nQuestion: Does the statement follow from the text?\nAnswer:",
        ("Yes", "No"),
        _INFERENCE,
    ),
)


def task_of(path: Path) -> Task | None:
    """The task whose name begins the file's name (sst2.json, RTE_dev.jsonl); None if there is none."""
    return next((task for task in TASKS if path.stem.lower().startswith(task.name)), None)


def load_examples(path: Path, limit: int | None) -> tuple[Task, list[Example]]:
    """The task of a file of records, and its first `limit` examples (all, if None) with labels in equal parts.

    All records are read, so a malformed one is an error even after the last chosen one. Raises RequestError naming the
    file, the record and the field.
    """
    task = task_of(path)
    if task is None:
        raise RequestError(f"{path} is of no known task: its name must begin with {', '.join(t.name for t in TASKS)}")
    examples = []
    for index, (where, record) in enumerate(read_records(path, "examples")):
        examples.append(task.parse(mapping(record, where), index, where))
    return task, balanced(examples, limit)


def balanced(examples: Sequence[Example], limit: int | None) -> list[Example]:
    """The first `limit` examples, in order, such that label counts differ by at most one; all if `limit` is None.

    A label with too few examples contributes what it has; others are not topped up.
    """
    if limit is None:
        return list(examples)
    labels = sorted({example.gold for example in examples})
    room = Counter({label: (limit + len(labels) - 1 - place) // len(labels) for place, label in enumerate(labels)})
    chosen = []
    for example in examples:
        if room[example.gold]:
            room[example.gold] -= 1
            chosen.append(example)
    return chosen


def _label(record: Json, field: str, count: int, names: Sequence[str], where: str) -> int:
    value = record.get(field)
    if isinstance(value, str) and value in names:
        return names.index(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < count:
        return value
    known = f"0 to {count - 1}" + (f" or one of {', '.join(names)}" if names else "")
    raise RequestError(f"{where}: {field} must be {known}, not {value!r}")
