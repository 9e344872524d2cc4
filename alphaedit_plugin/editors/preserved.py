"""What an editor is to preserve, as far as it has to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..nullspace.covariance import Covariance
from ..nullspace.projection import NullSpace


@dataclass(frozen=True)
class Preserved:
    """Covariances and null spaces of preserved keys, by layer. Either may be empty: an editor says what it misses."""

    covariances: Mapping[int, Covariance] = field(default_factory=dict)
    null_spaces: Mapping[int, NullSpace] = field(default_factory=dict)
