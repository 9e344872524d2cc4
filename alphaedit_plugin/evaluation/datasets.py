"""Read the field's data sets into one record type. The format is recognised from what a record holds."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RequestError
from ..requests import Request
from .facts import Fact, Probe

log = logging.getLogger(__name__)

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """A data set's schema: the fields by which it is known, and how to read a record of it."""

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
    """A JSON or JSONL file of a known data set, or the name of one on the Hugging Face hub.

    Raises RequestError naming the file, the record and the field, unless `skip_bad` leaves such records out; and for
    a file of no known format, or without a record that can be read.
    """
    records = _records(source)
    format_ = _recognised(records[0], str(source))
    facts, bad = [], []
    for index, record in enumerate(records):
        name = f"{source}, record {index}"
        try:
            if not isinstance(record, Mapping):
                raise RequestError(f"{name} is a {type(record).__name__}, not a mapping")
            facts.append(format_.parse(record, name))
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
    """All facts of a data set, or the first thing that is wrong with it."""
    return load_dataset(source).facts


def _records(source: str | Path) -> Sequence[Any]:
    path = Path(source)
    if not path.exists() and not path.suffix and str(source).count("/") <= 1:
        return _from_hub(str(source))
    try:
        text = path.read_text(encoding="utf-8")
        lines = [line for line in text.split("\n") if line.strip()]
        records = [json.loads(line) for line in lines] if path.suffix == ".jsonl" else json.loads(text)
    except (OSError, ValueError) as failure:
        raise RequestError(f"cannot read facts from {path}: {failure}") from failure
    if not isinstance(records, list) or not records:
        raise RequestError(f"{path} holds no list of facts")
    return records


def _from_hub(name: str) -> Sequence[Any]:
    try:
        import datasets
    except ImportError as failure:
        raise RequestError(
            f"there is no file {name}; to read it from the hub, install alphaedit-plugin[evaluation]"
        ) from failure
    try:
        splits = datasets.load_dataset(name)
    except Exception as failure:  # the hub's, the network's and the builder's errors share no type
        raise RequestError(f"there is no file {name}, and the hub gives no data set: {failure}") from failure
    return list(splits[next(iter(splits))])


def _recognised(record: Any, source: str) -> Format:
    if isinstance(record, Mapping):
        for format_ in FORMATS:
            if format_.fields <= record.keys():
                return format_
    known = "; ".join(f"{f.name} ({', '.join(sorted(f.fields))})" for f in FORMATS)
    found = f"fields {', '.join(map(str, record))}" if isinstance(record, Mapping) else type(record).__name__
    raise RequestError(f"{source} is of no known format: its first record has {found}. Known are: {known}")


# ------------------------------------------------------------------------------------------------------- the formats


def _counterfact(record: Json, name: str) -> Fact:
    """CounterFact and multi-CounterFact (Meng et al. 2022, 2023)."""
    request = Request.parse(record, name)
    rewrite = record["requested_rewrite"]
    target_true = rewrite.get("target_true")
    if isinstance(target_true, Mapping):
        target_true = target_true.get("str")
    if not isinstance(target_true, str) or not target_true.strip():
        raise RequestError(f"{name}: target_true must be text, not {target_true!r}")
    return Fact(
        (request,),
        target_true.strip(),
        _prompts(record, "paraphrase_prompts", name),
        _prompts(record, "neighborhood_prompts", name),
        generation=_prompts(record, "generation_prompts", name) if "generation_prompts" in record else (),
        relation=str(rewrite.get("relation_id", "")),
    )


def _zsre(record: Json, name: str) -> Fact:
    """ZsRE as MEND and EasyEdit publish it (Levy et al. 2017; De Cao et al. 2021).

    Like the AlphaEdit authors we write the true answer, which the model may not know; `alt` is what MEND writes.
    """
    subject = _text(record, "subject", name)
    answers = _answers(record.get("answers"), f"{name}: answers")
    portability = record.get("portability")
    ported: dict[str, list[Probe]] = {}
    if isinstance(portability, Mapping) and "New Question" in portability:
        ported["One_hop"] = [
            Probe(
                _text(portability, "New Question", name),
                _answers(portability.get("New Answer"), f"{name}: portability"),
            )
        ]
    locality = _text(record, "loc", name).removeprefix("nq question: ").rstrip("? ") + "?"
    return Fact(
        (_request(_text(record, "src", name), subject, answers[0], record, name),),
        "",
        (_text(record, "rephrase", name),),
        locality={"NaturalQuestions": [Probe(locality, _answers(record.get("loc_ans"), f"{name}: loc_ans"))]},
        portability=ported,
    )


def _easyedit(record: Json, name: str) -> Fact:
    """EasyEdit's flat CounterFact and ZsRE: everything about a fact in one level."""
    subject = _text(record, "subject", name)
    target = _text(record, "target_new", name)
    locality = {}
    if record.get("locality_prompt"):
        probe = Probe(
            _text(record, "locality_prompt", name),
            _answers(record.get("locality_ground_truth"), f"{name}: locality_ground_truth"),
        )
        locality["Neighborhood"] = [probe]
    return Fact(
        (_request(_text(record, "prompt", name), subject, target, record, name),),
        _optional(record, "ground_truth"),
        tuple(filter(None, [_optional(record, "rephrase_prompt")])),
        locality=locality,
    )


def _knowedit(record: Json, name: str) -> Fact:
    """KnowEdit's wiki_recent, wiki_counterfact and ZsRE (Zhang et al. 2024)."""
    subject = _text(record, "subject", name)
    return Fact(
        (_request(_text(record, "prompt", name), subject, _text(record, "target_new", name), record, name),),
        _optional(record, "ground_truth"),
        tuple(filter(None, [_optional(record, "rephrase") or _optional(record, "rephrase_prompt")])),
        locality=_probes(record, "locality", name),
        portability=_probes(record, "portability", name),
    )


def _wikibio(record: Json, name: str) -> Fact:
    """KnowEdit's WikiBio: the passage goes on with what is true instead of what a model made up."""
    subject = _text(record, "concept", name)
    request = _request(_text(record, "text", name), subject, _text(record, "labels", name), record, name)
    return Fact((request,), locality=_probes(record, "locality", name))


def _mquake(record: Json, name: str) -> Fact:
    """MQuAKE (Zhong et al. 2023): edits that are written together, and questions that need all of them."""
    rewrites = record["requested_rewrite"]
    if not isinstance(rewrites, list) or not rewrites:
        raise RequestError(f"{name}: requested_rewrite must be a list of edits")
    requests = [
        Request.parse({"case_id": record.get("case_id"), "requested_rewrite": rewrite}, f"{name}, edit {index}")
        for index, rewrite in enumerate(rewrites)
    ]
    answers = _answers(record.get("new_answer"), f"{name}: new_answer") + tuple(record.get("new_answer_alias") or ())
    hops = [
        Probe(
            _text(hop, "cloze" if hop.get("cloze") else "question", name),
            _answers(hop.get("answer"), f"{name}: new_single_hops") + tuple(hop.get("answer_alias") or ()),
        )
        for hop in record.get("new_single_hops") or ()
    ]
    return Fact(
        tuple(requests),
        questions=tuple(Probe(question, answers) for question in _prompts(record, "questions", name)),
        hops=tuple(hops),
    )


# In this order: whoever has the fields of several is of the first.
FORMATS = (
    Format("MQuAKE", frozenset({"requested_rewrite", "questions", "new_answer"}), _mquake),
    Format("CounterFact", frozenset({"requested_rewrite", "paraphrase_prompts", "neighborhood_prompts"}), _counterfact),
    Format("ZsRE", frozenset({"subject", "src", "rephrase", "answers", "loc", "loc_ans"}), _zsre),
    Format("WikiBio", frozenset({"text", "labels", "concept", "locality"}), _wikibio),
    Format("KnowEdit", frozenset({"subject", "prompt", "target_new", "locality", "portability"}), _knowedit),
    Format("EasyEdit", frozenset({"subject", "prompt", "target_new", "rephrase_prompt"}), _easyedit),
)


# ------------------------------------------------------------------------------------------------------------ fields


def _request(prompt: str, subject: str, target: str, record: Json, name: str) -> Request:
    """With "{}" at the subject's first place, unless it is there already; what else of it there is stays as it is."""
    before, found, after = prompt.partition("{}" if prompt.count("{}") == 1 else subject)
    if not found:
        raise RequestError(f"{name}: the subject {subject!r} is not in the prompt {prompt!r}")
    case_id = record.get("case_id")
    return Request(
        f"{before}{{}}{after}".rstrip(), subject, target, case_id if isinstance(case_id, int | str) else None
    )


def _text(record: Json, key: str, name: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise RequestError(f"{name}: {key} must be text, not {value!r}")
    return value.strip()


def _optional(record: Json, key: str) -> str:
    value = record.get(key)
    if isinstance(value, list) and value:
        value = value[0]
    return value.strip() if isinstance(value, str) else ""


def _prompts(record: Json, key: str, name: str) -> tuple[str, ...]:
    prompts = record.get(key)
    if not isinstance(prompts, list) or not prompts or not all(isinstance(p, str) and p.strip() for p in prompts):
        raise RequestError(f"{name}: {key} must be a list of prompts, not {prompts!r}")
    return tuple(prompt.rstrip() for prompt in prompts)


def _answers(value: Any, name: str) -> tuple[str, ...]:
    """Any of these will do: a text, a list of texts, or a list of lists (KnowEdit: every answer with its aliases)."""

    def flat(item: Any) -> Iterable[str]:
        if isinstance(item, str):
            yield item
        elif isinstance(item, Sequence):
            for each in item:
                yield from flat(each)
        else:
            raise RequestError(f"{name} must be text or a list of texts, not {value!r}")

    found = tuple(dict.fromkeys(text.strip() for text in flat(value) if text.strip())) if value is not None else ()
    if not found:
        raise RequestError(f"{name}: there is no answer in {value!r}")
    return found


def _probes(record: Json, key: str, name: str) -> dict[str, list[Probe]]:
    """By kind; what has an empty prompt or no answer at all (some of KnowEdit's) is no probe."""
    by_kind = record.get(key) or {}
    if not isinstance(by_kind, Mapping):
        raise RequestError(f"{name}: {key} must be a mapping, not {by_kind!r}")
    found: dict[str, list[Probe]] = {}
    for kind, probes in by_kind.items():
        if not isinstance(probes, list) or not all(isinstance(probe, Mapping) for probe in probes):
            raise RequestError(f"{name}: {key}.{kind} must be a list of prompts with ground_truth")
        kept = [
            Probe(
                _text(probe, "prompt", f"{name}: {key}.{kind}"),
                _answers(probe["ground_truth"], f"{name}: {key}.{kind}"),
            )
            for probe in probes
            if probe.get("prompt") and any(map(bool, _nested(probe.get("ground_truth"))))
        ]
        if kept:
            found[str(kind)] = kept
    return found


def _nested(value: Any) -> list[Any]:
    if isinstance(value, list):
        return [leaf for item in value for leaf in _nested(item)]
    return [value]
