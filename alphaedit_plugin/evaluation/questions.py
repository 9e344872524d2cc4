"""Data sets of questions and answers: ZsRE, QAEdit, WikiBigEdit."""

from __future__ import annotations

from typing import Any

from ..errors import RequestError
from ..storage.records import Json, text_of
from .facts import Fact, Probe
from .record_fields import answers_in, before_target, mappings_in, one_hop, probe_of, prompt_in, request_of


def zsre(record: Json, name: str) -> Fact:
    """ZsRE as MEND and EasyEdit publish it (Levy et al. 2017; De Cao et al. 2021).

    Like the AlphaEdit authors we write the true answer, which the model may not know; `alt` is what MEND writes.
    """
    subject = text_of(record, "subject", name)
    answers = answers_in(record.get("answers"), f"{name}: answers", prompt_in(record, "src", name))
    locality = text_of(record, "loc", name).removeprefix("nq question: ").rstrip("? ") + "?"
    return Fact(
        (request_of(record, "src", subject, answers[0], name),),
        "",
        (before_target(prompt_in(record, "rephrase", name), answers[0]),),
        locality={"NaturalQuestions": [probe_of(locality, record.get("loc_ans"), f"{name}: loc_ans")]},
        portability=one_hop(record, name),
    )


def qaedit(record: Json, name: str) -> Fact:
    """QAEdit (Yang et al. 2025): questions people ask, to be answered without teacher forcing; see `Answers`."""
    subject, where = text_of(record, "subject", name), f"{name}: locality"
    request = request_of(record, "prompt", subject, prompt_in(record, "target", name), name)
    others = [
        probe_of(prompt_in(other, "loc", where), other.get("loc_ans"), f"{where}: loc_ans")
        for other in mappings_in(record.get("locality"), where)
    ]
    return Fact(
        (request,),
        paraphrases=(before_target(prompt_in(record, "rephrase", name), request.target_new),),
        locality={"NaturalQuestions": others} if others else {},
    )


def wikibigedit(record: Json, name: str) -> Fact:
    """WikiBigEdit (Thede et al. 2025): what changed in Wikidata. Where a question is absent, nothing is asked.

    The published files call question and answer `update` and `ans`, those of its own pipeline `src` and `alt`. How
    different people would ask (`personas…` or `genv2_…`), and what follows in two hops (`mhop`), are portability.
    """
    subject = text_of(record, "subject", name)
    question, answer = ("update", "ans") if "update" in record else ("src", "alt")
    request = request_of(record, question, subject, prompt_in(record, answer, name), name)
    new = request.target_new
    personas = [key for key in record if str(key).startswith(("personas", "genv2_"))]
    portability = {
        "Personas": [probe_of(asked, new, f"{name}: {key}") for key in personas for asked in _asked(record, key, name)],
        "Multi_hop": _answered(record, "mhop", name),
    }
    others = _answered(record, "loc", name)
    return Fact(
        (request,),
        paraphrases=tuple(before_target(asked, new) for asked in _asked(record, "rephrase", name)),
        locality={"Neighborhood": others} if others else {},
        portability={kind: probes for kind, probes in portability.items() if probes},
    )


def _answered(record: Json, key: str, name: str) -> list[Probe]:
    """The question in `key` with its answers in `key`_ans, or several questions each with the answer in its place.

    A question without an answer is left out, an answer without a question too. Raises RequestError for several
    questions that have not as many answers.
    """
    where, asked, answers = f"{name}: {key}_ans", record.get(key), record.get(f"{key}_ans")
    if not isinstance(asked, list):
        asked, answers = [asked], [answers]
    elif len(asked) == 1 and not (isinstance(answers, list) and len(answers) == 1):
        answers = [answers]
    elif not asked or _absent(answers):
        return []
    if not isinstance(answers, list) or len(answers) != len(asked):
        raise RequestError(f"{where} must be a list of {len(asked)} answers, one for each question, not {answers!r}")
    return [
        probe_of(question, answer, where)
        for each, answer in zip(asked, answers, strict=True)
        if not _absent(answer)
        for question in _asked({key: each}, key, name)
    ]


def _asked(record: Json, key: str, name: str) -> list[str]:
    """One question or several; none for null, and for NaN, which pandas writes in its place."""
    value = record.get(key)
    several = value if isinstance(value, list) else [value]
    return [prompt_in({key: each}, key, name) for each in several if not _absent(each)]


def _absent(value: Any) -> bool:
    return value is None or value != value
