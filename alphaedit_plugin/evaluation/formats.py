"""The data sets that can be read: what tells each from the others, and how its records are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import RequestError
from ..storage.records import Json
from .facts import Fact
from .questions import qaedit, wikibigedit, zsre
from .record_fields import from_json
from .ripple_edits import ripple_edits
from .structured import counterfact, easyedit, knowedit, longform, mquake, mquake_remastered, wikibio
from .unstructured import akew, unke


@dataclass(frozen=True)
class Format:
    """A data set's schema: the fields that identify it ("a.b" is b in a, or in the first of a's), and how to read a
    record. With `forms`, `parse` also takes the name of a form, and gives None for a record that is not of it.
    """

    name: str
    fields: frozenset[str]
    parse: Callable[..., Fact | None]
    forms: bool = False

    def fits(self, record: Any) -> bool:
        return isinstance(record, Mapping) and all(_holds(record, field.split(".")) for field in self.fields)

    def read(self, record: Json, name: str, form: str = "") -> Fact | None:
        """Raises RequestError for a record that cannot be read, or a form that there is not."""
        if form and not self.forms:
            raise RequestError(f"{name}: {self.name} has no form {form!r}: leave out ':{form}'")
        return self.parse(record, name, form) if form else self.parse(record, name)


def _holds(value: Any, path: list[str]) -> bool:
    value = from_json(value)
    value = value[0] if isinstance(value, list) and value else value
    return not path or (isinstance(value, Mapping) and path[0] in value and _holds(value[path[0]], path[1:]))


def _format(name: str, fields: str, parse: Callable[..., Fact | None], *, forms: bool = False) -> Format:
    return Format(name, frozenset(fields.split()), parse, forms)


# Order matters: the first format whose fields are all present wins.
FORMATS = (
    _format("LEME", "coupled_prompts_and_properties", longform),
    _format("AKEW", "requested_rewrite.fact_new_uns requested_rewrite.unsfact_triplets_GPT", akew, forms=True),
    _format("MQuAKE-Remastered", "requested_rewrite questions new_answer split", mquake_remastered, forms=True),
    _format(
        "MQuAKE-Remastered", "requested_rewrite.target_new_str questions new_answer", mquake_remastered, forms=True
    ),
    _format("MQuAKE", "requested_rewrite questions new_answer", mquake),
    _format("CounterFact", "requested_rewrite paraphrase_prompts neighborhood_prompts", counterfact),
    _format("ZsRE", "subject src rephrase answers loc loc_ans", zsre),
    _format("WikiBigEdit", "subject rephrase loc loc_ans mhop", wikibigedit),
    _format("QAEdit", "subject prompt target rephrase locality", qaedit),
    _format("WikiBio", "text labels concept locality", wikibio),
    _format("KnowEdit", "subject prompt target_new locality portability", knowedit),
    _format("EasyEdit", "subject prompt target_new rephrase_prompt", easyedit),
    _format("UnKE", "question para_question answer sub_question sub_answer", unke),
    _format("RippleEdits", "edit Logical_Generalization Compositionality_I Forgetfulness", ripple_edits),
)
