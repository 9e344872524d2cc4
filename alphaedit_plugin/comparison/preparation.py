"""Everything that a command needs before it can begin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..editors.hyperparameters import Hyperparameters
from ..nullspace.null_spaces import NullSpaces, null_spaces_of
from ..nullspace.statistics import Statistics
from ..storage.store import Store


@dataclass(frozen=True)
class Ready:
    """A model with the hyperparameters and the statistics of some methods, by the method's name."""

    model: Any
    tokenizer: Any
    store: Store
    hyperparameters_of: Mapping[str, Hyperparameters]
    statistics_of: Mapping[str, Statistics]
    last_layer: Callable[[], int]
    """The last one that AlphaEdit or any of these methods edits on this model."""

    @property
    def hyperparameters(self) -> Hyperparameters:
        """Those of the first method."""
        return next(iter(self.hyperparameters_of.values()))

    @property
    def statistics(self) -> Statistics:
        """Those of the first method."""
        return next(iter(self.statistics_of.values()))

    @cached_property
    def null_spaces(self) -> NullSpaces:
        """Those of the first method."""
        values = self.hyperparameters
        return null_spaces_of(self.statistics.of_layers(values.layers), values.null_space, store=self.store)
