"""A method of EasyEdit under the flag: what one call does, and what all calls on one model share."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..baselines.methods import COVERED, check_covered, effective, restores_by_itself, templates
from ..baselines.projected import globals_of, projectable, stacked
from ..editors.preconditions import check_editable, check_mode
from ..editors.sparing import Modifiers, Spared, narrowed
from ..editors.witness import Witness
from ..errors import HyperparameterError
from ..model.branch import branch_is_identity
from ..model.decoder import Decoder
from ..model.fingerprint import weights_digest
from ..nullspace.covariance import Covariance
from ..nullspace.guard import guards
from ..nullspace.null_spaces import NullSpaces, Spaces
from .flag import Options
from .kept import keep, kept
from .prepared import Prepared
from .private import another, lend, private_module
from .targets import fast_compute_z
from .undoable import putting

log = logging.getLogger(__name__)

Apply = Callable[..., Any]

_CALLER = "_called_by_a_flagged_method"


def constrained(name: str, original: Apply) -> Apply:
    """`original`, but with everything that it writes projected if the hyperparameters carry the flag."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def apply(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        model, hparams = call.arguments["model"], call.arguments["hparams"]
        caller: FlaggedMethod | None = vars(hparams).get(_CALLER)
        if caller is not None:
            return caller.base(original, call)
        options = flag_of(hparams, name)
        if options is None:
            return original(*args, **kwargs)
        method = kept(model, hparams, name, lambda: FlaggedMethod(name, original, call.arguments["tok"]))
        return method(call, options)

    return apply


def flag_of(hparams: Any, name: str) -> Options | None:
    """The options of the flag; SimIE's are its own or its base method's. Raises HyperparameterError if these differ."""
    own = Options.parse(getattr(hparams, "null_space", None), name)
    base = effective(hparams)
    if base is hparams:
        return own
    theirs = Options.parse(getattr(base, "null_space", None), base.alg_name)
    if own is not None and theirs is not None and own != theirs:
        raise HyperparameterError(f"{name} and its base {base.alg_name} have different null_space: leave one of them")
    return own or theirs


class FlaggedMethod:
    """One method of EasyEdit on one model, under the flag.

    Invariant: P comes from the model as it was before it was edited, and the keys that the method remembers (Kp Kpᵀ)
    are those of the edits that are in the weights: restoring weights also restores the keys.
    """

    def __init__(self, name: str, original: Apply, tokenizer: Any) -> None:
        self.name, self.method, self.original = name, COVERED[name], original
        self.module = private_module(original)
        self.base_module: ModuleType | None = None
        self.preserved = Prepared(tokenizer)
        self.checked: set[str] = set()
        self.lent: dict[str, dict[int, Covariance]] = {}
        self.spared: Spared = {}
        self.narrowed: dict[tuple[int, Modifiers], tuple[NullSpaces, NullSpaces]] = {}
        self.p: tuple[NullSpaces, Tensor] | None = None
        self.keys: EditedKeys | None = None
        self.knows_branch = False

    def __call__(self, call: inspect.BoundArguments, options: Options) -> Any:
        model, hparams = call.arguments["model"], call.arguments["hparams"]
        check_mode()
        check_covered(hparams)
        settings = effective(hparams)
        options.check_method(self.name)
        options.check_method(settings.alg_name)
        attached: dict[Decoder, Spaces[Any]] = {}
        for template in templates(hparams):
            decoder = Decoder(model, template)
            if template not in self.checked:
                check_editable(decoder, call.arguments["tok"], decoder.out_projections(settings.layers))
                self.checked.add(template)
            attached[decoder] = self._spaces(settings, options, decoder, template)
        self._say_if_it_takes_the_branch_for_another(attached)
        witness = self._witness(call, attached)
        before = self._snapshot(call, attached)
        call.arguments["hparams"] = projectable(hparams, self.method)
        lent: list[tuple[dict[str, Any], str, Any]] = []
        if options.fast_targets:
            lent.append((vars(self.module), "compute_z", self._fast_targets(call, settings, next(iter(attached)))))
        if settings is not hparams:
            lent.append((vars(settings), _CALLER, self))
        with putting(*lent):
            edited, weights = (self._remembering if self.method.remembers else self._projected)(call, attached)
        if edited is not model:  # copy=True: the copy's P is that of the original model
            keep(edited, hparams, self.name, self._moved())
        if witness is not None:
            witness.tell(next(iter(attached)) if edited is model else edited, self.name)
        return edited, weights or before

    def base(self, original: Apply, call: inspect.BoundArguments) -> Any:
        """SimIE calls its base method: under the guard that is around SimIE, with the same statistics."""
        if self.base_module is None:
            self.base_module = private_module(original)
        for template, covariances in self.lent.items():
            lend(self.base_module, covariances, call.arguments["model"], template)
        return getattr(self.base_module, original.__name__)(*call.args, **call.kwargs)

    def _spaces(self, settings: Any, options: Options, decoder: Decoder, template: str) -> Spaces[Any]:
        if options.path is None:
            self.lent[template] = self.preserved.statistics(settings, options, decoder, settings.layers).covariances
            lend(self.module, self.lent[template], decoder.model, template)
        if options.crisp:
            return self.preserved.low_curvature(settings, options, decoder, settings.layers)
        spaces = self.preserved.null_spaces(settings, options, decoder, settings.layers)
        return self._sparing(spaces, options.modifiers, decoder) if options.modifiers else spaces

    def _sparing(self, spaces: NullSpaces, modifiers: Modifiers, decoder: Decoder) -> NullSpaces:
        """`spaces`, less what these modifiers spare in the weights as they were before the first edit of a layer."""
        key = (id(spaces), modifiers)
        if key not in self.narrowed:
            narrow = narrowed(decoder, spaces, modifiers, self.spared)
            self.narrowed[key] = spaces, NullSpaces(narrow, spaces.provenance)
        return self.narrowed[key][1]

    def _say_if_it_takes_the_branch_for_another(self, attached: Mapping[Decoder, Spaces[Any]]) -> None:
        """Once: EasyEdit's methods ask an out-projection to move by what the hidden state should move by."""
        if self.knows_branch:
            return
        self.knows_branch = True
        for decoder, spaces in attached.items():
            if not branch_is_identity(decoder, list(spaces)):
                log.warning(
                    "%s scales or norms what its out-projections put out, which EasyEdit's %s does not know: its edits "
                    "come out too small or too large. Our own methods do (`alphaedit edit`, Session)",
                    type(decoder.model).__name__,
                    self.name,
                )

    def _snapshot(self, call: inspect.BoundArguments, attached: Mapping[Decoder, Spaces[Any]]) -> dict[str, Tensor]:
        """The weights before the call, for a method that does not return them though EasyEdit will ask for them."""
        if not (self.method.returns_no_weights and call.arguments.get("return_orig_weights") and restores_by_itself()):
            return {}
        return {
            f"{projection.name}.weight": projection.stored.detach().clone()
            for decoder, spaces in attached.items()
            for projection in decoder.out_projections(list(spaces)).values()
        }

    @staticmethod
    def _witness(call: inspect.BoundArguments, attached: Mapping[Decoder, Spaces[Any]]) -> Witness | None:
        decoder, spaces = next(iter(attached.items()))
        records = _records(call)
        if isinstance(records, Mapping):
            records = [records]
        return Witness.of(decoder, call.arguments["tok"], records, decoder.out_projection(max(spaces)))

    def _fast_targets(self, call: inspect.BoundArguments, settings: Any, decoder: Decoder) -> Callable[..., Tensor]:
        return fast_compute_z(self.name, self.module, decoder, call.arguments["tok"], _records(call), settings)

    def _projected(self, call: inspect.BoundArguments, attached: Mapping[Decoder, Spaces[Any]]) -> Any:
        with guards(attached, check_model=False) as guarding:
            edited, weights = getattr(self.module, self.original.__name__)(*call.args, **call.kwargs)
            guarding.include(edited)
            return edited, weights

    # ------------------------------------------------------------------------------------------ AlphaEdit's memory

    def _remembering(self, call: inspect.BoundArguments, attached: Mapping[Decoder, Spaces[Any]]) -> Any:
        """Make the call, with P and Kp Kpᵀ in the globals where the method looks for them."""
        ((decoder, spaces),) = attached.items()
        assert isinstance(spaces, NullSpaces)  # Options.check_method has seen to it
        order, forget = tuple(call.arguments["hparams"].layers), call.arguments.pop("reset_cache", False)
        before = weights_digest(decoder.out_projections(order))
        if self.p is None or self.p[0] is not spaces:
            self.p = spaces, stacked(spaces, order)
        if self.keys is not None and self.keys.order != order:
            log.warning("%s: other layers than before: the keys of earlier edits are forgotten", self.name)
        if self.keys is None or self.keys.order != order or forget:
            self.keys = EditedKeys(order, before, torch.zeros_like(self.p[1]))
        known = self.keys.recall(before)
        vars(self.module).update(globals_of(self.p[1], known.clone()))
        try:
            edited, weights = self._projected(call, attached)
            grown: Tensor = self.module.cache_c
        finally:
            del self.module.P, self.module.cache_c
        if edited is not decoder.model:
            decoder = Decoder(edited, decoder.template)
        after = weights_digest(decoder.out_projections(order))
        self.keys = self.keys.then(before, known, after, grown)
        return edited, weights

    def _moved(self) -> FlaggedMethod:
        """The state for an edited copy of the model; this state's keys return to those before the last edit."""
        moved = copy.copy(self)
        moved.module, moved.base_module = another(self.module, self.original), None
        moved.preserved, moved.lent = self.preserved.copy(), dict(self.lent)
        moved.spared, moved.narrowed = dict(self.spared), dict(self.narrowed)
        if self.keys is not None:
            self.keys = self.keys.before_last()
        return moved


def _records(call: inspect.BoundArguments) -> Any:
    """EasyEdit's functions call them one or the other."""
    return call.arguments.get("requests") or call.arguments["request"]


@dataclass(frozen=True)
class EditedKeys:
    """Kp Kpᵀ of AlphaEdit's edits, layers × d_in × d_in, by a digest of the weights that hold these edits.

    It keeps those of the unedited weights `base` (`none`, zeros), and of the weights before and after the last call.
    `order` lists the layers.
    """

    order: tuple[int, ...]
    base: str
    none: Tensor
    by_weights: tuple[tuple[str, Tensor], ...] = ()

    def recall(self, weights: str) -> Tensor:
        """Kp Kpᵀ of the edits in these weights."""
        known = dict(self.by_weights)
        if weights in known or weights == self.base:
            return known.get(weights, self.none)
        log.warning("the weights were changed by something else: the keys of all edits so far are kept in mind")
        return self.by_weights[-1][1] if self.by_weights else self.none

    def then(self, before: str, known: Tensor, after: str, grown: Tensor) -> EditedKeys:
        return replace(self, by_weights=((before, known), (after, grown)))

    def before_last(self) -> EditedKeys:
        return replace(self, by_weights=self.by_weights[:1])
