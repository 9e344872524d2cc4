"""RippleEdits (Cohen et al. 2024): an edit as a sentence, and what must follow from it or stay, by criterion."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..errors import RequestError
from ..storage.records import Json, text_of
from .facts import Fact, Probe
from .record_fields import RIPPLES, leaves_of, mapping_in, mappings_in, optional_text, probe_of, prompt_in, request_of

LOCALITY, PORTABILITY = RIPPLES[:2], RIPPLES[2:]

_RELATION = " (?:is associated with|is a member of|is part of|is the capital of|plays in|has|won)"
_VERB = " (?:follows|is followed by|is|are)"
_SUBJECT = "(?:The (?:[a-z]+ )+)?(?P<subject>.+?)"
_OBJECT = rf"(?:{_RELATION})?{_VERB} (?P<target>.+?)\.?"
"""A relation's words, all small letters; the subject; what may belong to the relation again; the verb; the object."""
_PARTING = re.compile(rf"(?:{_RELATION}(?={_VERB} ))?{_VERB}(?= )")
_REMEDY = "add the fields subject and target"


def ripple_edits(record: Json, name: str) -> Fact:
    """An edit with its tests, by criterion as KnowEdit sorts them: `LOCALITY` and `PORTABILITY`.

    The published files give of an edit a sentence and Wikidata's ids. Subject and object are found in the sentence, by
    the form that all of them have; fields `subject` and `target`, if there are any, go before that. Whatever `target`
    says, the sentence's own object is no part of the prompt.

    Each query of a test is a probe, and the name of an answer or any of its aliases is right. The conditions under
    which a test is run (that the model knows something before the edit) are not looked at: compare with "before".
    """
    where = f"{name}: edit"
    edit = mapping_in(record.get("edit"), where)
    subject, target, before = _parts(edit, where)
    old = next((edit[key] for key in ("original_fact", "previous_fact") if edit.get(key)), None)
    return Fact(
        (request_of({"prompt": before}, "prompt", subject, target, where),),
        _parts(_about(old, subject), where)[1] if isinstance(old, Mapping) else "",
        locality=_probes(record, LOCALITY, name),
        portability=_probes(record, PORTABILITY, name),
        relation=optional_text(edit, "relation", where),
    )


def _parts(fact: Json, name: str) -> tuple[str, str, str]:
    """(subject, object, what stands before the sentence's own object) of a fact.

    Raises RequestError for a sentence of another form, and, where it is not said what the subject is, for one with
    several verbs, since it may be parted at each.
    """
    sentence = text_of(fact, "prompt", name)
    given = {key: text_of(fact, key, name) for key in ("subject", "target") if fact.get(key)}
    subject = f".*?(?P<subject>{re.escape(given['subject'])})" if "subject" in given else _SUBJECT
    said = re.fullmatch(subject + _OBJECT, sentence)
    found = {"subject": "", "target": "", **(said.groupdict() if said else {}), **given}
    whole = sentence.removesuffix(".")
    before = whole.removesuffix(found["target"])
    if not all(found.values()) or (not said and before == whole != sentence):
        raise RequestError(f"{name}: prompt: no subject and object are found in {sentence!r}: {_REMEDY}")
    if "subject" not in given and len(_PARTING.findall(before if "target" in given else whole)) > 1:
        raise RequestError(f"{name}: prompt: {sentence!r} may be parted at several verbs: {_REMEDY}")
    if before == whole and said:
        before = sentence[: said.start("target")]
    return found["subject"], found["target"], before


def _about(fact: Json, subject: str) -> Json:
    """The fact with the subject, if its sentence has it."""
    return {"subject": subject, **fact} if subject in str(fact.get("prompt")) else fact


def _probes(record: Json, criteria: tuple[str, ...], name: str) -> dict[str, list[Probe]]:
    """Probes by criterion, without queries that have no answer."""
    found: dict[str, list[Probe]] = {}
    for criterion in criteria:
        where = f"{name}: {criterion}"
        for test in mappings_in(record.get(criterion), where):
            for query in mappings_in(test.get("test_queries"), f"{where}: test_queries"):
                answers = [
                    [answer.get("value"), answer.get("aliases") or []]
                    for answer in mappings_in(query.get("answers"), f"{where}: answers")
                ]
                if any(leaves_of(answers)):
                    probe = probe_of(prompt_in(query, "prompt", where), answers, f"{where}: answers")
                    found.setdefault(criterion, []).append(probe)
    return found
