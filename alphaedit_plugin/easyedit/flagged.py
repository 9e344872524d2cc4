"""A flagged method on one model: what its calls have in common, and what one call does."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..baselines.methods import COVERED, check_covered, effective, restores_by_itself, templates
from ..errors import HyperparameterError
from ..model.decoder import Decoder
from ..model.fingerprint import weights_digest
from ..nullspace.covariance import Covariance
from ..nullspace.guard import guard
from ..nullspace.null_spaces import NullSpaces
from .flag import Options
from .private import another, lend, private_module
from .registry import put_run, run_of
from .statistics import Preserved
from .targets import fast_compute_z

log = logging.getLogger(__name__)

Apply = Callable[..., Any]

_CALLER = "_called_by_a_flagged_run"


def constrained(name: str, original: Apply) -> Apply:
    """`original` as before where the hyperparameters carry no flag; otherwise all that it writes is projected."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def apply(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        model, hparams = call.arguments["model"], call.arguments["hparams"]
        caller: Run | None = vars(hparams).get(_CALLER)
        if caller is not None:
            return caller.base(original, call)
        options = flag_of(hparams, name)
        if options is None:
            return original(*args, **kwargs)
        run = run_of(model, hparams, name, lambda: Run(name, original, model, call.arguments["tok"]))
        return run(call, options)

    return apply


def flag_of(hparams: Any, name: str) -> Options | None:
    """The options of the flag; SimIE's are its own or its base method's."""
    own = Options.parse(getattr(hparams, "null_space", None), name)
    base = effective(hparams)
    if base is hparams:
        return own
    theirs = Options.parse(getattr(base, "null_space", None), base.alg_name)
    if own is not None and theirs is not None and own != theirs:
        raise HyperparameterError(f"{name} and its base {base.alg_name} have different null_space: leave one of them")
    return own or theirs


class Run:
    """One flagged method on one model.

    Invariant: P comes from the model as it was before it was edited, and the keys that the method remembers (Kp Kpᵀ)
    are those of the edits that are in the weights: whoever puts weights back takes the keys back too.
    """

    def __init__(self, name: str, original: Apply, model: nn.Module, tokenizer: Any) -> None:
        self.name, self.method, self.original = name, COVERED[name], original
        self.module = private_module(original)
        self.base_module: ModuleType | None = None
        self.preserved = Preserved(model, tokenizer)
        self.lent: dict[str, dict[int, Covariance]] = {}
        self.p: tuple[NullSpaces, Tensor] | None = None
        self.memory: Memory | None = None

    def __call__(self, call: inspect.BoundArguments, options: Options) -> Any:
        model, hparams = call.arguments["model"], call.arguments["hparams"]
        check_covered(hparams)
        settings = effective(hparams)
        spaces = [self._null_spaces(settings, options, template, model) for template in templates(hparams)]
        if self.method.by_substring:
            call.arguments["hparams"] = _naming_weights(hparams)
        before = self._snapshot(call, spaces)
        with ExitStack() as stack:
            if options.fast_targets:
                stack.enter_context(self._fast_targets(call, settings))
            if settings is not hparams:
                stack.enter_context(_put(vars(settings), _CALLER, self))
            if self.method.remembers:
                edited, weights = self._remembering(call, spaces)
            else:
                edited, weights = self._projected(call, spaces)
        if edited is not model:  # copy=True: its P is that of the model it was copied from
            put_run(edited, hparams, self.name, self._moved(edited))
        return edited, weights or before

    def base(self, original: Apply, call: inspect.BoundArguments) -> Any:
        """SimIE calls its base method: under the guard that is around SimIE, with the same statistics."""
        if self.base_module is None:
            self.base_module = private_module(original)
        for template, covariances in self.lent.items():
            lend(self.base_module, covariances, call.arguments["model"], template)
        return getattr(self.base_module, original.__name__)(*call.args, **call.kwargs)

    def _null_spaces(self, settings: Any, options: Options, template: str, model: nn.Module) -> NullSpaces:
        spaces = self.preserved.null_spaces(settings, options, template, settings.layers)
        if options.path is None:
            self.lent[template] = self.preserved.statistics(settings, options, template, settings.layers).covariances
            lend(self.module, self.lent[template], model, template)
        return spaces

    def _snapshot(self, call: inspect.BoundArguments, spaces: Sequence[NullSpaces]) -> dict[str, Tensor]:
        """The weights before the call, for a method that does not return them though EasyEdit will ask for them."""
        if not (self.method.returns_no_weights and call.arguments.get("return_orig_weights") and restores_by_itself()):
            return {}
        model = call.arguments["model"]
        return {
            f"{projection.name}.weight": projection.stored.detach().clone()
            for each in spaces
            for projection in Decoder(model, each.provenance["template"]).out_projections(list(each)).values()
        }

    @contextmanager
    def _fast_targets(self, call: inspect.BoundArguments, settings: Any) -> Iterator[None]:
        model, tokenizer = call.arguments["model"], call.arguments["tok"]
        records = call.arguments.get("requests") or call.arguments["request"]
        fast = fast_compute_z(self.name, self.module, model, tokenizer, records, settings)
        with _put(vars(self.module), "compute_z", fast):
            yield

    def _projected(self, call: inspect.BoundArguments, spaces: Sequence[NullSpaces]) -> Any:
        with ExitStack() as stack:
            for each in spaces:
                stack.enter_context(guard(call.arguments["model"], each, check_model=False))
            return getattr(self.module, self.original.__name__)(*call.args, **call.kwargs)

    # ------------------------------------------------------------------------------------------ AlphaEdit's memory

    def _remembering(self, call: inspect.BoundArguments, spaces: Sequence[NullSpaces]) -> Any:
        """The call, with P and Kp Kpᵀ in the globals where the method looks for them."""
        (space,) = spaces
        model, hparams = call.arguments["model"], call.arguments["hparams"]
        order, forget = tuple(hparams.layers), call.arguments.pop("reset_cache", False)
        before = _digest(model, space, order)
        if self.p is None or self.p[0] is not space:
            self.p = space, torch.stack([space[layer].dense().to(torch.float32) for layer in order])
        if self.memory is not None and self.memory.order != order:
            log.warning("%s: other layers than before: the keys of earlier edits are forgotten", self.name)
        if self.memory is None or self.memory.order != order or forget:
            self.memory = Memory(order, before, torch.zeros_like(self.p[1]))
        known = self.memory.recall(before)
        call.arguments["hparams"] = hparams = copy.copy(hparams)
        hparams.P_loc = os.devnull  # a file that exists: otherwise P would be computed
        vars(self.module).update(P=self.p[1], P_loaded=True, cache_c=known.clone(), cache_c_new=True)
        try:
            edited, weights = self._projected(call, spaces)
            after: Tensor = self.module.cache_c
        finally:
            del self.module.P, self.module.cache_c
        self.memory = self.memory.then(before, known, _digest(edited, space, order), after)
        return edited, weights

    def _moved(self, edited: nn.Module) -> Run:
        """The run of a copy that was edited; this one's memory is as if it had not been."""
        moved = copy.copy(self)
        moved.module, moved.base_module = another(self.module, self.original), None
        moved.preserved, moved.lent = self.preserved.of_copy(edited), dict(self.lent)
        if self.memory is not None:
            self.memory = self.memory.before_last()
        return moved


@dataclass(frozen=True)
class Memory:
    """Kp Kpᵀ of AlphaEdit's edits, layers × d_in × d_in, by the weights that hold these edits.

    Known are those of the weights `base`, where nothing is edited (`none`, zeros), and of those before and after the
    last call.
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

    def then(self, before: str, known: Tensor, after: str, grown: Tensor) -> Memory:
        return replace(self, by_weights=((before, known), (after, grown)))

    def before_last(self) -> Memory:
        return replace(self, by_weights=self.by_weights[:1])


def _digest(model: nn.Module, spaces: NullSpaces, order: Sequence[int]) -> str:
    return weights_digest(Decoder(model, spaces.provenance["template"]).out_projections(order))


def _naming_weights(hparams: Any) -> Any:
    """FT and DINM train every parameter whose name holds the template: with it, a bias that nothing would project."""
    named = copy.copy(hparams)
    named.rewrite_module_tmp = named.rewrite_module_tmp.removesuffix(".weight") + ".weight"
    return named


@contextmanager
def _put(table: dict[str, Any], key: str, value: Any) -> Iterator[None]:
    """An entry for as long as the block lasts."""
    before = table.get(key, _put)
    table[key] = value
    try:
        yield
    finally:
        if before is _put:
            table.pop(key, None)
        else:
            table[key] = before
