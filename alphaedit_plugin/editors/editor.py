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
from .capacity import Capacity
from .hyperparameters import Hyperparameters
from .keys import context_templates
from .preconditions import check_editable, check_mode, check_requests, position_limit
from .preserved import Preserved
from .requests import Request
from .ridge import Memory
from .targets import Targets
from .update import Update, Write


@dataclass(frozen=True)
class Written:
    """The updates that one batch wrote, in order, and per layer the keys that later batches must keep, d_in × n.

    For n requests, where the method knows them: the last `losses` of their targets, and how much of the way to z* is
    left after the last layer, `missed` = ‖z* − z‖ / ‖z* − z before‖; and z* itself, `z_star`, n × d or n × layers × d,
    for which they can be written again (`Targets.kept`).
    """

    updates: list[Update]
    keys: dict[int, Tensor] = field(default_factory=dict)
    losses: Tensor | None = None
    missed: Tensor | None = None
    z_star: Tensor | None = None


class Editor(ABC):
    """Writes facts into the out-projections of `hyperparameters.layers`, in place.

    The only state is `memory`, layer → keys of facts written before, for the methods that keep them, and `owed`, layer
    → what was asked for and not written, d_out × d_in, for variants that carry it over (`Write.between`). Both are
    replaced as a whole at the end of an edit, so a failed edit leaves them unchanged. `write` does what happens between
    an update and the weight (modifiers, projection).

    `settings` are hyperparameters that only this method has, with their defaults; `own` holds their values.
    `regularised_by` is the name of the hyperparameter that is its λ, if it has one. `carries_over` says whether it asks
    for what is owed.
    """

    needs_covariances: ClassVar[bool] = True
    needs_null_spaces: ClassVar[bool] = False
    settings: ClassVar[Mapping[str, Any]] = {}
    regularised_by: ClassVar[str | None] = None
    carries_over: ClassVar[bool] = False

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
        self.memory: Mapping[int, Memory] = {}
        self.owed: Mapping[int, Tensor] = {}
        self._contexts = tuple(contexts) if contexts else None
        self.prepare(preserved)

    @classmethod
    def derived(cls, decoder: Decoder) -> Hyperparameters:
        """Settings for a model that has no file: five consecutive layers, starting one seventh of the way up, where the
        paper edits its models, and MEMIT's λ = d_in.

        C⁻¹ measures a key k by kᵀC⁻¹k, which is d_in on average over the text, whatever the model; MEMIT writes the
        share kᵀC⁻¹k / (λ + kᵀC⁻¹k) of what a layer is asked for. With λ = d_in that is half for a key like any other
        and more for a subject's (two thirds on SmolLM2). The paper's 15,000 is about d_in of its models, 14,336 and
        16,384; a narrow model is hardly edited with it.

        Raises ModelStructureError if an out-projection cannot be found.
        """
        depth = len(decoder)
        first = max(0, min(depth // 7, depth - 5))
        layers = tuple(range(first, min(first + 5, depth)))
        width = max(projection.d_in for projection in decoder.out_projections(layers).values())
        return Hyperparameters(layers=layers, mom2_update_weight=float(width))

    @classmethod
    def adapted(cls, hyperparameters: Hyperparameters, name: str) -> Hyperparameters:
        """The settings as this method uses them. Doing it twice is doing it once.

        Raises HyperparameterError, naming `name`, for settings of its own that are out of range.
        """
        del name
        return hyperparameters

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

    def capacity(self, count: int) -> dict[int, Capacity]:
        """layer → the room that is left after the first `count` facts; none for methods that keep no keys."""
        return {}

    def remember(self, written: Written) -> None:  # noqa: B027 - most methods remember nothing
        """Remember the keys of what was written. `edit` does so itself; a resumed session calls this."""

    def forget(self, count: int) -> None:
        """Forget the last `count` facts."""
        self.memory = {layer: kept.truncated(kept.count - count) for layer, kept in self.memory.items()}
