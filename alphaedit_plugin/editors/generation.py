"""Text that a model writes after prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..model.continuation import continuations
from ..model.sampling import unsayable
from ..progress import progress_bar
from .requests import encode

SEED = 0


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """The prompt's ids: with a BOS if the tokenizer adds one, without special tokens at the end."""
    return encode(tokenizer, "{}", prompt).ids


def write(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    tokens: int | Sequence[int],
    *,
    top_k: int | None = None,
    seed: int = SEED,
    stop: str | None = None,
    batch_tokens: int = 8192,
    progress: bool = False,
) -> list[str]:
    """What the model writes after each prompt: at most `tokens` tokens (one limit for all, or one each).

    A text ends before the end-of-text token, before `stop`, or where the model's positions end. Other special tokens
    are never written. Every token is the likeliest one or, with `top_k`, is drawn from the `top_k` likeliest at
    temperature 1. The draw depends on seed and prompt; other prompts in the batch change it only by rounding.

    Raises RequestError for a prompt without tokens, or with more than the model has positions.
    """
    limits = [tokens] * len(prompts) if isinstance(tokens, int) else list(tokens)
    asked: dict[tuple[str, int], int] = {}
    for ask in zip(prompts, limits, strict=True):
        asked.setdefault(ask, len(asked))
    starts = [prompt_ids(tokenizer, prompt) for prompt, _ in asked]
    ends = _ends(model, tokenizer)

    def said(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    with progress_bar(total=len(asked), desc="writing", unit="text", shown=progress, leave=False) as bar:
        written = continuations(
            model,
            starts,
            [limit for _, limit in asked],
            ends=ends,
            banned=sorted({*unsayable(model, tokenizer)} - ends),
            top_k=top_k,
            seed=seed,
            finished=lambda new: stop is not None and stop in said(new),
            batch_tokens=batch_tokens,
            on_text=bar.update,
        )
    texts = []
    for start, new in zip(starts, written, strict=True):
        before, whole = said(start), said([*start, *new])
        # Decoded by themselves, the new tokens may lack the space before their first word.
        text = whole[len(before) :] if whole.startswith(before) else said(new)
        texts.append(text if stop is None else text.partition(stop)[0])
    return [texts[asked[ask]] for ask in zip(prompts, limits, strict=True)]


def _ends(model: Any, tokenizer: Any) -> set[int]:
    """Ids that end a text: the tokenizer's, and those of the model's generation settings (chat models have more)."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return {
        token
        for token in (tokenizer.eos_token_id, *(named if isinstance(named, list) else [named]))
        if token is not None
    }
