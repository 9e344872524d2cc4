"""A sequence of edits on one model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .editors import MEMIT
from .editors.targets import Targets
from .errors import EditError, HyperparameterError
from .hook import guard
from .hparams import Hyperparameters
from .modules import Decoder, OutProjection
from .nullspace import NullSpaces
from .requests import Request, parse_requests
from .statistics import Covariance

EDITORS = {"memit": MEMIT}


@dataclass(frozen=True)
class Variant:
    """A method by name, with or without projection: `memit`, `memit+P`."""

    editor: str
    projected: bool

    @classmethod
    def parse(cls, name: str) -> Variant:
        """Raises HyperparameterError for a name that is no variant."""
        editor, plus, suffix = name.strip().partition("+")
        if editor.lower() not in EDITORS or (plus and suffix.upper() != "P"):
            known = ", ".join(f"{e}, {e}+P" for e in EDITORS)
            raise HyperparameterError(f"there is no method {name!r}; known are {known}")
        return cls(editor.lower(), bool(plus))

    def __str__(self) -> str:
        return f"{self.editor}+P" if self.projected else self.editor


class Session:
    """Edits one model in place, batch after batch.

    Invariant: a call to `edit` writes all of its facts or none. Whatever interrupts it (an error, a value that is
    not finite, Ctrl-C) leaves the weights as they were before the call, bit for bit.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        method: str,
        hyperparameters: Hyperparameters,
        covariances: Mapping[int, Covariance],
        null_spaces: NullSpaces | None = None,
        *,
        contexts: Sequence[str] | None = None,
        check_model: bool = True,
        progress: bool = False,
    ) -> None:
        """`null_spaces` are needed by, and used for, the methods that end in +P.

        Raises WrongModelError when they belong to another model; `check_model=False` lets it pass.
        """
        self.variant = Variant.parse(method)
        self.model = model
        self.facts: list[Request] = []
        if self.variant.projected:
            if null_spaces is None:
                raise EditError(f"{method} projects its updates: give null_spaces (see prepare.null_spaces_of)")
            missing = sorted(set(hyperparameters.layers) - set(null_spaces))
            if missing:
                raise EditError(f"there is no null space of layers {missing}, which {method} is to edit")
            if check_model:
                null_spaces.check(model)
            template = null_spaces.provenance.get("template")
            for layer in hyperparameters.layers:
                theirs = Decoder(model, template).out_projection(layer).name
                ours = Decoder(model, hyperparameters.rewrite_module_tmp).out_projection(layer).name
                if theirs != ours:
                    raise EditError(
                        f"the null space of layer {layer} is that of {theirs}, but {method} is to edit {ours}"
                    )
        self.null_spaces = null_spaces if self.variant.projected else None
        self.editor = EDITORS[self.variant.editor](
            model, tokenizer, hyperparameters, covariances, contexts=contexts, progress=progress
        )

    def edit(self, records: Sequence[Mapping[str, Any] | Request], targets: Targets | None = None) -> list[Request]:
        """Write these facts, all or none; returns them as understood.

        `targets` computed before, on the model as it is now, save computing them. Raises RequestError for a
        malformed record before anything is touched, and EditError when the result would not be finite.
        """
        requests = parse_requests(records)
        with transaction(self.editor.projections):
            if self.null_spaces is None:
                self.editor.edit(requests, targets)
            else:
                chosen = {layer: self.null_spaces[layer] for layer in self.editor.projections}
                spaces = NullSpaces(chosen, self.null_spaces.provenance)
                with guard(self.model, spaces, check_model=False):
                    self.editor.edit(requests, targets)
        self.facts += requests
        return requests


@contextmanager
def put_back(projections: Mapping[int, OutProjection], *, only_on_error: bool = False) -> Iterator[dict[int, Tensor]]:
    """The weights as they were, bit for bit, when the block ends (or only when it raises).

    Yields those weights, layer → d_out × d_in.
    """
    before = {layer: projection.matrix.clone() for layer, projection in projections.items()}
    failed = True
    try:
        yield before
        failed = False
    finally:
        if failed or not only_on_error:
            for layer, projection in projections.items():
                projection.matrix.copy_(before[layer])


@contextmanager
def transaction(projections: Mapping[int, OutProjection]) -> Iterator[None]:
    """Weights that the block leaves, or exactly those from before it if it raises or leaves one not finite."""
    with put_back(projections, only_on_error=True):
        yield
        for projection in projections.values():
            if not torch.isfinite(projection.matrix).all():
                raise EditError(f"the edit would leave {projection.name}.weight not finite; nothing was changed")
