"""What users' editors do to guarded weights: the scenarios of `support.guard_scenarios`."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

from .kind import Kind

SCENARIOS = "support.guard_scenarios"


class Guards(Kind):
    name = "guard"
    promise = "whatever is done to a guarded weight ends inside the null space, or with an error and a rollback"
    full = 300

    def absent(self) -> str | None:
        return None if importlib.util.find_spec(SCENARIOS) else f"there is no {SCENARIOS}"

    def attempt(self, seed: int, place: Path) -> int:
        importlib.import_module(SCENARIOS).scenario(seed)
        return 1
