"""What an editor must preserve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..nullspace.covariance import Covariance
from ..nullspace.projection import NullSpace


@dataclass(frozen=True)
class Preserved:
    """Covariances and null spaces of preserved keys, by layer. Either may be empty; an editor raises if it needs it."""

    covariances: Mapping[int, Covariance] = field(default_factory=dict)
    null_spaces: Mapping[int, NullSpace] = field(default_factory=dict)
