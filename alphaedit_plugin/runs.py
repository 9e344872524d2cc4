"""The folder of a comparison: finished rows, and sessions under way, so that a killed run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

from .errors import CompareError
from .files import write_text

RESULTS = "comparison.json"
_UNDERWAY, _SECONDS = "underway", "seconds.json"


class RunFolder:
    """Finished rows by the identity of what made them; a session's folder for each row that is under way.

    Invariant: a row is reused only if model, facts, order, held-out text and hyperparameters were the same.
    """

    def __init__(self, path: Path) -> None:
        """Raises CompareError when the folder's results cannot be read."""
        self.path = path
        self._rows: dict[str, dict[str, Any]] = {}
        results = path / RESULTS
        if results.exists():
            try:
                self._rows = {row["identity"]: row for row in json.loads(results.read_text(encoding="utf-8"))["rows"]}
            except (OSError, ValueError, KeyError, TypeError) as failure:
                raise CompareError(
                    f"cannot go on with {results}: {failure!r}. Choose another folder, or remove the file"
                ) from failure

    def row(self, identity: str) -> dict[str, Any] | None:
        """What was measured before."""
        return self._rows.get(identity)

    def save(self, comparison: dict[str, Any]) -> None:
        write_text(self.path / RESULTS, json.dumps(comparison, indent=1, ensure_ascii=False), CompareError)

    def session(self, name: str, identity: str) -> Path:
        """Where the session of a row lies until the row is measured."""
        readable = re.sub(r"[^\w.+=-]", "_", name)
        return self.path / _UNDERWAY / f"{readable}-{identity[:12]}"

    @staticmethod
    def spent(session: Path) -> float:
        """Seconds that a session under way has taken so far."""
        try:
            return float(json.loads((session / _SECONDS).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return 0.0

    @staticmethod
    def keep_spent(session: Path, seconds: float) -> None:
        write_text(session / _SECONDS, json.dumps(seconds), CompareError)

    def finished(self, session: Path) -> None:
        """The session's rows are measured and saved: it is not needed any more."""
        shutil.rmtree(session, ignore_errors=True)
        if (self.path / _UNDERWAY).is_dir() and not any((self.path / _UNDERWAY).iterdir()):
            (self.path / _UNDERWAY).rmdir()


def identity_of(values: dict[str, Any]) -> str:
    """A hash of JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
