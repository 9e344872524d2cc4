"""What every test file shares: a tokenizer that fits the tiny models, and a cache that no test shares with another.

Tests run on the tiny models of `tiny.py`. One that needs the demo model asks for the fixture `demo`; one that should
also read and fill the user's own cache (because its results take long to compute) is marked `user_cache`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.tokenizer import make_tokenizer
from transformers import PreTrainedTokenizerFast

from alphaedit_plugin.storage.store import Store


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "user_cache: reads and fills the user's own cache, not an empty one")
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE that adds no special tokens."""
    return make_tokenizer(bos=False)


@pytest.fixture(scope="session")
def bos_tokenizer() -> PreTrainedTokenizerFast:
    """The same, with <s> before every text."""
    return make_tokenizer(bos=True)


@pytest.fixture(autouse=True)
def cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache of its own for each test. Fixtures of a wider scope come first and see the user's."""
    if request.node.get_closest_marker("user_cache") is None:
        monkeypatch.setenv("ALPHAEDIT_CACHE", str(tmp_path / "alphaedit-cache"))


@pytest.fixture(scope="session")
def demo():
    """(model, tokenizer) of SmolLM2-135M, converted into the user's cache on first use. Restore what you edit."""
    from alphaedit_plugin.model.loading import DEMO_MODEL, load

    return load(DEMO_MODEL)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store of its own."""
    return Store(tmp_path / "store")
