"""A tokenizer with something around it: in all else it is the tokenizer itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class WrappedTokenizer:
    """`tokenizer` may be wrapped too."""

    tokenizer: Any

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.tokenizer(*args, **options)

    def __len__(self) -> int:
        return len(self.tokenizer)

    def __getattr__(self, name: str) -> Any:
        if name == "tokenizer" or name.startswith("__"):  # of an object that is being copied
            raise AttributeError(name)
        return getattr(self.tokenizer, name)
