"""Read the field's data sets into one record type. The format is recognised from what a record holds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..editors.border import without_usual_space
from ..editors.requests import Request
from ..errors import RequestError
from ..storage.records import Json, Named, decoded, mapping, numbered, read_records, text_of
from .facts import Fact, Probe

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Format:
    """A data set's schema: the fields that identify it, and how to read a record."""

    name: str
    fields: frozenset[str]
    parse: Callable[[Json, str], Fact]


@dataclass(frozen=True)
class Dataset:
    """The facts of a file, in order; `bad` says what is wrong with the records that were left out."""

    format: str
    facts: list[Fact]
    bad: list[str]


def load_dataset(source: str | Path, *, skip_bad: bool = False) -> Dataset:
    """Load a file of a known data set (JSON, JSONL, CSV, TSV or YAML), or one from the Hugging Face hub: "ORG/NAME", or
    "ORG/NAME:FILE" if the name holds several data sets ("zjunlp/KnowEdit:benchmark/ZsRE/ZsRE-test-all.json").

    Raises RequestError, naming the file, the record and the field, for a bad record unless `skip_bad` leaves it out;
    and for a file of unknown format or without a readable record.
    """
    records = records_of(source)
    format_ = _recognised([record for _, record in records], str(source))
    facts, bad = [], []
    for name, record in records:
        try:
            facts.append(format_.parse(mapping(_unpacked(mapping(record, name)), name), name))
        except RequestError as failure:
            if not skip_bad:
                raise
            bad.append(str(failure))
    if bad:
        log.warning("%s: %d of %d records were left out; the first: %s", source, len(bad), len(records), bad[0])
    if not facts:
        raise RequestError(f"{source} holds no record that can be read; the first: {bad[0]}")
    return Dataset(format_.name, facts, bad)


def load_facts(source: str | Path) -> list[Fact]:
    """All facts of a data set. Raises RequestError for the first thing that is wrong with it."""
    return load_dataset(source).facts


def records_of(source: str | Path) -> Sequence[Named]:
    """The records in the file's order, as `read_records` gives them. Raises RequestError if they cannot be read."""
    path = Path(source)
    name, _, file = str(source).partition(":")
    if not path.exists() and not Path(name).suffix and name.count("/") <= 1:
        return _from_hub(name, file)
    return read_records(path, "facts")


def _from_hub(name: str, file: str) -> Sequence[Named]:
    try:
        import datasets
    except ImportError as failure:
        raise RequestError(
            f"there is no file {name}; to read it from the hub, install alphaedit-plugin[evaluation]"
        ) from failure
    try:
        splits = datasets.load_dataset(name, data_files=file or None)
        records = list(splits[next(iter(splits))])
    except Exception as failure:  # the hub's, the network's and the builder's errors share no type
        raise RequestError(f"there is no file {name}, and the hub gives no data set: {failure}") from failure
    if not records:
        raise RequestError(f"the data set {name} is empty")
    return numbered(f"{name}:{file}" if file else name, records)


def _recognised(records: Sequence[Any], source: str) -> Format:
    """The format of the first record that fits one."""
    for record in records:
        for format_ in FORMATS:
            if isinstance(record, Mapping) and format_.fields <= record.keys():
                return format_
    known = "; ".join(f"{f.name} ({', '.join(sorted(f.fields))})" for f in FORMATS)
    first = records[0]
    found = f"fields {', '.join(map(str, first))}" if isinstance(first, Mapping) else type(first).__name__
    raise RequestError(f"{source} is of no known format: its first record has {found}. Known are: {known}")


NESTED = frozenset(
    {
        "requested_rewrite",
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
    }
)
"""Fields that are lists or mappings; data sets on the hub may keep them as JSON text."""


def _unpacked(record: Json) -> Json:
    return {key: _from_json(value) if key in NESTED else value for key, value in record.items()}


def _from_json(value: Any) -> Any:
    """A list or mapping decoded from its JSON text; anything else unchanged."""
    if isinstance(value, str) and value.startswith(("[", "{")):
        found = decoded(value)
        return value if isinstance(found, ValueError) else found
    return value


# ------------------------------------------------------------------------------------------------------- the formats


def _counterfact(record: Json, name: str) -> Fact:
    """CounterFact and multi-CounterFact (Meng et al. 2022, 2023)."""
    request = Request.parse(record, name)
    (rewrite,) = _mappings([record.get("requested_rewrite")], f"{name}: requested_rewrite")
    target_true, target_new = rewrite.get("target_true"), rewrite.get("target_new")
    if isinstance(target_true, Mapping):
        target_true = target_true.get("str")
    if not isinstance(target_true, str) or not target_true.strip():
        raise RequestError(f"{name}: target_true must be text, not {target_true!r}")
    return Fact(
        (request,),
        _after(request.text, target_true),
        _prompts(record, "paraphrase_prompts", name, request.target_new),
        _prompts(record, "neighborhood_prompts", name, request.target_new),
        portability=_one_hop(record, name),
        generation=_prompts(record, "generation_prompts", name) if record.get("generation_prompts") else (),
        relation=_optional(rewrite, "relation_id", name),
        target_id=_optional(target_new, "id", name) if isinstance(target_new, Mapping) else "",
    )


def _zsre(record: Json, name: str) -> Fact:
    """ZsRE as MEND and EasyEdit publish it (Levy et al. 2017; De Cao et al. 2021).

    Like the AlphaEdit authors we write the true answer, which the model may not know; `alt` is what MEND writes.
    """
    subject = text_of(record, "subject", name)
    answers = _answers(record.get("answers"), f"{name}: answers", _prompt(record, "src", name))
    locality = text_of(record, "loc", name).removeprefix("nq question: ").rstrip("? ") + "?"
    return Fact(
        (_request(record, "src", subject, answers[0], name),),
        "",
        (_before(_prompt(record, "rephrase", name), answers[0]),),
        locality={"NaturalQuestions": [_probe(locality, record.get("loc_ans"), f"{name}: loc_ans")]},
        portability=_one_hop(record, name),
    )


def _longform(record: Json, name: str) -> Fact:
    """LEME (Rosati et al. 2024): a fact of CounterFact or ZsRE, and two texts to write.

    One text is about the subject, one about an entity coupled to it (the first of several, and the most related). Each
    prompt says what to mention, including the other entity, and the text begins with the name.
    """
    fact = (_counterfact if "requested_rewrite" in record else _zsre)(record, name)
    inside = f"{name}: coupled_prompts_and_properties"
    coupled = record.get("coupled_prompts_and_properties")
    if not isinstance(coupled, Mapping):
        raise RequestError(f"{inside} must be a mapping, not {coupled!r}")
    related = _mappings(coupled.get("coupled_entities"), f"{inside}.coupled_entities")
    if not related:
        raise RequestError(f"{inside}.coupled_entities is empty")
    (about,) = _mappings([coupled.get("subject_entity")], f"{inside}.subject_entity")
    subject, other = fact.request.subject, text_of(related[0], "entity", f"{inside}.coupled_entities")
    return replace(
        fact,
        generation=tuple(
            f"{text_of(entity, 'coupled_prompt', inside)}\n-relationship to {to}\n\n{of}"
            for entity, to, of in ((about, other, subject), (related[0], subject, other))
        ),
    )


def _easyedit(record: Json, name: str) -> Fact:
    """EasyEdit's flat CounterFact and ZsRE: all fields of a fact on one level."""
    subject = text_of(record, "subject", name)
    request = _request(record, "prompt", subject, _prompt(record, "target_new", name), name)
    locality = {}
    if record.get("locality_prompt"):
        prompt, answers = _prompt(record, "locality_prompt", name), record.get("locality_ground_truth")
        locality["Neighborhood"] = [_probe(prompt, answers, f"{name}: locality_ground_truth")]
    return Fact(
        (request,),
        _optional(record, "ground_truth", name, request.text),
        tuple(filter(None, [_first(record, "rephrase_prompt", name, request.target_new)])),
        locality=locality,
    )


def _knowedit(record: Json, name: str) -> Fact:
    """KnowEdit's wiki_recent, wiki_counterfact and ZsRE (Zhang et al. 2024)."""
    subject = text_of(record, "subject", name)
    request = _request(record, "prompt", subject, _prompt(record, "target_new", name), name)
    new = request.target_new
    rephrased = _first(record, "rephrase", name, new) or _first(record, "rephrase_prompt", name, new)
    return Fact(
        (request,),
        _optional(record, "ground_truth", name, request.text),
        tuple(filter(None, [rephrased])),
        locality=_probes(record, "locality", name),
        portability=_probes(record, "portability", name),
    )


def _wikibio(record: Json, name: str) -> Fact:
    """KnowEdit's WikiBio: the passage continues with what is true instead of what a model made up."""
    subject = text_of(record, "concept", name)
    request = _request(record, "text", subject, _prompt(record, "labels", name), name)
    return Fact((request,), locality=_probes(record, "locality", name))


def _mquake(record: Json, name: str) -> Fact:
    """MQuAKE (Zhong et al. 2023): edits that are written together, and questions that need all of them."""
    rewrites = record.get("requested_rewrite")
    if not isinstance(rewrites, list) or not rewrites:
        raise RequestError(f"{name}: requested_rewrite must be a list of edits")
    requests = [
        Request.parse({"case_id": record.get("case_id"), "requested_rewrite": rewrite}, f"{name}, edit {index}")
        for index, rewrite in enumerate(rewrites)
    ]
    answers = _aliased(record, "new_answer", name)
    hops = [
        Probe(
            text_of(hop, "cloze" if hop.get("cloze") else "question", f"{name}: new_single_hops"),
            _aliased(hop, "answer", f"{name}: new_single_hops"),
        )
        for hop in _mappings(record.get("new_single_hops"), f"{name}: new_single_hops")
    ]
    return Fact(
        tuple(requests),
        questions=tuple(Probe(question, answers) for question in _prompts(record, "questions", name, answers[0])),
        hops=tuple(hops),
        relation=_optional(rewrites[0], "relation_id", name),
    )


# Order matters: the first format whose fields are all present wins.
FORMATS = (
    Format("LEME", frozenset({"coupled_prompts_and_properties"}), _longform),
    Format("MQuAKE", frozenset({"requested_rewrite", "questions", "new_answer"}), _mquake),
    Format("CounterFact", frozenset({"requested_rewrite", "paraphrase_prompts", "neighborhood_prompts"}), _counterfact),
    Format("ZsRE", frozenset({"subject", "src", "rephrase", "answers", "loc", "loc_ans"}), _zsre),
    Format("WikiBio", frozenset({"text", "labels", "concept", "locality"}), _wikibio),
    Format("KnowEdit", frozenset({"subject", "prompt", "target_new", "locality", "portability"}), _knowedit),
    Format("EasyEdit", frozenset({"subject", "prompt", "target_new", "rephrase_prompt"}), _easyedit),
)


# ------------------------------------------------------------------------------------------------------------ fields


def _request(record: Json, key: str, subject: str, target: str, name: str) -> Request:
    """A Request with "{}" for the first occurrence of the subject, unless it is there already; others stay."""
    prompt = _prompt(record, key, name)
    before, found, after = prompt.partition("{}" if prompt.count("{}") == 1 else subject)
    if not found:
        raise RequestError(f"{name}: {key}: the subject {subject!r} is not in the prompt {prompt!r}")
    if "{}" in before:
        raise RequestError(f"{name}: {key}: '{{}}' stands in the prompt {prompt!r} before the subject {subject!r}")
    case_id = record.get("case_id")
    return Request.written(
        f"{before}{{}}{after}", subject, target.rstrip(), case_id if isinstance(case_id, int | str) else None
    )


def _optional(record: Json, key: str, name: str, after: str | None = None) -> str:
    """A text, or the first of several; "" where there is none. Read as `_answers` reads."""
    value = record.get(key)
    return _answers(value, f"{name}: {key}", after)[0] if any(_leaves(value)) else ""


def _first(record: Json, key: str, name: str, target: str) -> str:
    """A prompt before `target`, or the first of several; "" where there is none."""
    leaves = [leaf for leaf in _leaves(record.get(key)) if not isinstance(leaf, str | None) or (leaf and leaf.strip())]
    if leaves and not isinstance(leaves[0], str):
        raise RequestError(f"{name}: {key} must be text or a list of texts, not {record[key]!r}")
    return _before(leaves[0], target) if leaves else ""


def _prompt(record: Json, key: str, name: str) -> str:
    """A text field as it was written. Raises RequestError if it is blank or not text."""
    text_of(record, key, name)
    return str(record[key])


def _prompts(record: Json, key: str, name: str, target: str = "a") -> tuple[str, ...]:
    prompts = record.get(key)
    if not isinstance(prompts, list) or not prompts or not all(isinstance(p, str) and p.strip() for p in prompts):
        raise RequestError(f"{name}: {key} must be a list of prompts, not {prompts!r}")
    return tuple(_before(prompt, target) for prompt in prompts)


def _probe(prompt: str, answers: Any, name: str) -> Probe:
    found = _answers(answers, name, prompt)
    return Probe(_before(prompt, found[0]), found)


def _before(prompt: str, target: str) -> str:
    """The prompt as it was written, without the usual space before the target."""
    return without_usual_space(prompt, target)[0]


def _after(prompt: str, target: str) -> str:
    """What follows the prompt as it was written, without the usual space before it and without any behind it."""
    return without_usual_space(prompt, target.rstrip())[1]


def _answers(value: Any, name: str, after: str | None = None) -> tuple[str, ...]:
    """Accepted answers, from a text, a list of texts, or a list of lists (KnowEdit: every answer with its aliases).

    They follow the prompt `after` as they were written; without one, they have no spaces at their ends.
    """
    leaves = _leaves(value)
    if not all(isinstance(leaf, str) for leaf in leaves):
        raise RequestError(f"{name} must be text or a list of texts, not {value!r}")
    texts = [leaf for leaf in leaves if leaf.strip()]
    found = tuple(dict.fromkeys(text.strip() if after is None else _after(after, text) for text in texts))
    if not found:
        raise RequestError(f"{name}: there is no answer in {value!r}")
    return found


def _aliased(record: Json, key: str, name: str) -> tuple[str, ...]:
    """MQuAKE's answers: one text, and its aliases in another field."""
    return _answers([text_of(record, key, name), record.get(f"{key}_alias") or []], f"{name}: {key}_alias")


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


def _mappings(value: Any, name: str) -> list[Json]:
    """A list of mappings; empty if absent."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise RequestError(f"{name} must be a list of mappings, not {value!r}")
    return value


def _one_hop(record: Json, name: str) -> dict[str, list[Probe]]:
    """EasyEdit's addition to CounterFact and ZsRE (Yao et al. 2023): a question whose answer the new fact changes."""
    portability = record.get("portability")
    if portability is None:
        return {}
    (portability,) = _mappings([portability], f"{name}: portability")
    question = _prompt(portability, "New Question", f"{name}: portability")
    return {"One_hop": [_probe(question, portability.get("New Answer"), f"{name}: portability")]}


def _probes(record: Json, key: str, name: str) -> dict[str, list[Probe]]:
    """Probes by kind, without those that have an empty prompt or no answer at all (some of KnowEdit's).

    In a record the probes of a kind are a list of mappings, one mapping of lists (`datasets` converts to this form), or
    a single probe.
    """
    by_kind = record.get(key) or {}
    if not isinstance(by_kind, Mapping):
        raise RequestError(f"{name}: {key} must be a mapping, not {by_kind!r}")
    found: dict[str, list[Probe]] = {}
    for kind, probes in by_kind.items():
        where = f"{name}: {key}.{kind}"
        kept = [
            _probe(_prompt(probe, "prompt", where), probe["ground_truth"], where)
            for probe in _mappings(_listed(probes, where), where)
            if probe.get("prompt") and any(_leaves(probe.get("ground_truth")))
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
