"""The base of every editor: it writes facts into out-projections and returns what it wrote."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor, nn

from ..model.branch import branch_is_identity
from ..model.decoder import Decoder
from ..model.trace import evaluating
from .hyperparameters import Hyperparameters
from .keys import context_templates
from .preconditions import check_editable, check_mode, check_requests, position_limit
from .preserved import Preserved
from .requests import Request
from .ridge import Ridge
from .targets import Targets
from .update import Update, Write


@dataclass(frozen=True)
class Written:
    """The updates that one batch wrote, in order, and per layer the keys that later batches must keep, d_in × n."""

    updates: list[Update]
    keys: dict[int, Tensor] = field(default_factory=dict)


class Editor(ABC):
    """Writes facts into the out-projections of `hyperparameters.layers`, in place.

    The only state is `memory`, layer → keys of facts written before, for the methods that keep them. It is replaced as
    a whole at the end of an edit, so a failed edit leaves it unchanged. `write` does what happens between an update and
    the weight (modifiers, projection).

    `settings` are hyperparameters that only this method has, with their defaults; `own` holds their values.
    """

    needs_covariances: ClassVar[bool] = True
    needs_null_spaces: ClassVar[bool] = False
    settings: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        hyperparameters: Hyperparameters,
        preserved: Preserved,
        *,
        contexts: Sequence[str] | None = None,
        write: Write | None = None,
        progress: bool = False,
    ) -> None:
        """`contexts` are templates that keys are averaged over; by default the model writes them at the first edit.

        Raises what `prepare` raises.
        """
        self.model, self.tokenizer, self.hyperparameters = model, tokenizer, hyperparameters
        self.own = {key: hyperparameters.own.get(key, default) for key, default in self.settings.items()}
        self.write, self.progress = write or Write(), progress
        self.decoder = Decoder(model, hyperparameters.rewrite_module_tmp)
        self.projections = self.decoder.out_projections(hyperparameters.layers)
        self.checked = False
        self.memory: Mapping[int, Ridge] = {}
        self._contexts = tuple(contexts) if contexts else None
        self.prepare(preserved)

    @classmethod
    def derived(cls, depth: int) -> Hyperparameters:
        """Settings for a model of this depth that has no file: five consecutive layers, starting one seventh of the way
        up, where the paper edits its models.
        """
        first = max(0, min(depth // 7, depth - 5))
        return Hyperparameters(layers=tuple(range(first, min(first + 5, depth))))

    def prepare(self, preserved: Preserved) -> None:  # noqa: B027 - some methods need nothing
        """Take what the method needs from `preserved`. Raises StatisticsError or NullSpaceError if it is missing."""

    @property
    def contexts(self) -> tuple[str, ...]:
        """Context templates, written by the model at the first edit and kept for all later ones."""
        if self._contexts is None:
            with evaluating(self.model):
                self._contexts = context_templates(
                    self.model, self.tokenizer, self.hyperparameters.context_template_length_params
                )
        return self._contexts

    def check(self, requests: Sequence[Request]) -> None:
        """Whether `requests` can be written; at the first call, whether the model can be edited (`preconditions.py`).

        Raises EditError, ModelStructureError or RequestError, before the model is touched.
        """
        check_mode()
        if not self.checked:
            check_editable(self.decoder, self.tokenizer, self.projections)
            self.checked = True
        check_requests(self.decoder, self.tokenizer, requests)
        if position_limit(self.decoder.model) is not None:  # only where contexts can make a prompt too long
            check_requests(self.decoder, self.tokenizer, requests, self.contexts)

    @cached_property
    def direct(self) -> bool:
        """Whether in all edited layers the out-projection's output is what the hidden state moves by (`branch.py`)."""
        return branch_is_identity(self.decoder, list(self.projections))

    @abstractmethod
    def edit(self, requests: Sequence[Request], targets: Targets | None = None) -> Written:
        """Write `requests`. Pass `targets` that were already computed on this very model to save their cost.

        Raises EditError if a key, a target or a loss is not finite.
        """

    def remember(self, written: Written) -> None:  # noqa: B027 - most methods remember nothing
        """Remember the keys of what was written. `edit` does so itself; a resumed session calls this."""

    def forget(self, count: int) -> None:
        """Forget the last `count` facts."""
        self.memory = {layer: ridge.truncated(ridge.count - count) for layer, ridge in self.memory.items()}
