"""What a user's editor is held to in a comparison: `+P`, `+revive`, `+revive+P`, `+crisp`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..editors.changes import show_changes
from ..editors.chat import plain
from ..editors.hyperparameters import Hyperparameters, as_number
from ..editors.registry import find_modifier
from ..editors.sparing import Modifiers, narrowed, parse_sparing
from ..errors import HyperparameterError
from ..model.decoder import Decoder
from ..nullspace.curvature import prepare_output_gradients
from ..nullspace.kronecker import FLAT, LowCurvature
from ..nullspace.null_spaces import NullSpaces
from ..nullspace.projection import Allowed, Criterion, NullSpace
from ..nullspace.statistics import Statistics
from ..storage.tensors import tensor_digest
from .contender import Ground

log = logging.getLogger(__name__)

P, CRISP = "P", "crisp"


@dataclass(frozen=True)
class Restraint:
    """Which subspaces a guard keeps an editor's writes inside of.

    Invariant: `modifiers` are projections; `flat`, the share of the curvature that `LowCurvature` leaves open, comes
    alone. Where nothing is set, nothing holds the editor.
    """

    modifiers: Modifiers = ()
    projected: bool = False
    flat: float | None = None

    @classmethod
    def parse(cls, marks: Sequence[str], settings: MutableMapping[str, Any], name: str) -> Restraint:
        """From the words behind the +, in any order. What of `settings` is theirs is taken out of it.

        Raises HyperparameterError, naming `name` and what an editor may be held to, for words that are no projections,
        that come twice, or that cannot act together.
        """
        words = [P if mark in ("p", "P") else mark.lower() for mark in marks]
        if len(set(words)) != len(words):
            raise HyperparameterError(f"in {name!r}, a mark comes twice: +{'+'.join(words)}")
        if CRISP in words:
            if others := [word for word in words if word != CRISP]:
                raise HyperparameterError(
                    f"in {name!r}, +{CRISP} chooses directions on both sides of the weight at once, which "
                    f"+{others[0]} would narrow further: leave one of them out"
                )
            share = settings.pop("energy", FLAT.energy)
            number = as_number(share)
            if number is None or not 0 < number < 1:
                raise HyperparameterError(f"in {name!r}, energy is a share, above 0 and below 1, not {share!r}")
            return cls(flat=number)
        chosen: dict[str, dict[str, Any]] = {}
        try:
            for modifier, _ in parse_sparing([word for word in words if word != P], "it"):
                known = find_modifier(modifier).settings
                chosen[modifier] = {key: settings.pop(key, default) for key, default in known.items()}
            return cls(parse_sparing(chosen, "it"), P in words)
        except HyperparameterError as failure:
            raise HyperparameterError(
                f"in {name!r}: {failure}. An editor of yours may be held to +{P}, +{CRISP}, or a modifier that is a "
                "projection, such as +revive"
            ) from failure

    def __str__(self) -> str:
        """As it is written behind an editor's name, its settings first."""
        changes = {
            key: value
            for name, settings in self.modifiers
            for key, value in settings
            if value != find_modifier(name).settings[key]
        }
        if self.flat is not None and self.flat != FLAT.energy:
            changes["energy"] = self.flat
        return show_changes(changes) + self.marks

    @property
    def marks(self) -> str:
        words = [name for name, _ in self.modifiers]
        words += [P] * self.projected + [CRISP] * (self.flat is not None)
        return "".join(f"+{word}" for word in words)

    def __bool__(self) -> bool:
        return self != Restraint()


@dataclass(frozen=True)
class Restrained:
    """What a guard is given for one model: `spaces`, with what they are known by (`identity`, in JSON's types).

    `marks` is how the user has written it. `null_spaces` are those of P, if it is among them.
    """

    marks: str
    spaces: Mapping[int, Allowed]
    null_spaces: NullSpaces | None
    identity: Mapping[str, Any]

    @property
    def where(self) -> str:
        return "the null space" if self.spaces is self.null_spaces else f"what {self.marks} leaves open"

    @classmethod
    def of(
        cls, restraint: Restraint, ground: Ground, values: Hyperparameters, statistics: Statistics
    ) -> Restrained | None:
        """None for no restraint. Raises NullSpaceError if nothing, or everything, may be written, and WrongModelError
        for statistics of another model.
        """
        if not restraint:
            return None
        decoder = Decoder.of(ground.model, statistics.provenance.get("template"))
        if restraint.flat is not None:
            return cls._flat(restraint, ground, decoder, values, statistics.of_layers(values.layers))
        null_spaces = ground.null_spaces(values, values.layers, statistics) if restraint.projected else None
        spaces: Mapping[int, NullSpace] = null_spaces or {
            layer: NullSpace.whole(projection.d_in)
            for layer, projection in decoder.out_projections(values.layers).items()
        }
        identity: dict[str, Any] = {"criterion": str(values.null_space) if restraint.projected else None}
        if restraint.modifiers:
            spaces = narrowed(decoder, spaces, restraint.modifiers)
            identity["spared"] = [[name, dict(settings)] for name, settings in restraint.modifiers]
        return cls(restraint.marks, spaces, null_spaces, identity)

    @classmethod
    def _flat(
        cls, restraint: Restraint, ground: Ground, decoder: Decoder, values: Hyperparameters, statistics: Statistics
    ) -> Restrained:
        preparation, energy = ground.preparation, restraint.flat
        if preparation.corpus is None and (ground.statistics is not None or preparation.stats_dir is not None):
            log.warning(
                "+%s: the covariances are given, of other text than the loss, which is that of text that the model "
                "writes itself: give a corpus",
                CRISP,
            )
        gradients = prepare_output_gradients(
            decoder,
            plain(ground.tokenizer),
            values.layers,
            source=preparation.corpus,
            tokens=values.tokens or preparation.tokens,
            store=preparation.store,
            progress=preparation.progress,
        )
        spaces = LowCurvature.of(statistics, gradients, Criterion(energy=energy))
        spaces.check(ground.model)
        digests = {
            str(layer): [each.count, tensor_digest(each.upper.triu())] for layer, each in sorted(gradients.items())
        }
        return cls(restraint.marks, spaces, None, {"criterion": None, "flat": energy, "gradients": digests})
