"""Turns the options into what a method needs of a model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..comparison.contender import Ground
from ..editors.hyperparameters import Hyperparameters
from ..editors.variant import Variant
from ..nullspace.null_spaces import NullSpaces, null_spaces_of
from ..nullspace.statistics import Preparation, Statistics
from ..storage.store import Store
from .loading import loaded
from .options import Loading, Preparing


def preparation_of(options: Preparing, loading: Loading, quiet: bool) -> Preparation:
    """Where statistics come from. Raises NullSpaceError for a criterion that is none."""
    return Preparation(
        options.corpus, options.stats_dir, options.tokens, options.criterion(), Store(loading.cache), not quiet
    )


def hyperparameters_of(options: Preparing) -> Hyperparameters | None:
    """The hyperparameters of the given file. Raises HyperparameterError if it cannot be read."""
    return Hyperparameters.from_yaml(options.hparams) if options.hparams else None


def statistics_of(preparation: Preparation, model: Any, tokenizer: Any, values: Hyperparameters) -> Statistics:
    """Those of the layers that these hyperparameters name, of the model as it is now."""
    return preparation.statistics(
        model, tokenizer, values.layers, tokens=values.tokens, template=values.rewrite_module_tmp
    )


@dataclass(frozen=True)
class Prepared:
    """A model with all that one method needs of it; made when it is first asked for."""

    ground: Ground
    hyperparameters: Hyperparameters

    @classmethod
    def of(cls, method: str, model: str, options: Preparing, loading: Loading, quiet: bool) -> Prepared:
        """Loads the model, once the options are known to be right."""
        variant = Variant.parse(method)
        given, preparation = hyperparameters_of(options), preparation_of(options, loading, quiet)
        ground = Ground(*loaded(model, loading), model, preparation, options.layers, given)
        return cls(ground, ground.hyperparameters_of(method, variant))

    @cached_property
    def statistics(self) -> Statistics:
        ground = self.ground
        return statistics_of(ground.preparation, ground.model, ground.tokenizer, self.hyperparameters)

    @cached_property
    def null_spaces(self) -> NullSpaces:
        criterion, store = self.hyperparameters.null_space, self.ground.preparation.store
        return null_spaces_of(self.statistics, criterion, store=store)
