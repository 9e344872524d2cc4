"""How probable a model finds texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..editors.requests import encode
from ..model.likelihood import Scored, score_tokens


def score_pairs(
    model: nn.Module,
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    *,
    batch_tokens: int = 2048,
    progress: bool = False,
) -> Scored:
    """How well the tokens of each target are predicted after its prompt (`encode` says what stands between them).

    A sequence that is the beginning of another shares its row: two targets of one token cost one prompt.
    """
    encoded = [encode_pair(tokenizer, prompt, target) for prompt, target in pairs]
    return score_tokens(model, encoded, batch_tokens=batch_tokens, progress=progress)


def encode_pair(tokenizer: Any, prompt: str, target: str) -> tuple[list[int], list[int]]:
    # The whole prompt takes the subject's place: only the place where the target begins matters here.
    encoded = encode(tokenizer, "{}", prompt, target)
    return encoded.ids, encoded.target
