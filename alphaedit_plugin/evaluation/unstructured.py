"""Data sets whose new knowledge is a text of several sentences: UnKE and AKEW.

The text becomes the object of the request, whole, as UnKE writes it: our methods then look for one hidden state from
which the model says all of it. How far they get is in docs/data_sets.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from ..editors.requests import Request
from ..errors import RequestError
from ..storage.records import Json, text_of
from .facts import Fact, Probe
from .record_fields import (
    before_target,
    case_of,
    mapping_in,
    mappings_in,
    optional_text,
    probe_of,
    prompt_in,
    prompts_in,
)
from .structured import counterfact, mquake

FORMS = ("structured", "unstructured", "extracted")


def unke(record: Json, name: str) -> Fact:
    """UnKE (Deng et al. 2025): a question and the text that answers it; what its sentences say is portability.

    It names no subject. The whole question is taken for it: its key is read at the last token, where UnKE edits too.
    """
    question = text_of(record, "question", name)
    request = Request.written("{}", question, prompt_in(record, "answer", name).rstrip(), case_of(record))
    questions, answers = (
        () if record.get(key) == [] else prompts_in(record, key, name) for key in ("sub_question", "sub_answer")
    )
    if len(questions) != len(answers):
        raise RequestError(f"{name}: there must be a sub_answer for each sub_question")
    probes = [probe_of(*pair, name) for pair in zip(questions, answers, strict=True)]
    return Fact(
        (request,),
        paraphrases=(before_target(prompt_in(record, "para_question", name), request.target_new),),
        portability={"Sub_question": probes} if probes else {},
    )


def akew(record: Json, name: str, form: str = FORMS[0]) -> Fact:
    """AKEW (Wu et al. 2024): CounterFact, MQuAKE and updates of Wikidata, each fact in three forms.

    - structured: subject, relation and object, read as CounterFact or MQuAKE;
    - unstructured: a text about it, written after the question (CounterFact's prompt in full, where that is given);
    - extracted: the triplets that were extracted from the text, written together.

    Whatever was written, AKEW asks for the structured fact; in the last two forms this is portability, and so are the
    text's triplets. Raises RequestError for another form.
    """
    if form not in FORMS:
        raise RequestError(f"{name}: AKEW has no form {form!r}: say one of {', '.join(FORMS)}")
    given = record.get("requested_rewrite")
    several = isinstance(given, list)
    where = f"{name}: requested_rewrite"
    rewrites = mappings_in(given, where) if several else [mapping_in(given, where)]
    fact = mquake(record, name) if several else _single(record, rewrites[0], name)
    if form == FORMS[0]:
        return fact
    triplets = [
        Request.parse({**triplet, "target_new": triplet.get("target")}, f"{name}: unsfact_triplets_GPT")
        for rewrite in rewrites
        for triplet in mappings_in(rewrite.get("unsfact_triplets_GPT"), f"{name}: unsfact_triplets_GPT")
    ]
    texts = [_text(rewrite, name) for rewrite in rewrites]
    asked = [Probe(prompt, (fact.request.target_new,)) for prompt in fact.paraphrases]
    portability = {"Structured": [*_probes(fact.requests), *asked], "Extracted": _probes(triplets)}
    if form == "extracted":
        del portability["Extracted"]
        triplets = list({triplet.text: triplet for triplet in reversed(triplets)}.values())[::-1]
        if not triplets:
            raise RequestError(f"{name}: unsfact_triplets_GPT is empty")
    others = [Probe(prompt, (fact.target_true,)) for prompt in fact.neighbours]
    return replace(
        fact,
        requests=tuple(triplets if form == "extracted" else texts),
        target_true="",
        paraphrases=(),
        neighbours=(),
        locality={"Neighborhood": others} if others else {},
        portability={kind: probes for kind, probes in portability.items() if probes},
    )


def _single(record: Json, rewrite: Json, name: str) -> Fact:
    """A fact of CounterFact, or one with less around it: an update of Wikidata."""
    if record.get("neighborhood_prompts"):
        fact = counterfact(record, name)
    else:
        request, true = Request.parse(record, name), rewrite.get("target_true")
        true = true if isinstance(true, Mapping) else {"str": true}
        fact = Fact((request,), optional_text(true, "str", name, request.text))
    question = optional_text(rewrite, "question", name)
    asked = (before_target(question, fact.request.target_new),) if question else ()
    return replace(
        fact,
        paraphrases=(*asked, *fact.paraphrases),
        relation=optional_text(rewrite, "relation_id", name),
    )


def _text(rewrite: Json, name: str) -> Request:
    """The text after the prompt or the question; the whole of it is the subject if it does not hold the subject."""
    subject, text = text_of(rewrite, "subject", name), prompt_in(rewrite, "fact_new_uns", name).rstrip()
    key = next((key for key in ("prompt_full", "question") if rewrite.get(key)), "prompt")
    before, found, after = prompt_in(rewrite, key, name).partition("{}" if key == "prompt" else subject)
    return Request.written(f"{before}{{}}{after}", subject, text) if found else Request.written("{}", before, text)


def _probes(requests: Iterable[Request]) -> list[Probe]:
    return [Probe(request.text, (request.target_new,)) for request in requests]
