"""Something the model is told before every prompt that it is asked: editing in context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .wrapped_tokenizer import WrappedTokenizer


@dataclass(frozen=True, eq=False)
class Reminder(WrappedTokenizer):
    """A tokenizer for a model that is told `told(prompt)` directly before each prompt; "" tells it nothing.

    Whoever asks a prompt goes through `encode`, which puts it there, in a chat into the same turn. Text that is only
    read (perplexity) stays as it is, and so do prompts that are asked with `unreminded`.
    """

    told: Callable[[str], str]


def unreminded(tokenizer: Any) -> Any:
    """The tokenizer that tells nothing: of prompts that are about no fact."""
    return tokenizer.tokenizer if isinstance(tokenizer, Reminder) else tokenizer
