"""What a measurement yields, and the interface of everything that measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from .facts import Fact

RESAMPLES, SEED = 2000, 0


@dataclass(frozen=True)
class Estimate:
    """A number, with the ends of its 95 % bootstrap interval if it has a finite one. Shares go from 0 to 1."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Measured:
    """`estimates` by metric (`metrics.METRICS`), and the data behind them.

    `records` has one mapping of JSON's types for each item (fact, task example, prompt), in the items' order. `tensors`
    holds what would be too long as JSON.
    """

    estimates: dict[str, Estimate]
    records: list[dict[str, Any]] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)


class Measure(Protocol):
    """One kind of measurement on a model as it is.

    Invariant: it leaves the model, and torch's and Python's random states, as they were, and always gives the same
    result for the same model.
    """

    name: str
    """Its name in a comparison, and the name of its files."""

    def identity(self) -> Mapping[str, Any]:
        """All that determines the result besides model and facts, in JSON's types: settings, prompts, data."""
        ...

    def __call__(
        self,
        model: nn.Module,
        tokenizer: Any,
        facts: Sequence[Fact],
        before: Measured | None,
        *,
        progress: bool = False,
    ) -> Measured:
        """Measure the model after `facts`, those written so far, were written into it.

        `before` is what this measure found on the model before any edit; None while that is being measured. It was
        measured with all facts of the comparison, and `facts` are the first of these.
        """
        ...


def mean_of(values: Sequence[float]) -> Estimate | None:
    """The mean of the values that are not nan, with its interval; None if there are none."""
    known = [value for value in values if not isnan(value)]
    return estimate(np.asarray(known), lambda sample: sample.mean(-1)) if known else None


def estimate(
    items: NDArray[Any], statistic: Callable[[NDArray[Any]], NDArray[Any]], *, level: float = 0.95
) -> Estimate:
    """`statistic` of `items` with its percentile bootstrap interval (Efron & Tibshirani 1993, 13.3).

    `items` is n or n × k (one row per item). `statistic` gets the resampled items, resamples × n (× k), and reduces
    each resample to a number. The resamples are always the same.
    """
    chosen = np.random.default_rng(SEED).integers(0, len(items), (RESAMPLES, len(items)))
    value, resampled = float(statistic(items[None])[0]), statistic(items[chosen])
    if not np.isfinite(resampled).all():
        return Estimate(value)
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high))
