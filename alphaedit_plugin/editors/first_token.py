"""Subjects that have the attention sink's key, and cannot be edited.

Many models use a text's first token as a place for attention to rest (Xiao et al. 2024, arXiv 2309.17453): whatever
the token, its key and hidden state are nearly the same. A subject of one token that comes first, with a tokenizer that
adds no BOS, has this key. What changes it changes every text alike, and the fact is not learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..errors import RequestError
from ..model.decoder import Decoder, OutProjection
from ..model.gradients import gradients
from ..model.trace import evaluating, inputs_of
from .requests import Request, encode

_OTHERS = 16
_ALIKE = 0.8
"""Median cosine between keys of different first tokens. SmolLM2, layers 4 to 8: 0.86 to 1.00; at the second token 0.07
to 0.22; in layer 0, where the sink has not formed yet, 0.31."""


def first_tokens(
    model: nn.Module | Decoder, tokenizer: Any, requests: Sequence[Request], projection: OutProjection
) -> tuple[int, ...]:
    """Which of `requests` have the attention sink's key in this layer, by position in the list.

    Measured, not looked up: keys of a text's first token resemble each other whatever the token, and much more so than
    those of the second. Costs one small forward pass if any subject is a text's first token, otherwise none.
    """
    encoded = [encode(tokenizer, request.prompt, request.subject) for request in requests]
    first = {i: one.ids[0] for i, one in enumerate(encoded) if one.subject_last == 0}
    if not first:
        return ()
    tokens = sorted(set(first.values()))
    resembles = _resembles_others(Decoder.of(model), projection, tokens, _spread(tokenizer, {*tokens}))
    return tuple(i for i, token in first.items() if resembles[tokens.index(token)])


def refuse(requests: Sequence[Request], found: Sequence[int]) -> None:
    """Raises RequestError, naming the record and what helps, if `first_tokens` has found any."""
    if not found:
        return
    request = requests[found[0]]
    name = f"request {found[0]}" + (f" (case_id {request.case_id})" if request.case_id is not None else "")
    more = f" (and {len(found) - 1} more requests)" if len(found) > 1 else ""
    raise RequestError(
        f"{name}{more}: the subject {request.subject!r} is the first token of {request.text!r}, where this model's "
        f"attention sink hides what the token is, so the edit would fail: put words before the subject, such as "
        f'"The company {{}} …", use a tokenizer that adds a BOS, or try all the same with on_failure="allow" '
        f"(--allow-failures)"
    )


def _spread(tokenizer: Any, without: set[int]) -> list[int]:
    """Ordinary tokens from all over the vocabulary."""
    special = {*getattr(tokenizer, "all_special_ids", [])} | without
    usual = [token for token in range(len(tokenizer)) if token not in special]
    return usual[len(usual) // (2 * _OTHERS) :: max(1, len(usual) // _OTHERS)]


@gradients(False)
def _resembles_others(
    decoder: Decoder, projection: OutProjection, tokens: Sequence[int], others: Sequence[int]
) -> list[bool]:
    """Whether each of `tokens` has, as a text's first, the key that the `others` have there."""
    asked = [*tokens, *others]
    # Each token comes first in one text of two tokens, where its key is as if it stood alone, and second in another.
    texts = torch.tensor([asked, asked[1:] + asked[:1]], device=decoder.device).T
    with evaluating(decoder.given):
        seen = inputs_of({0: projection.module}, lambda: decoder.given(input_ids=texts, use_cache=False), last=0)[0]
    seen = seen.reshape(len(asked), 2, -1)  # OPT flattens batch and tokens
    first = _cosines(seen[: len(tokens), 0], seen[len(tokens) :, 0]).median(-1).values
    # Positions that are learned make all keys of a place alike to some degree; the sink goes far beyond that.
    second = _cosines(seen[:, 1], seen[:, 1]).fill_diagonal_(torch.nan).nanmedian()
    return ((first > _ALIKE) & (1 - first < (1 - second) / 4)).tolist()


def _cosines(keys: Tensor, others: Tensor) -> Tensor:
    """Between each of `keys`, n × d, and each of the `others`, m × d; n × m."""
    return normalize(keys.double(), dim=-1) @ normalize(others.double(), dim=-1).T
