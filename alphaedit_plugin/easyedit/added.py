"""Methods that an edition of EasyEdit lacks, as entries for its table: RECT, PRUNE, and in the older one AlphaEdit."""

from __future__ import annotations

import copy as copying
import importlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, nn

from ..baselines.edition import PACKAGE
from ..baselines.methods import ADDED, restores_by_itself, templates
from ..editors.changes import show_changes
from ..editors.hyperparameters import ADAM, Hyperparameters
from ..editors.variant import Variant
from ..errors import HyperparameterError
from ..model.decoder import Decoder
from ..model.fingerprint import weights_digest
from ..nullspace.covariance import Covariance
from ..nullspace.null_spaces import NullSpaces
from ..session.session import Session
from .flag import Options
from .kept import keep, kept
from .prepared import Prepared

log = logging.getLogger(__name__)


def added_methods(names: Sequence[str]) -> dict[str, tuple[type, Callable[..., Any]]]:
    """name → (hyperparameter class, function for the table)."""
    return {name: (_hyperparameter_class(name), _apply(name)) for name in names}


def _hyperparameter_class(name: str) -> type:
    """The MEMIT class of this edition under another name; for AlphaEdit also with its L2 and threshold."""
    memit: Any = importlib.import_module(f"{PACKAGE}.models.memit").MEMITHyperParams

    @dataclass
    class Added(memit):  # type: ignore[misc]
        reduced_precision: bool = False  # targets in bfloat16, as in the files that we ship

        @classmethod
        def from_hparams(cls, hparams_name_or_path: str) -> Any:
            path = Path(hparams_name_or_path)
            path = path if path.suffix in (".yaml", ".yml") else path.with_name(path.name + ".yaml")
            try:
                config = yaml.safe_load(path.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError, yaml.YAMLError) as failure:
                raise HyperparameterError(f"cannot read {path}: {failure}") from failure
            if not isinstance(config, dict) or config.get("alg_name") != name:
                raise HyperparameterError(f"{path} must say alg_name: {name}")
            return cls(**memit.construct_float_from_scientific_notation(config))

    if name == "AlphaEdit":

        @dataclass
        class AlphaEdit(Added):
            L2: float = 10.0
            nullspace_threshold: float = 2e-2
            P_loc: str = ""

        made: type = AlphaEdit
    else:
        made = Added
    made.__name__ = made.__qualname__ = f"{name}HyperParams"
    made.__module__ = "alphaedit_plugin.easyedit"
    made.__doc__ = f"Hyperparameters of {name}, which this edition of EasyEdit lacks."
    return made


def _apply(name: str) -> Callable[..., Any]:
    def apply(
        model: nn.Module,
        tok: Any,
        requests: Sequence[Any],
        hparams: Any,
        copy: bool = False,
        return_orig_weights: bool = False,
        keep_original_weight: bool = False,
        reset_cache: bool = False,
        **_: Any,
    ) -> tuple[nn.Module, dict[str, Tensor]]:
        method = kept(model, hparams, name, lambda: AddedMethod(name, model, tok))
        if copy:
            model = copying.deepcopy(model)
            method = method.of_copy(model)
            keep(model, hparams, name, method)
        if reset_cache:
            method.session = None
        before = method.edit(requests, hparams)
        wanted = return_orig_weights and (keep_original_weight or restores_by_itself())
        return model, before if wanted else {}

    apply.__name__ = apply.__qualname__ = f"apply_{name}_to_model"
    apply.__doc__ = f"{name}, in the form of EasyEdit's editing functions."
    return apply


class AddedMethod:
    """One of our methods on one model, edited through EasyEdit.

    Invariant: statistics and P come from the model before the first call, and the session's history contains exactly
    the edits that are in the weights. `weights[i]` is a digest of the weights after i batches.
    """

    def __init__(self, name: str, model: nn.Module, tokenizer: Any) -> None:
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self.preserved = Prepared(tokenizer)
        self.session: Session | None = None
        self.weights: list[str] = []
        self._setup: Any = None

    def edit(self, requests: Sequence[Any], hparams: Any) -> dict[str, Tensor]:
        """Write the requests; returns the weights before the call, by name."""
        session = self._continued(hparams)
        before = {f"{p.name}.weight": p.stored.detach().clone() for p in session.projections.values()}
        with session.transaction():
            verdicts = session.edit(list(requests), on_failure="allow")
            session.finish()
        if session.finished:  # what is damped may be said no longer
            verdicts = session.verdicts(verdicts)
        verdicts.log(log, self.name)
        self.weights.append(weights_digest(session.projections))
        return before

    def of_copy(self, model: nn.Module) -> AddedMethod:
        """The same for a copy of the model; the two go on independently."""
        other = copying.copy(self)
        other.model, other.weights, other.preserved = model, list(self.weights), self.preserved.copy()
        other.session = self.session.on_copy(model) if self.session is not None else None
        return other

    def _continued(self, hparams: Any) -> Session:
        """The session whose last edit is the last one in the weights; a new session if none fits."""
        flag = Options.parse(getattr(hparams, "null_space", None), self.name)
        if flag is not None:
            flag.check_method(self.name)
        marks = [*(name for name, _ in flag.modifiers), "P"] if flag is not None else []
        settings = {key: value for _, of in flag.modifiers for key, value in of} if flag is not None else {}
        variant = Variant.parse("+".join([ADDED[self.name] + show_changes(settings), *marks]))
        given = {key: value for key, value in asdict(hparams).items() if key != "null_space" and value is not None}
        values = Hyperparameters.from_mapping({"target_optimiser": ADAM, **given}, type(hparams).__name__)  # EasyEdit's
        spaces, covariances = self._preserved(hparams, flag or Options(), variant, values)
        setup = (variant, values, id(spaces))
        if self.session is not None and setup != self._setup:
            log.warning("%s: the hyperparameters have changed: a new sequence begins", self.name)
            self.session = None
        now = weights_digest(self.session.projections) if self.session is not None else ""
        if self.session is not None and now not in self.weights:
            log.warning("%s: the weights were changed by something else: a new sequence begins", self.name)
            self.session = None
        if self.session is None:
            self.session = Session(
                self.model,
                self.tokenizer,
                variant,
                spaces,
                hyperparameters=values,
                covariances=covariances,
                check_model=False,
            )
            now = weights_digest(self.session.projections)
            self.weights, self._setup = [now], setup
        undone = len(self.weights) - 1 - max(i for i, weights in enumerate(self.weights) if weights == now)
        if undone:  # EasyEdit has put earlier weights back
            with self.session.transaction():
                self.session.undo(undone)
                self.session.finish()
            del self.weights[-undone:]
        return self.session

    def _preserved(
        self, hparams: Any, options: Options, variant: Variant, values: Hyperparameters
    ) -> tuple[NullSpaces | None, dict[int, Covariance]]:
        """The null spaces and covariances that the method needs."""
        (template,) = templates(hparams)
        arguments = (hparams, options, Decoder(self.model, template), values.layers)
        spaces = self.preserved.null_spaces(*arguments) if variant.projected else None
        needed = variant.needs_covariances or (spaces is not None and options.path is None)
        return spaces, self.preserved.statistics(*arguments).covariances if needed else {}
