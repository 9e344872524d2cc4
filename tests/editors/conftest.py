"""What the tests of editors share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many models compute norms and softmax in torch.float32, which for a float64 model is a loss, not a gain."""
    monkeypatch.setattr(torch, "float32", torch.float64)
