"""Where things lie beside the tests."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
SUPPORT = TESTS / "support"
SHARED = ROOT.parent / "shared" / "data"
"""Real data sets, for tests that skip where they are absent."""
SAVED = TESTS / "data" / "version_0_1"
"""What version 0.1 saved of a tiny model: a session, a patch, null spaces and a run folder."""
IMPORTS = os.pathsep.join([str(TESTS), str(ROOT)])
"""PYTHONPATH of a process that is to import this checkout, whichever is installed."""
