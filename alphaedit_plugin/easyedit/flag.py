"""What `null_space` may be in a hyperparameter file: true, or a mapping of options."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..baselines.methods import ADDED, COVERED
from ..editors.hyperparameters import as_number, parse_criterion
from ..editors.sparing import Modifiers, parse_sparing
from ..errors import HyperparameterError
from ..nullspace.projection import Criterion
from ..nullspace.statistics import Preparation
from ..storage.store import Store

_CRITERION = ("threshold", "energy", "nullity")
_TEXTS = ("corpus", "path", "cache_dir")
_SWITCHES = ("fast_targets", "progress", "crisp")
KNOWN = (*_CRITERION, "tokens", *_TEXTS, *_SWITCHES, "modifiers")


@dataclass(frozen=True)
class Options:
    """How a flagged method finds its null spaces.

    `criterion` (keys threshold, energy or nullity): the method's own `nullspace_threshold` if it has one, else the
    paper's, by default. `corpus` and `tokens` as in `alphaedit prepare`; without a corpus, the .npz files below
    EasyEdit's `stats_dir`, else text that the model writes. `path`: a file of null spaces, made by `alphaedit prepare
    --out`. `cache_dir`: another cache. `fast_targets`: our target optimiser instead of `compute_z`. `progress`:
    bars on stderr while statistics are computed. `modifiers`: modifiers that are projections themselves (`revive`), so
    that they can act on what other people's editors write, each with its settings. `crisp`: `LowCurvature` in the place
    of P; `energy` is then the share of the curvature that is written into, 0.1 by default.
    """

    criterion: Criterion | None = None
    corpus: str | None = None
    tokens: int | None = None
    path: str | None = None
    cache_dir: str | None = None
    fast_targets: bool = False
    progress: bool = True
    modifiers: Modifiers = ()
    crisp: bool = False

    @property
    def preparation(self) -> Preparation:
        return Preparation(
            self.corpus,
            tokens=self.tokens,
            criterion=self.criterion,
            store=Store(self.cache_dir),
            progress=self.progress,
        )

    @classmethod
    def parse(cls, value: Any, name: str) -> Options | None:
        """None where the flag is absent or false. Raises HyperparameterError naming `name` and what is wrong."""
        if value is None or value is False:
            return None
        if value is True:
            return cls()
        if not isinstance(value, Mapping):
            raise HyperparameterError(
                f"{name}: null_space must be true, false or a mapping such as {{threshold: 2e-2}}, not {value!r}"
            )
        given = dict(value)
        for key in given:
            if key not in KNOWN:
                near = difflib.get_close_matches(str(key), KNOWN, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(KNOWN)}"
                raise HyperparameterError(f"{name}: null_space has no option {key!r}; {hint}")
        settings: dict[str, Any] = {}
        criterion = {key: given[key] for key in _CRITERION if key in given}
        if criterion:
            settings["criterion"] = parse_criterion(criterion, name)
        for key in _TEXTS:
            if key in given:
                if not isinstance(given[key], str) or not given[key]:
                    raise HyperparameterError(f"{name}: null_space.{key} must be text, not {given[key]!r}")
                settings[key] = given[key]
        for key in _SWITCHES:
            if key in given:
                if not isinstance(given[key], bool):
                    raise HyperparameterError(f"{name}: null_space.{key} must be true or false, not {given[key]!r}")
                settings[key] = given[key]
        if "modifiers" in given:
            settings["modifiers"] = parse_sparing(given["modifiers"], f"{name}: null_space.modifiers")
        if "tokens" in given:
            tokens = as_number(given["tokens"])
            if tokens is None or not 1 <= tokens < float("inf") or tokens != int(tokens):
                raise HyperparameterError(f"{name}: null_space.tokens must be a whole number, not {given['tokens']!r}")
            settings["tokens"] = int(tokens)
        if "path" in settings and (idle := sorted({*criterion, "corpus", "tokens"} & set(given))):
            raise HyperparameterError(
                f"{name}: null_space.path names null spaces that are made already: remove {', '.join(idle)}"
            )
        if settings.get("crisp") and (idle := sorted({"path", "modifiers"} & set(given))):
            raise HyperparameterError(
                f"{name}: null_space.crisp chooses directions on both sides of the weight at once, in the place of P: "
                f"remove {', '.join(idle)}"
            )
        return cls(**settings)

    def check_method(self, name: str) -> None:
        """Raises HyperparameterError for a method of EasyEdit's table that needs a P where the flag gives none."""
        if self.crisp and (name in ADDED or COVERED[name].remembers):
            raise HyperparameterError(
                f"{name}: null_space.crisp is no P, which {name} needs for its solve: leave it out, or guard a method "
                "that only writes (MEMIT, ROME, FT, …)"
            )
