"""A flagged method on one model: what its calls have in common, and what one call does."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..editors.targets import optimise_targets
from ..errors import HyperparameterError
from ..fingerprint import tensor_digest
from ..hook import guard, is_guarded
from ..hparams import TargetSettings
from ..modules import Decoder
from ..nullspace import NullSpaces
from ..requests import Request, parse_requests
from ..statistics import Covariance
from ..trace import evaluating
from .flag import Options
from .methods import COVERED, check_covered, layers, templates
from .private import private_module
from .statistics import null_spaces_for

log = logging.getLogger(__name__)

Apply = Callable[..., Any]


def constrained(name: str, original: Apply) -> Apply:
    """`original` as before where the hyperparameters carry no flag; otherwise all that it writes is projected."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def apply(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        model, hparams = call.arguments["model"], call.arguments["hparams"]
        options = Options.parse(getattr(hparams, "null_space", None), name)
        if options is None and getattr(hparams, "base_method", None) is not None:  # SimIE's updates, its base's flag
            options = Options.parse(getattr(hparams.base_hparams, "null_space", None), name)
        if options is None or _under_guard(model, hparams):
            return original(*args, **kwargs)
        return runs_of(hparams).of(name, original, model)(call, options)

    return apply


class Runs:
    """The runs of one hyperparameter object, by model. An editor has its own object; a copy of it begins anew."""

    def __init__(self) -> None:
        self._of: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()

    def of(self, name: str, original: Apply, model: nn.Module) -> Run:
        return self.get(model, lambda: Run(name, original))

    def get(self, model: nn.Module, make: Callable[[], Any]) -> Any:
        if model not in self._of:
            self._of[model] = make()
        return self._of[model]

    def put(self, model: nn.Module, run: Any) -> None:
        self._of[model] = run

    def __deepcopy__(self, memo: dict[int, Any]) -> Runs:
        return Runs()

    def __reduce__(self) -> tuple[Any, ...]:
        return Runs, ()


def runs_of(hparams: Any) -> Runs:
    found: Runs = vars(hparams).setdefault("_null_space_runs", Runs())
    return found


class Run:
    """One flagged method on one model.

    Invariant: P comes from the model as it was at the first call, and the keys that the method remembers (Kp Kpᵀ) are
    those of the edits that are in the weights: whoever puts weights back takes the keys back too.
    """

    def __init__(self, name: str, original: Apply) -> None:
        self.name, self.method = name, COVERED[name]
        self.module = private_module(original)
        self.function: Apply = getattr(self.module, original.__name__)
        self.options: Options | None = None
        self.spaces: dict[str, NullSpaces] = {}
        self.p: Tensor | None = None
        self.memory: Memory | None = None

    def __call__(self, call: inspect.BoundArguments, options: Options) -> Any:
        model, tokenizer, hparams = (call.arguments[key] for key in ("model", "tok", "hparams"))
        check_covered(hparams)
        self._prepare(model, tokenizer, hparams, options)
        if options.fast_targets:
            records = call.arguments.get("requests") or call.arguments["request"]
            vars(self.module)["compute_z"] = self._fast_targets(model, tokenizer, records, hparams)
        result = self._remembering(call, model, hparams) if self.method.remembers else self._projected(call, model)
        edited = result[0]
        if edited is not model:  # copy=True: its P is that of the model it was copied from
            runs_of(hparams).put(edited, self._moved())
        return result

    def _lend(self, covariances: Mapping[int, Covariance], model: Any, template: str) -> None:
        """The method needs no statistics of its own, and no Wikipedia to make them from: it finds C in its cache."""
        cache: dict[tuple[str, str], Tensor] = vars(self.module).get("COV_CACHE", {})
        for layer, covariance in covariances.items():
            key = (model.config._name_or_path.replace("/", "_"), template.format(layer))
            cache.setdefault(key, covariance.matrix.to("cpu", torch.float32))

    def _projected(self, call: inspect.BoundArguments, model: nn.Module) -> Any:
        with ExitStack() as stack:
            for spaces in self.spaces.values():
                stack.enter_context(guard(model, spaces, check_model=False))
            return self.function(*call.args, **call.kwargs)

    def _prepare(self, model: nn.Module, tokenizer: Any, hparams: Any, options: Options) -> None:
        if options != self.options:
            self.spaces, self.p = {}, None
        wanted = layers(hparams)
        for template in templates(hparams):
            known = self.spaces.get(template)
            if known is None or not set(wanted) <= set(known):  # DINM chooses another layer for every request
                with evaluating(model):
                    found, covariances = null_spaces_for(model, tokenizer, hparams, options, template, wanted)
                self._lend(covariances, model, template)
                self.spaces[template] = NullSpaces({**(known or {}), **found}, found.provenance)
        self.options = options

    # ------------------------------------------------------------------------------------------ AlphaEdit's memory

    def _remembering(self, call: inspect.BoundArguments, model: nn.Module, hparams: Any) -> Any:
        """The call, with P and Kp Kpᵀ in the globals where the method looks for them."""
        order, forget = tuple(layers(hparams)), call.arguments.pop("reset_cache", False)
        before = self._digest(model, order)
        if self.p is None or self.memory is None or self.memory.order != order:
            (spaces,) = self.spaces.values()
            self.p = torch.stack([spaces[layer].dense().to(torch.float32) for layer in order])
        if self.memory is None or self.memory.order != order or forget:
            self.memory = Memory(order, before, torch.zeros_like(self.p))
        known = self.memory.recall(before)
        call.arguments["hparams"] = hparams = copy.copy(hparams)
        hparams.P_loc = os.devnull  # a file that exists: otherwise P would be computed
        vars(self.module).update(P=self.p, P_loaded=True, cache_c=known.clone(), cache_c_new=True)
        try:
            result = self._projected(call, model)
            after: Tensor = self.module.cache_c
        finally:
            del self.module.P, self.module.cache_c
        self.memory = self.memory.then(before, known, self._digest(result[0], order), after)
        return result

    def _moved(self) -> Run:
        """The run of a copy that was edited; this one's memory is as if it had not been."""
        moved = copy.copy(self)
        if self.memory is not None:
            self.memory = self.memory.before_last()
        return moved

    def _digest(self, model: nn.Module, order: Sequence[int]) -> str:
        (template,) = self.spaces
        projections = Decoder(model, template).out_projections(order).values()
        return " ".join(tensor_digest(projection.stored) for projection in projections)

    # ------------------------------------------------------------------------------------------------ fast targets

    def _fast_targets(self, model: nn.Module, tokenizer: Any, records: Any, hparams: Any) -> Apply:
        """A `compute_z` that knows the answers: all requests are optimised at once, before anything is written.

        Raises HyperparameterError where the method's targets are not those that we optimise.
        """
        last = len(Decoder(model)) - 1
        if not self.method.standard_targets:
            able = ", ".join(name for name, method in COVERED.items() if method.standard_targets)
            raise HyperparameterError(
                f"fast_targets stand in for MEMIT's compute_z, which {self.name} does not use (those that do: {able})"
            )
        if hparams.v_loss_layer != last or hparams.fact_token != "subject_last":
            raise HyperparameterError(
                f"fast_targets need v_loss_layer {last} (the last layer) and fact_token subject_last, not "
                f"{hparams.v_loss_layer} and {hparams.fact_token}: change them, or remove fast_targets"
            )
        requests = [_anonymous(request) for request in parse_requests(records)]
        contexts = [each for group in self.module.get_context_templates(model, tokenizer) for each in group]
        settings = TargetSettings(
            steps=hparams.v_num_grad_steps,
            lr=hparams.v_lr,
            weight_decay=hparams.v_weight_decay,
            kl_factor=hparams.kl_factor,
            clamp=hparams.clamp_norm_factor,
            reduced_precision=bool(getattr(hparams, "reduced_precision", False)),
        )
        with evaluating(model):
            found = optimise_targets(model, tokenizer, requests, contexts, layers(hparams)[-1], settings)
        known = dict(zip(requests, found.z_star, strict=True))

        def compute_z(model: Any, tok: Any, request: Mapping[str, Any], *_: Any, **__: Any) -> Tensor:
            return known[_anonymous(Request.parse(request, "the request"))]

        return compute_z


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


def _anonymous(request: Request) -> Request:
    return Request(request.prompt, request.subject, request.target_new)


def _under_guard(model: nn.Module, hparams: Any) -> bool:
    """Whether this call is made by another flagged one: SimIE calls its base method."""
    return any(
        is_guarded(projection)
        for template in templates(hparams)
        for projection in Decoder(model, template).out_projections(layers(hparams)).values()
    )
