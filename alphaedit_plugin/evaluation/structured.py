"""Data sets of facts as subject, relation and object: CounterFact and LEME, KnowEdit and EasyEdit's, MQuAKE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..editors.requests import Request
from ..errors import RequestError
from ..storage.records import Json, text_of
from .facts import Fact, Probe
from .questions import zsre
from .record_fields import (
    after_prompt,
    aliased_answers,
    first_prompt,
    leaves_of,
    mapping_in,
    mappings_in,
    one_hop,
    optional_text,
    probe_of,
    probes_in,
    prompt_in,
    prompts_in,
    request_of,
)


def counterfact(record: Json, name: str) -> Fact:
    """CounterFact and multi-CounterFact (Meng et al. 2022, 2023)."""
    request = Request.parse(record, name)
    rewrite = mapping_in(record.get("requested_rewrite"), f"{name}: requested_rewrite")
    target_true, target_new = rewrite.get("target_true"), rewrite.get("target_new")
    if isinstance(target_true, Mapping):
        target_true = target_true.get("str")
    if not isinstance(target_true, str) or not target_true.strip():
        raise RequestError(f"{name}: target_true must be text, not {target_true!r}")
    return Fact(
        (request,),
        after_prompt(request.text, target_true),
        prompts_in(record, "paraphrase_prompts", name, request.target_new),
        prompts_in(record, "neighborhood_prompts", name, request.target_new),
        portability=one_hop(record, name),
        generation=prompts_in(record, "generation_prompts", name) if record.get("generation_prompts") else (),
        relation=optional_text(rewrite, "relation_id", name),
        target_id=optional_text(target_new, "id", name) if isinstance(target_new, Mapping) else "",
    )


def longform(record: Json, name: str) -> Fact:
    """LEME (Rosati et al. 2024): a fact of CounterFact or ZsRE, and two texts to write.

    One text is about the subject, one about an entity coupled to it (the first of several, and the most related). Each
    prompt says what to mention, including the other entity, and the text begins with the name.
    """
    fact = (counterfact if "requested_rewrite" in record else zsre)(record, name)
    inside = f"{name}: coupled_prompts_and_properties"
    coupled = mapping_in(record.get("coupled_prompts_and_properties"), inside)
    related = mappings_in(coupled.get("coupled_entities"), f"{inside}.coupled_entities")
    if not related:
        raise RequestError(f"{inside}.coupled_entities is empty")
    about = mapping_in(coupled.get("subject_entity"), f"{inside}.subject_entity")
    subject, other = fact.request.subject, text_of(related[0], "entity", f"{inside}.coupled_entities")
    return replace(
        fact,
        generation=tuple(
            f"{text_of(entity, 'coupled_prompt', inside)}\n-relationship to {to}\n\n{of}"
            for entity, to, of in ((about, other, subject), (related[0], subject, other))
        ),
    )


def easyedit(record: Json, name: str) -> Fact:
    """EasyEdit's flat CounterFact and ZsRE: all fields of a fact on one level."""
    subject = text_of(record, "subject", name)
    request = request_of(record, "prompt", subject, prompt_in(record, "target_new", name), name)
    locality = {}
    if record.get("locality_prompt"):
        prompt, answers = prompt_in(record, "locality_prompt", name), record.get("locality_ground_truth")
        locality["Neighborhood"] = [probe_of(prompt, answers, f"{name}: locality_ground_truth")]
    return Fact(
        (request,),
        optional_text(record, "ground_truth", name, request.text),
        tuple(filter(None, [first_prompt(record, "rephrase_prompt", name, request.target_new)])),
        locality=locality,
    )


def knowedit(record: Json, name: str) -> Fact:
    """KnowEdit's wiki_recent, wiki_counterfact and ZsRE (Zhang et al. 2024)."""
    subject = text_of(record, "subject", name)
    request = request_of(record, "prompt", subject, prompt_in(record, "target_new", name), name)
    new = request.target_new
    rephrased = first_prompt(record, "rephrase", name, new) or first_prompt(record, "rephrase_prompt", name, new)
    return Fact(
        (request,),
        optional_text(record, "ground_truth", name, request.text),
        tuple(filter(None, [rephrased])),
        locality=probes_in(record, "locality", name),
        portability=probes_in(record, "portability", name),
    )


def wikibio(record: Json, name: str) -> Fact:
    """KnowEdit's WikiBio: the passage continues with what is true instead of what a model made up."""
    subject = text_of(record, "concept", name)
    request = request_of(record, "text", subject, prompt_in(record, "labels", name), name)
    return Fact((request,), locality=probes_in(record, "locality", name))


def mquake(record: Json, name: str) -> Fact:
    """MQuAKE (Zhong et al. 2023): edits that are written together, and questions that need all of them."""
    rewrites = record.get("requested_rewrite")
    if not isinstance(rewrites, list) or not rewrites:
        raise RequestError(f"{name}: requested_rewrite must be a list of edits")
    requests = [
        Request.parse({"case_id": record.get("case_id"), "requested_rewrite": rewrite}, f"{name}, edit {index}")
        for index, rewrite in enumerate(rewrites)
    ]
    answers = aliased_answers(record, "new_answer", name)
    hops = [
        Probe(
            text_of(hop, "cloze" if hop.get("cloze") else "question", f"{name}: new_single_hops"),
            aliased_answers(hop, "answer", f"{name}: new_single_hops"),
        )
        for hop in mappings_in(record.get("new_single_hops"), f"{name}: new_single_hops")
    ]
    return Fact(
        tuple(requests),
        questions=tuple(Probe(question, answers) for question in prompts_in(record, "questions", name, answers[0])),
        hops=tuple(hops),
        relation=optional_text(rewrites[0], "relation_id", name),
    )


def mquake_remastered(record: Json, name: str, edits: str = "") -> Fact | None:
    """MQuAKE-Remastered (Zhong et al. 2025): MQuAKE with its errors mended; on the hub its targets are flat.

    `split` says, for each number of `edits`, which cases are edited then; with `edits` the others are None. Without,
    every case is edited. Cases that stay unedited, and must not be answered otherwise, are not asked.
    """
    rewrites = record.get("requested_rewrite")
    if not isinstance(rewrites, list) or not all(isinstance(each, Mapping) for each in rewrites):
        raise RequestError(f"{name}: requested_rewrite must be a list of edits")
    if edits:
        split = mapping_in(record.get("split"), f"{name}: split")
        if edits not in split:
            raise RequestError(f"{name}: split knows no {edits!r}, only {', '.join(map(str, split))}")
        kinds = leaves_of(split[edits])
        if not all(isinstance(kind, str | int | float | None) for kind in kinds):
            raise RequestError(f"{name}: split: {edits} must be text or a list of texts, not {split[edits]!r}")
        if not {"edited", "train_edited", "test_edited", "test_edited_unique"} & set(kinds):
            return None
    nested = [{"target_new": rewrite.get("target_new_str"), **rewrite} for rewrite in rewrites]
    return mquake({**record, "requested_rewrite": nested}, name)
