"""The fields of a data set's record as requests, prompts, answers and probes; what is wrong is named by its field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..editors.border import without_usual_space
from ..editors.requests import Request
from ..errors import RequestError
from ..storage.records import Json, decoded, text_of
from .facts import Probe

RIPPLES = (
    "Relation_Specificity",
    "Forgetfulness",
    "Logical_Generalization",
    "Compositionality_I",
    "Compositionality_II",
    "Subject_Aliasing",
)
"""RippleEdits' criteria: the first two say what must stay, the others what follows."""
NESTED = frozenset(
    {
        "requested_rewrite",
        "edit",
        "paraphrase_prompts",
        "neighborhood_prompts",
        "generation_prompts",
        "answers",
        "loc_ans",
        "ground_truth",
        "locality",
        "portability",
        "questions",
        "new_answer_alias",
        "new_single_hops",
        "coupled_prompts_and_properties",
        "sub_question",
        "sub_answer",
        "personas",
        "split",
        *RIPPLES,
    }
)
"""Fields that are lists or mappings; data sets on the hub may keep them as JSON text."""


def unpacked(record: Json) -> Json:
    return {key: from_json(value) if key in NESTED else value for key, value in record.items()}


def from_json(value: Any) -> Any:
    """A list or mapping decoded from its JSON text; anything else unchanged."""
    if isinstance(value, str) and value.startswith(("[", "{")):
        found = decoded(value)
        return value if isinstance(found, ValueError) else found
    return value


def request_of(record: Json, key: str, subject: str, target: str, name: str) -> Request:
    """A Request with "{}" for the first occurrence of the subject, unless it is there already; others stay."""
    prompt = prompt_in(record, key, name)
    before, found, after = prompt.partition("{}" if prompt.count("{}") == 1 else subject)
    if not found:
        raise RequestError(f"{name}: {key}: the subject {subject!r} is not in the prompt {prompt!r}")
    if "{}" in before:
        raise RequestError(f"{name}: {key}: '{{}}' stands in the prompt {prompt!r} before the subject {subject!r}")
    return Request.written(f"{before}{{}}{after}", subject, target.rstrip(), case_of(record))


def case_of(record: Json) -> int | str | None:
    """The number or name that the data set gives the record."""
    case_id = record.get("case_id", record.get("id"))
    return case_id if isinstance(case_id, int | str) else None


def optional_text(record: Json, key: str, name: str, after: str | None = None) -> str:
    """A text, or the first of several; "" where there is none. Read as `answers_in` reads."""
    value = record.get(key)
    return answers_in(value, f"{name}: {key}", after)[0] if any(leaves_of(value)) else ""


def first_prompt(record: Json, key: str, name: str, target: str) -> str:
    """A prompt before `target`, or the first of several; "" where there is none."""
    leaves = [
        leaf for leaf in leaves_of(record.get(key)) if not isinstance(leaf, str | None) or (leaf and leaf.strip())
    ]
    if leaves and not isinstance(leaves[0], str):
        raise RequestError(f"{name}: {key} must be text or a list of texts, not {record[key]!r}")
    return before_target(leaves[0], target) if leaves else ""


def prompt_in(record: Json, key: str, name: str) -> str:
    """A text field as it was written. Raises RequestError if it is blank or not text."""
    text_of(record, key, name)
    return str(record[key])


def prompts_in(record: Json, key: str, name: str, target: str = "a") -> tuple[str, ...]:
    prompts = record.get(key)
    if not isinstance(prompts, list) or not prompts or not all(isinstance(p, str) and p.strip() for p in prompts):
        raise RequestError(f"{name}: {key} must be a list of prompts, not {prompts!r}")
    return tuple(before_target(prompt, target) for prompt in prompts)


def probe_of(prompt: str, answers: Any, name: str) -> Probe:
    found = answers_in(answers, name, prompt)
    return Probe(before_target(prompt, found[0]), found)


def before_target(prompt: str, target: str) -> str:
    """The prompt as it was written, without the usual space before the target."""
    return without_usual_space(prompt, target)[0]


def after_prompt(prompt: str, target: str) -> str:
    """What follows the prompt as it was written, without the usual space before it and without any behind it."""
    return without_usual_space(prompt, target.rstrip())[1]


def answers_in(value: Any, name: str, after: str | None = None) -> tuple[str, ...]:
    """Accepted answers, from a text, a list of texts, or a list of lists (KnowEdit: every answer with its aliases).

    They follow the prompt `after` as they were written; without one, they have no spaces at their ends.
    """
    leaves = leaves_of(value)
    if not all(isinstance(leaf, str) for leaf in leaves):
        raise RequestError(f"{name} must be text or a list of texts, not {value!r}")
    texts = [leaf for leaf in leaves if leaf.strip()]
    found = tuple(dict.fromkeys(text.strip() if after is None else after_prompt(after, text) for text in texts))
    if not found:
        raise RequestError(f"{name}: there is no answer in {value!r}")
    return found


def aliased_answers(record: Json, key: str, name: str) -> tuple[str, ...]:
    """MQuAKE's answers: one text, and its aliases in another field."""
    return answers_in([text_of(record, key, name), record.get(f"{key}_alias") or []], f"{name}: {key}_alias")


def leaves_of(value: Any) -> list[Any]:
    """The items of a list, and of the lists in it; a value that is no list is its own only leaf."""
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in leaves_of(item)]
    return [value]


def mapping_in(value: Any, name: str) -> Json:
    """The value. Raises RequestError if it is no mapping."""
    if not isinstance(value, Mapping):
        raise RequestError(f"{name} must be a mapping, not {value!r}")
    return value


def mappings_in(value: Any, name: str) -> list[Json]:
    """A list of mappings; empty if absent."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise RequestError(f"{name} must be a list of mappings, not {value!r}")
    return value


def one_hop(record: Json, name: str) -> dict[str, list[Probe]]:
    """EasyEdit's addition to CounterFact and ZsRE (Yao et al. 2023): a question whose answer the new fact changes."""
    if record.get("portability") is None:
        return {}
    portability = mapping_in(record["portability"], f"{name}: portability")
    question = prompt_in(portability, "New Question", f"{name}: portability")
    return {"One_hop": [probe_of(question, portability.get("New Answer"), f"{name}: portability")]}


def probes_in(record: Json, key: str, name: str) -> dict[str, list[Probe]]:
    """Probes by kind, without those that have an empty prompt or no answer at all (some of KnowEdit's).

    In a record the probes of a kind are a list of mappings, one mapping of lists (`datasets` converts to this form), or
    a single probe.
    """
    by_kind = mapping_in(record.get(key) or {}, f"{name}: {key}")
    found: dict[str, list[Probe]] = {}
    for kind, probes in by_kind.items():
        where = f"{name}: {key}.{kind}"
        kept = [
            probe_of(prompt_in(probe, "prompt", where), probe["ground_truth"], where)
            for probe in mappings_in(_listed(probes, where), where)
            if probe.get("prompt") and any(leaves_of(probe.get("ground_truth")))
        ]
        if kept:
            found[str(kind)] = kept
    return found


def _listed(probes: Any, name: str) -> Any:
    """Probes as a list of mappings, from a mapping of lists or a single probe; anything else unchanged."""
    if not isinstance(probes, Mapping):
        return probes
    prompts, truths = probes.get("prompt"), probes.get("ground_truth")
    if not isinstance(prompts, list):
        return [probes]
    if not isinstance(truths, list) or len(truths) != len(prompts):
        raise RequestError(f"{name}: there must be a ground_truth for each prompt")
    return [{"prompt": prompt, "ground_truth": truth} for prompt, truth in zip(prompts, truths, strict=True)]
