"""What a kind of fault is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


@dataclass(frozen=True)
class Outcome:
    """What came of one attempt: how many faults it did, and which promise was broken, if one was."""

    faults: int = 1
    broken: str | None = None


class Kind(ABC):
    """A kind of fault, and the promise that it tests.

    Attempts are independent: what one of them does is decided by its seed, and only the instant at which a signal
    arrives is the machine's. What attempts share is made once by the kind, never changed, and lies in `shared`.
    """

    name: ClassVar[str]
    promise: ClassVar[str]
    full: ClassVar[int]
    """How many faults the full campaign does."""

    def __init__(self, shared: Path) -> None:
        self.shared = shared

    def absent(self) -> str | None:
        """Why this kind cannot be tried here, if it cannot."""
        return None

    @abstractmethod
    def attempt(self, seed: int, place: Path) -> int:
        """Do what the seed says in the empty folder `place`; returns the number of faults.

        Raises AssertionError, or whatever the package wrongly raises, if the promise is broken.
        """
