"""How many examples hypothesis tries: those that a test asks for, or a handful in the profile `quick`."""

from __future__ import annotations

from typing import Any

from hypothesis import settings

HANDFUL = 5


def tries(count: int, **options: Any) -> settings:
    """A decorator like hypothesis' `settings`, without a deadline: a slow machine is no failure."""
    quick = settings.default is not None and settings.default.max_examples == HANDFUL
    return settings(**{"max_examples": min(count, HANDFUL) if quick else count, "deadline": None, **options})
