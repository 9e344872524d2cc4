"""Verdicts on what somebody else's editor did to facts that it was given."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from ..model.decoder import Decoder, OutProjection
from .first_token import first_tokens
from .requests import Request, parse_requests
from .verdict import Circumstances, Verdict, Verdicts, answers

log = logging.getLogger(__name__)


class Witness:
    """Asks a model about facts before somebody edits it; `verdicts` asks again, and says what became of them.

    It changes neither model nor random states, and what it cannot read or ask is no reason for a call to fail.
    """

    def __init__(self, model: nn.Module | Decoder, tokenizer: Any, records: Any, projection: OutProjection) -> None:
        """`projection` is the last one that may be edited. Raises RequestError for records that are no facts."""
        self.tokenizer = tokenizer
        self.requests = parse_requests(records)
        self.first = first_tokens(model, tokenizer, self.requests, projection)
        self.before = answers(model, tokenizer, self.requests)

    @classmethod
    def of(cls, model: nn.Module | Decoder, tokenizer: Any, records: Any, projection: OutProjection) -> Witness | None:
        """The same, or None if these are no facts that we understand."""
        try:
            return cls(model, tokenizer, records, projection)
        except Exception as failure:
            log.debug("no verdicts: %s", failure)
            return None

    @classmethod
    def of_call(cls, model: nn.Module | Decoder, arguments: Iterable[Any], projection: OutProjection) -> Witness | None:
        """The same for a call with these arguments, or None unless a tokenizer and facts are among them."""
        given = list(arguments)
        tokenizer = next((value for value in given if isinstance(value, PreTrainedTokenizerBase)), None)
        records = next((value for value in given if _are_facts(value)), None)
        if tokenizer is None or records is None:
            return None
        return cls.of(model, tokenizer, records, projection)

    def verdicts(self, model: nn.Module | Decoder) -> Verdicts:
        """On the model as it is now."""
        now = answers(model, self.tokenizer, self.requests)
        return Verdicts(
            self.requests,
            [
                Verdict.of(request, before, after, Circumstances(first_token=i in self.first))
                for i, (request, before, after) in enumerate(zip(self.requests, self.before, now, strict=True))
            ],
        )

    def tell(self, model: nn.Module | Decoder, name: str) -> None:
        """Log the verdicts, as those of `name`."""
        try:
            self.verdicts(model).log(log, name)
        except Exception as failure:
            log.warning("%s: no verdicts: %s", name, failure)


def edited_model(result: Any, model: nn.Module) -> nn.Module:
    """The model that an editing function returned, alone or first of several; `model`, if it returned none."""
    first = result[0] if isinstance(result, tuple) and result else result
    return first if isinstance(first, nn.Module) else model


def _are_facts(value: Any) -> bool:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence) or not value:
        return False
    return all(
        isinstance(one, Request)
        or (isinstance(one, dict) and ("requested_rewrite" in one or {"prompt", "subject", "target_new"} <= one.keys()))
        for one in value
    )
