"""Methods that an edition of EasyEdit lacks, as entries for its table: RECT, PRUNE, and in the older one AlphaEdit."""

from __future__ import annotations

import copy as copying
import importlib
import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, nn

from ..errors import HyperparameterError
from ..fingerprint import tensor_digest
from ..hparams import Hyperparameters
from ..nullspace import NullSpaces
from ..session import Session, put_back
from ..statistics import Covariance
from ..trace import evaluating
from ..variant import Variant
from .flag import Options
from .methods import ADDED, templates
from .run import runs_of
from .statistics import null_spaces_for, statistics_of

log = logging.getLogger(__name__)


def added_methods(names: Sequence[str]) -> dict[str, tuple[type, Callable[..., Any]]]:
    """name → (hyperparameter class, function for the table)."""
    return {name: (_hyperparameter_class(name), _apply(name)) for name in names}


def _hyperparameter_class(name: str) -> type:
    """MEMIT's, of this edition, under another name; AlphaEdit's has its L2 and threshold too."""
    memit: Any = importlib.import_module("easyeditor.models.memit").MEMITHyperParams

    class Added(memit):  # type: ignore[misc]
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
        made = dataclass(Added)
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
        **_: Any,
    ) -> tuple[nn.Module, dict[str, Tensor]]:
        runs = runs_of(hparams)
        run: AddedRun = runs.get(model, lambda: AddedRun(name))
        if copy:
            model = copying.deepcopy(model)
            run = run.on_copy(model)
            runs.put(model, run)
        before = run.edit(model, tok, requests, hparams)
        kept = return_orig_weights and (keep_original_weight or _restores_by_itself())
        return model, before if kept else {}

    apply.__name__ = apply.__qualname__ = f"apply_{name}_to_model"
    apply.__doc__ = f"{name}, in the form of EasyEdit's editing functions."
    return apply


class AddedRun:
    """One of our methods on one model, edited through EasyEdit.

    The invariant is `Run`'s: statistics and P are of the model at the first call, and what is remembered of earlier
    edits is that of those in the weights. `weights[i]` is a digest of what the weights are after i batches.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.session: Session | None = None
        self.weights: list[str] = []
        self._setup: Any = None

    def edit(self, model: nn.Module, tokenizer: Any, requests: Sequence[Any], hparams: Any) -> dict[str, Tensor]:
        """Writes the requests; returns the weights as they were, by name."""
        session = self._continued(model, tokenizer, hparams)
        before = {f"{p.name}.weight": p.stored.detach().clone() for p in session.projections.values()}
        with put_back(session.projections, only_on_error=True):
            session.edit(list(requests))
            session.finish()
        self.weights.append(_digest(session))
        return before

    def on_copy(self, model: nn.Module) -> AddedRun:
        """The run of a copy of the model; the two go on apart."""
        run = copying.copy(self)
        run.weights = list(self.weights)
        run.session = self.session.on_copy(model) if self.session is not None else None
        return run

    def _continued(self, model: nn.Module, tokenizer: Any, hparams: Any) -> Session:
        """The session, standing where the weights are."""
        flag = Options.parse(getattr(hparams, "null_space", None), self.name)
        options = flag or Options()
        variant = Variant.parse(ADDED[self.name] + ("+P" if flag is not None else ""))
        given = {key: value for key, value in asdict(hparams).items() if key != "null_space" and value is not None}
        values = Hyperparameters.from_mapping(given, type(hparams).__name__)
        setup = (options, variant, values)
        if self.session is None or setup != self._setup:
            if self.session is not None:
                log.warning("%s: the hyperparameters have changed: a new sequence begins", self.name)
            self._begin(model, tokenizer, hparams, options, variant, values)
            self._setup = setup
        assert self.session is not None
        now = _digest(self.session)
        if now not in self.weights:
            log.warning("%s: the weights were changed by something else: a new sequence begins", self.name)
            self._begin(model, tokenizer, hparams, options, variant, values)
        undone = len(self.weights) - 1 - max(i for i, weights in enumerate(self.weights) if weights == now)
        if undone:  # EasyEdit has put earlier weights back
            del self.weights[-undone:]
            self.session.undo(undone)
            self.session.finish()
        return self.session

    def _begin(
        self,
        model: nn.Module,
        tokenizer: Any,
        hparams: Any,
        options: Options,
        variant: Variant,
        values: Hyperparameters,
    ) -> None:
        template = templates(hparams)[0]
        arguments = (model, tokenizer, hparams, options, template, values.layers)
        spaces: NullSpaces | None = None
        covariances: dict[int, Covariance] = {}
        with evaluating(model):
            if variant.projected:
                spaces, covariances = null_spaces_for(*arguments)
            if variant.needs_covariances and not covariances:
                covariances = statistics_of(*arguments).covariances
        self.session = Session(
            model,
            tokenizer,
            variant,
            spaces,
            hyperparameters=values,
            covariances=covariances,
            check_model=False,
        )
        self.weights = [_digest(self.session)]


def _digest(session: Session) -> str:
    return " ".join(tensor_digest(projection.stored) for projection in session.projections.values())


def _restores_by_itself() -> bool:
    """Whether this edition decides by `sequential_edit` what to put back, and not by `keep_original_weight`."""
    editor = importlib.import_module("easyeditor.editors.editor").BaseEditor
    return "sequential_edit" in inspect.signature(editor.edit).parameters
