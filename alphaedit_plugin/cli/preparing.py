"""What the options say of layers, text and null spaces, and the statistics that methods need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..baselines.names import is_baseline, parse_baseline
from ..comparison.preparation import Ready
from ..editors.hyperparameters import METHODS, Hyperparameters
from ..editors.variant import Variant
from ..errors import HyperparameterError
from ..nullspace.statistics import prepare_statistics, statistics_from_npz
from ..storage.store import Store
from .options import Preparing


class Wanted:
    """The options, checked before a model is loaded. Raises HyperparameterError or NullSpaceError."""

    def __init__(self, options: Preparing, cache: Path | None, quiet: bool) -> None:
        self.options = options
        self.hparams = Hyperparameters.from_yaml(options.hparams) if options.hparams else None
        self.criterion = options.criterion()
        self.store = Store(cache)
        self.progress = not quiet

    def ready(
        self,
        model: Any,
        tokenizer: Any,
        name: str,
        methods: Sequence[str],
        layers_of: Mapping[str, Sequence[int]] | None = None,
    ) -> Ready:
        """The hyperparameters and statistics of `methods` for the model called `name`.

        `layers_of` names the layers of methods whose hyperparameters are not ours.
        """
        options = self.options
        hyperparameters = {}
        for method in methods:
            variant = _ours(method)
            base = self.hparams or Hyperparameters.for_model(variant.method, model, name)
            values = variant.hyperparameters(model, name, base.with_layers(options.layers))
            hyperparameters[method] = replace(values, null_space=self.criterion) if self.criterion else values
        templates = {values.rewrite_module_tmp for values in hyperparameters.values()}
        if len(templates) > 1:
            raise HyperparameterError(f"the methods edit different modules ({templates}): compare them in two runs")
        template = templates.pop()
        budgets: dict[int | None, set[int]] = {}
        for method, values in hyperparameters.items():
            chosen = (layers_of or {}).get(method, values.layers)
            budgets.setdefault(values.tokens or options.tokens, set()).update(chosen or values.layers)
        if options.stats_dir is not None and budgets.keys() - {options.tokens}:
            raise HyperparameterError("with --stats-dir no method can choose its tokens: they are those of the files")
        statistics = {
            budget: statistics_from_npz(model, sorted(chosen), options.stats_dir, template=template)
            if options.stats_dir is not None
            else prepare_statistics(
                model,
                tokenizer,
                sorted(chosen),
                source=options.corpus,
                tokens=budget,
                template=template,
                store=self.store,
                progress=self.progress,
            )
            for budget, chosen in budgets.items()
        }
        of_method = {method: statistics[values.tokens or options.tokens] for method, values in hyperparameters.items()}

        def last_layer() -> int:
            usual = Hyperparameters.shipped_for("alphaedit", name) or Hyperparameters.derived("alphaedit", model)
            usual = (self.hparams or usual).with_layers(options.layers)
            return max(max(values.layers) for values in (usual, *hyperparameters.values()))

        return Ready(model, tokenizer, self.store, hyperparameters, of_method, last_layer)


def _ours(method: str) -> Variant:
    """The variant of ours whose layers and statistics a method has: itself, or what EasyEdit's is most like."""
    if not is_baseline(method):
        return Variant.parse(method)
    name = parse_baseline(method).method.lower()
    return Variant.parse(name if name in METHODS else "memit")
