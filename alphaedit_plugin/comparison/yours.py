"""A function of the user's in a comparison: any editor, plain and projected.

    def edit(model, tokenizer, requests, *, steps=25): ...

It is called batch after batch with the model as the last call left it. It edits that model in place, or returns a
model, which then is the one that goes on. Each request has `prompt` (with "{}" where the subject goes), `subject`,
`target_new`, `text` (the prompt with its subject), `completion` (what is to follow the text, with the space that
belongs before it) and `case_id`; `vars(request)` is the same as a mapping. In a chat, the text is that of the chat
template up to where the answer begins. It may write any weight. It works on a copy of the comparison's model, with
gradients allowed, and with seeded random states, so that a run can be repeated. A run that
was killed measures nothing twice, but starts this editor from the first batch.
"""

from __future__ import annotations

import copy
import logging
import time
import traceback
from collections.abc import Generator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..editors.chat import Chat, plain
from ..editors.hyperparameters import Hyperparameters
from ..editors.requests import Request
from ..editors.variant import Variant
from ..errors import EditError
from ..model.decoder import Decoder, OutProjection
from ..model.gradients import gradients
from ..model.undisturbed import seeded, undisturbed
from ..nullspace.guard import guard
from ..nullspace.projection import Allowed
from ..nullspace.statistics import Statistics
from ..visible import visible
from .contender import Contender, Entry, Ground, Needs, Stop, Workplace
from .course import Course
from .editing_function import EditingFunction
from .restraint import Restrained, Restraint

log = logging.getLogger(__name__)

_SHARE, _ROUNDINGS = 1e-4, 4
"""What may be outside of what is allowed: a share of ‖ΔW‖, and so many times the rounding of W to its own precision."""


class YourEditor(Contender):
    """`my_editor.py:edit`, `package.module:edit@steps=10+revive+P`, or a function itself under a name."""

    def __init__(self, called: EditingFunction, restraint: Restraint | None = None) -> None:
        self.called, self.restraint = called, restraint or Restraint()
        self.name = f"{called.name}{self.restraint}"

    @property
    def projected(self) -> bool:
        return self.restraint.projected

    def needs(self, ground: Ground) -> Needs:
        values = ground.hyperparameters_of(self.name, Variant.parse("alphaedit"))
        return Needs(values, values.layers)

    def enter(self, ground: Ground, needs: Needs, statistics: Statistics) -> Entry:
        held = Restrained.of(self.restraint, ground, needs.values, statistics)
        return _YourEntry(ground, self.name, self.called, needs.values, statistics, held)


@dataclass
class _YourEntry(Entry):
    ground: Ground
    name: str
    called: EditingFunction
    hyperparameters: Hyperparameters
    statistics: Statistics
    held: Restrained | None
    warned: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.layers = self.watched = self.hyperparameters.layers
        self._identity = self.called.identity  # of the code as it was loaded
        self.null_spaces = self.held.null_spaces if self.held is not None else None

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"editor": self._identity, **(self.held.identity if self.held is not None else {"criterion": None})}

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"layers": list(self.layers), **self.identity}

    def run(self, course: Course, together: Sequence[Entry], place: Workplace) -> Generator[Stop, None, None]:
        start = self.ground.model
        model = copy.deepcopy(start).requires_grad_(True)  # as a model that was just loaded
        tokenizer = copy.deepcopy(plain(self.ground.tokenizer))
        called, written, seconds = self.called.fresh(), 0, 0.0
        place.bar.set_description(visible(self.name))
        for index, batch in enumerate(course.batches, 1):
            started = time.perf_counter()
            model = self._edit(called, model, tokenizer, batch, written)
            seconds += time.perf_counter() - started
            written += len(batch)
            place.bar.update(len(batch))
            if index in course.by_batch:
                base, now = self._written(model)
                for entry in together:
                    yield Stop(entry.name, course.by_batch[index], model, seconds, base, now)

    def _edit(
        self, called: EditingFunction, model: Any, tokenizer: Any, requests: list[Request], written: int
    ) -> nn.Module:
        """One call. Raises EditError, naming file and line, if it fails or leaves a model that cannot be measured."""
        guarded = guard(model, self.held.spaces, check_model=False) if self.held else nullcontext()
        before = _sums(model)
        if isinstance(chat := self.ground.tokenizer, Chat):
            requests = [replace(request, prompt=chat.written_out(request.prompt)) for request in requests]
        try:
            with seeded(written), undisturbed(), gradients(True), guarded:
                returned = called(model, tokenizer, list(requests))
        except (Exception, SystemExit) as failure:  # another person's code: anything may come
            raise EditError(f"{self.name} failed {_where(failure, called)}: {_said(failure)}") from failure
        edited = self._edited(model, returned)
        if not all(torch.isfinite(parameter).all() for parameter in edited.parameters()):
            raise EditError(f"{self.name} left weights that are not finite")
        if _sums(edited) == before:
            self._warn("left every weight as it was, at least once")
        if self.held is not None:
            self._check_held(edited, self.held)
        return edited

    def _edited(self, model: nn.Module, returned: Any) -> nn.Module:
        """The model to go on with: the one that was returned, by itself or in a tuple, or the one edited in place."""
        given = returned if isinstance(returned, tuple) else (returned,)
        models = [each for each in given if isinstance(each, nn.Module)]
        if len(models) > 1:
            raise EditError(f"{self.name} returned {len(models)} models: return the edited one only")
        return models[0] if models else model

    def _check_held(self, edited: nn.Module, held: Restrained) -> None:
        """Raises EditError for an edit that is not where its name says; warns of what no guard reaches."""
        base, now = self._written(edited)
        spaces = held.spaces
        if missing := sorted(set(spaces) - set(now)):
            raise EditError(
                f"{self.name}: the out-projections of layers {missing} are not found in the model any more, so nothing "
                "can be projected: edit the weights that are there"
            )
        for layer, weight in now.items():
            if layer not in spaces:
                self._warn(
                    f"writes layer {layer} too, which {held.marks} does not reach: name the layers with --layers"
                )
            elif (share := _outside(base[layer], weight, spaces[layer])) > 0:
                raise EditError(
                    f"{self.name}: {share:.0%} of the change of layer {layer} is outside {held.where}: write to the "
                    "model that the editor is given, in place, or to a copy of it"
                )
        known = {f"{of.name}.weight" for of in _projections(self.ground.model, self._template).values()}
        before = dict(self.ground.model.named_parameters())
        others = [
            name
            for name, parameter in edited.named_parameters()
            if name not in known and (name not in before or not _same(parameter.detach(), before[name]))
        ]
        if others:
            self._warn(f"writes weights that are no out-projections, which {held.marks} does not reach: {others[0]}, …")
        if _hooks(edited) > _hooks(self.ground.model):
            self._warn(f"leaves hooks on the model, which {held.marks} does not reach")

    def _warn(self, what: str) -> None:
        if what not in self.warned:
            self.warned.add(what)
            log.warning("%s %s", self.name, what)

    @property
    def _template(self) -> str | None:
        template: str | None = self.statistics.provenance.get("template")
        return template

    def _written(self, edited: nn.Module) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Out-projections before and after: those of `layers`, and all others that have changed.

        A model that is built otherwise than the one that it began as has none of them.
        """
        before = _projections(self.ground.model, self._template)
        try:
            after = {layer: of.matrix for layer, of in _projections(edited, self._template).items()}
        except Exception:  # adapters in the place of matrices, another kind of model
            return {}, {}
        chosen = {
            layer: weight
            for layer, weight in after.items()
            if layer in before
            and before[layer].matrix.shape == weight.shape
            and (layer in self.layers or not _same(weight, before[layer].matrix))
        }
        return {layer: before[layer].matrix for layer in chosen}, chosen


def _projections(model: Any, template: str | None) -> dict[int, OutProjection]:
    decoder = Decoder(model, template)
    return decoder.out_projections(range(len(decoder)))


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.to(other.device, other.dtype), other)


def _outside(before: Tensor, after: Tensor, space: Allowed) -> float:
    """The share of ΔW outside of what is allowed; 0 where rounding explains it."""
    delta = after.double() - before.double()
    outside, size = float((delta - space.project(delta)).norm()), float(delta.norm())
    rounding = torch.finfo(after.dtype).eps * float(after.double().norm())
    return outside / size if outside > _SHARE * size + _ROUNDINGS * rounding else 0.0


def _sums(model: nn.Module) -> list[float]:
    """A number for each weight, by which a write shows; exact enough for any that is meant."""
    return [float(parameter.detach().sum(dtype=torch.float64)) for parameter in model.parameters()]


def _hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def _where(failure: BaseException, called: EditingFunction) -> str:
    """The last line of the editor's own code that was running."""
    frames = traceback.extract_tb(failure.__traceback__)
    own = [frame for frame in frames if called.owns(Path(frame.filename))] or frames
    last = own[-1]
    return f"in {last.filename}, line {last.lineno}, in {last.name}"


def _said(failure: BaseException) -> str:
    return f"{type(failure).__name__}: {failure}" if str(failure) else type(failure).__name__
