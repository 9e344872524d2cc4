"""A user's function in a comparison: any editor, plain and projected.

    def edit(model, tokenizer, requests, *, steps=25): ...

It is called batch after batch with the model as the last call left it, and edits it in place, or returns a model, which
then replaces it. Each request has `prompt` (with "{}" where the subject goes), `subject`, `target_new`, `text` (the
prompt with its subject) and `case_id`; `vars(request)` is the same as a mapping. It may write any weight. It works on a
copy of the comparison's model, with gradients enabled and known random states, so that a run can be repeated. A run
that was killed measures nothing twice, but starts this editor from the beginning.
"""

from __future__ import annotations

import copy
import functools
import logging
import time
import traceback
from collections.abc import Generator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..baselines.isolation import seeded
from ..editors.hyperparameters import Hyperparameters
from ..editors.requests import Request
from ..editors.variant import Variant
from ..errors import EditError
from ..model.decoder import Decoder
from ..nullspace.guard import guard
from ..nullspace.null_spaces import NullSpaces, null_spaces_of
from ..nullspace.statistics import Statistics
from ..session.change import outside
from .contender import Contender, Entry, Ground, Needs, Stop, Workplace
from .course import Course
from .editing_function import EditingFunction

log = logging.getLogger(__name__)

_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}
"""The share of ‖ΔW‖ that rounding may leave outside the null space; in 16 bits it is not checked."""


class YourEditor(Contender):
    """`my_editor.py:edit`, `package.module:edit@steps=10+P`, or a function object with a name."""

    def __init__(self, called: EditingFunction, projected: bool = False) -> None:
        self.called, self.projected = called, projected
        self.name = f"{called.name}{'+P' if projected else ''}"

    def needs(self, ground: Ground) -> Needs:
        values = ground.hyperparameters_of(self.name, Variant.parse("alphaedit"))
        return Needs(values, values.layers)

    def enter(self, ground: Ground, needs: Needs, statistics: Statistics) -> Entry:
        spaces = None
        if self.projected:
            of_layers = statistics.of_layers(needs.layers)
            spaces = null_spaces_of(of_layers, needs.values.null_space, store=ground.preparation.store)
            spaces.check(ground.model)
        return _YourEntry(ground, self.name, self.called, needs.values, statistics, spaces)


@dataclass
class _YourEntry(Entry):
    ground: Ground
    name: str
    called: EditingFunction
    hyperparameters: Hyperparameters
    statistics: Statistics
    null_spaces: NullSpaces | None

    def __post_init__(self) -> None:
        self.layers = self.hyperparameters.layers
        self._source = self.called.source()

    @property
    def identity(self) -> Mapping[str, Any]:
        criterion = str(self.hyperparameters.null_space) if self.null_spaces is not None else None
        return {"editor": self._source, "settings": dict(self.called.settings), "criterion": criterion}

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"layers": list(self.layers), **self.identity}

    def run(self, course: Course, together: Sequence[Any], place: Workplace) -> Generator[Stop, None, None]:
        start = self.ground.model
        model = copy.deepcopy(start).requires_grad_(True)  # like a model that was just loaded
        tokenizer = copy.deepcopy(self.ground.tokenizer)
        called, written, seconds = self.called.fresh(), 0, 0.0
        bar = tqdm(total=course.checkpoints[-1].edits, desc=self.name, unit="fact", disable=not place.progress)
        with bar:
            for index, batch in enumerate(course.batches, 1):
                started = time.perf_counter()
                model = self._edit(called, model, tokenizer, batch, written)
                seconds += time.perf_counter() - started
                written += len(batch)
                bar.update(len(batch))
                if index in course.by_batch:
                    base, now = self._written(start, model)
                    yield Stop(self.name, course.by_batch[index], model, seconds, base, now)

    def _edit(self, called: EditingFunction, model: Any, tokenizer: Any, requests: list[Request], written: int) -> Any:
        """One call. Raises EditError if it fails, naming file and line, or if it leaves a weight that is not finite."""
        guarded = guard(model, self.null_spaces, check_model=False) if self.null_spaces else nullcontext()
        try:
            with seeded(written), torch.enable_grad(), guarded:
                returned = called(model, tokenizer, list(requests))
        except Exception as failure:  # the user's code may raise anything
            raise EditError(f"{self.name} failed {_where(failure, called)}: {_said(failure)}") from failure
        edited = returned[0] if isinstance(returned, tuple) and returned else returned
        edited = edited if isinstance(edited, nn.Module) else model
        if not all(torch.isfinite(parameter).all() for parameter in edited.parameters()):
            raise EditError(f"{self.name} left weights that are not finite")
        if self.null_spaces is not None:
            self._check_projected(edited)
        return edited

    @functools.cached_property
    def _warned(self) -> set[str]:
        return set()

    def _check_projected(self, edited: Any) -> None:
        """Raises EditError if the edit should be projected and is not; warns about weights that P does not reach."""
        assert self.null_spaces is not None
        base, now = self._written(self.ground.model, edited)
        for layer, weight in now.items():
            if layer not in self.null_spaces:
                self._warn(f"writes layer {layer} too, of which there is no P: name the layers with --layers")
                continue
            share = outside(base[layer], weight, self.null_spaces[layer])
            if share > _ROUNDING.get(weight.dtype, 1.0):
                raise EditError(
                    f"{self.name}: {share:.0%} of the change of layer {layer} is outside the null space: write to the "
                    "model that the editor is given, in place, or to a copy of it"
                )
        known = {projection.name for projection in _projections(self.ground.model, self._template).values()}
        before = dict(self.ground.model.named_parameters())
        others = [
            name
            for name, parameter in edited.named_parameters()
            if name.removesuffix(".weight") not in known
            and (name not in before or not torch.equal(parameter.detach(), before[name].to(parameter.device)))
        ]
        if others:
            self._warn(f"writes weights that are no out-projections, which P does not reach: {others[0]}, …")

    def _warn(self, what: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            log.warning("%s %s", self.name, what)

    @property
    def _template(self) -> str | None:
        template: str | None = self.statistics.provenance.get("template")
        return template

    def _written(self, start: Any, edited: Any) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Out-projections before and after: those of `layers`, and all others that have changed."""
        before = _projections(start, self._template)
        try:
            after = {layer: of.matrix for layer, of in _projections(edited, self._template).items()}
        except Exception:  # it returned a model of another structure
            return {}, {}
        chosen = {
            layer: weight
            for layer, weight in after.items()
            if before[layer].matrix.shape == weight.shape
            and (layer in self.layers or not torch.equal(before[layer].matrix, weight))
        }
        return {layer: before[layer].matrix for layer in chosen}, chosen


def _projections(model: Any, template: str | None) -> dict[int, Any]:
    decoder = Decoder(model, template)
    return decoder.out_projections(range(len(decoder)))


def _where(failure: Exception, called: EditingFunction) -> str:
    """The last line of the editor's own code that was running."""
    frames = traceback.extract_tb(failure.__traceback__)
    own = [frame for frame in frames if called.owns(Path(frame.filename))] or frames
    last = own[-1]
    return f"in {last.filename}, line {last.lineno}, in {last.name}"


def _said(failure: Exception) -> str:
    return f"{type(failure).__name__}: {failure}" if str(failure) else type(failure).__name__
