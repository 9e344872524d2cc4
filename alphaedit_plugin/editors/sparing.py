"""Modifiers that are projections themselves (REVIVE), put on whatever other people's editors write."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import HyperparameterError, NullSpaceError
from ..model.decoder import Decoder
from ..nullspace.guard import guarded_decoder
from ..nullspace.null_spaces import NullSpaces
from ..nullspace.projection import NullSpace
from ..nullspace.two_sided import TwoSided
from .hyperparameters import as_number
from .registry import find_modifier

Modifiers = tuple[tuple[str, tuple[tuple[str, float], ...]], ...]
"""Names of modifiers, each with its settings."""
Spared = MutableMapping[tuple[Any, ...], tuple[Tensor, Tensor]]
"""(template, modifier, settings, layer) → the U and V that it spares there."""


def sparing(
    model: nn.Module | Decoder,
    null_spaces: NullSpaces,
    modifiers: Sequence[str] | Mapping[str, Mapping[str, Any] | None],
) -> NullSpaces:
    """`null_spaces` less what these modifiers spare in the model's weights as they are now, for a guard.

        with guard(model, sparing(model, null_spaces, ["revive"])):  # or {"revive": {"tau": 0.2}}
            my_editor(model, requests)

    Raises HyperparameterError for a modifier that is no projection or a setting that it does not have, NullSpaceError
    for what are no null spaces of such a model, or if nothing is left.
    """
    if not isinstance(null_spaces, NullSpaces):
        raise NullSpaceError(f"sparing narrows NullSpaces (NullSpaces.prepare), not {type(null_spaces).__name__}")
    decoder = guarded_decoder(model, null_spaces)
    for layer, projection in decoder.out_projections(list(null_spaces)).items():
        null_spaces[layer].check_fits(projection)
    narrow = narrowed(decoder, null_spaces, parse_sparing(modifiers, "sparing"))
    return NullSpaces(narrow, null_spaces.provenance)


def parse_sparing(given: Any, name: str) -> Modifiers:
    """Each modifier with its settings, from a list of names or from a mapping of names to settings.

    Raises HyperparameterError, beginning with `name`, as `sparing` does.
    """
    if isinstance(given, Sequence) and not isinstance(given, str) and all(isinstance(each, str) for each in given):
        given = dict.fromkeys(given)
    if not isinstance(given, Mapping) or not all(isinstance(each, Mapping | None) for each in given.values()):
        raise HyperparameterError(
            f"{name} must be a list of names such as [revive], or their settings, such as {{revive: {{tau: 0.2}}}}, "
            f"not {given!r}"
        )
    found = []
    for each, settings in given.items():
        modifier = find_modifier(str(each))
        if modifier.spares is None:
            raise HyperparameterError(
                f"{name}: {each} is no projection, so it cannot act on what others write: leave it out, or edit with "
                "our own methods"
            )
        numbers = {key: as_number(value) for key, value in (settings or {}).items()}
        for key, number in numbers.items():
            if key not in modifier.settings or number is None:
                known = ", ".join(f"{setting}: {value:g}" for setting, value in modifier.settings.items())
                raise HyperparameterError(f"{name}: {each} has no setting {key}: {settings[key]!r}; it has {known}")
        found.append((modifier.name, tuple((key, number) for key, number in numbers.items() if number is not None)))
    return tuple(found)


def narrowed(
    decoder: Decoder, spaces: Mapping[int, NullSpace], modifiers: Modifiers, known: Spared | None = None
) -> dict[int, NullSpace]:
    """layer → its space less what the modifiers spare in the weight as it is now or, where that is in `known`, as it
    was when it was added. Raises NullSpaceError if nothing is left.
    """
    known, narrow = {} if known is None else known, dict(spaces)
    for name, settings in modifiers:
        spares = find_modifier(name).spares
        assert spares is not None  # parse_sparing has seen to it
        for layer, projection in decoder.out_projections(list(narrow)).items():
            place = (decoder.template, name, settings, layer)
            if place not in known:
                known[place] = spares(projection.matrix, **dict(settings))
            narrow[layer] = TwoSided.sparing(narrow[layer], *known[place])
    return narrow
