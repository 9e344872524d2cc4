"""A budget of time that even a long computation keeps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from torch import nn

from ..model.trace import hooks
from ..restoring import restoring


class BudgetOver(Exception):
    """The time is up. Whatever was under way has been taken back."""


class Budget:
    """Seconds that count from its making."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.started = seconds, time.monotonic()

    @property
    def spent(self) -> float:
        return time.monotonic() - self.started

    @property
    def left(self) -> float:
        return self.seconds - self.spent

    @restoring
    def enforced(self, model: nn.Module) -> Iterator[None]:
        """Inside the block, a forward pass of `model` that begins after the time raises BudgetOver."""

        def check(_module: nn.Module, _args: Any) -> None:
            if self.left <= 0:
                raise BudgetOver

        with hooks(before=[(model, check)]):
            yield
