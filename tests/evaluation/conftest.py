"""What the tests of evaluation share."""

from __future__ import annotations

import json

import pytest
from support.references import SAMPLES


@pytest.fixture
def snippets(tmp_path):
    entries = [
        {"relation_id": r, "target_id": t, "samples": [{"name": "someone", "text": text} for text in texts]}
        for (r, t), texts in SAMPLES.items()
    ]
    path = tmp_path / "attribute_snippets.json"
    path.write_text(json.dumps(entries))
    return path
