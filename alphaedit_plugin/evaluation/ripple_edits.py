"""RippleEdits (Cohen et al. 2024): an edit as a sentence, and what must follow from it or stay, by criterion."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..errors import RequestError
from ..storage.records import Json, text_of
from .facts import Fact, Probe
from .record_fields import RIPPLES, leaves_of, mappings_in, optional_text, probe_of, prompt_in, request_of

LOCALITY, PORTABILITY = RIPPLES[:2], RIPPLES[2:]

_SENTENCE = re.compile(
    r"(The (?:[a-z]+ )+)?(?P<subject>.+?)"
    r"(?: (?:is associated with|is a member of|is part of|is the capital of|plays in|has|won))?"
    r"(?: follows| is followed by| is| are) (?P<target>.+?)\.?"
)
"""A relation's words, all small letters; the subject; what may belong to the relation again; the verb; the object."""


def ripple_edits(record: Json, name: str) -> Fact:
    """An edit with its tests, by criterion as KnowEdit sorts them: `LOCALITY` and `PORTABILITY`.

    The published files give of an edit a sentence and Wikidata's ids. Subject and object are found in the sentence, by
    the form that all of them have; fields `subject` and `target`, if there are any, go before that.

    Each query of a test is a probe, and the name of an answer or any of its aliases is right. The conditions under
    which a test is run (that the model knows something before the edit) are not looked at: compare with "before".
    """
    where = f"{name}: edit"
    (edit,) = mappings_in([record.get("edit")], where)
    sentence = prompt_in(edit, "prompt", where)
    subject, target = _parts(edit, where)
    before = sentence.strip().removesuffix(".").removesuffix(target)
    old = next((edit[key] for key in ("original_fact", "previous_fact") if edit.get(key)), None)
    return Fact(
        (request_of({"prompt": before}, "prompt", subject, target, where),),
        _parts(old, where)[1] if isinstance(old, Mapping) else "",
        locality=_probes(record, LOCALITY, name),
        portability=_probes(record, PORTABILITY, name),
        relation=optional_text(edit, "relation", where),
    )


def _parts(fact: Json, name: str) -> tuple[str, str]:
    """(subject, object) of a fact. Raises RequestError for a sentence of another form."""
    said = _SENTENCE.fullmatch(text_of(fact, "prompt", name))
    parts = {**(said.groupdict() if said else {}), **{key: fact[key] for key in ("subject", "target") if fact.get(key)}}
    if parts.keys() < {"subject", "target"}:
        raise RequestError(
            f"{name}: prompt: no subject and object are found in {fact['prompt']!r}: add the fields subject and target"
        )
    return text_of(parts, "subject", name), text_of(parts, "target", name)


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
