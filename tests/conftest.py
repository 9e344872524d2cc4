"""What every test file shares: a tokenizer that fits the tiny models, and a cache that no test shares with another.

Tests run on the tiny models of `tiny.py`. One that needs the demo model asks for the fixture `demo`; one that should
also read and fill the user's own cache (because its results take long to compute) is marked `user_cache`. The markers
that `make quick` leaves out are declared in pyproject.toml; what can be told from a test itself is marked here.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from support.tiny import ARCHITECTURES
from support.tokenizer import make_tokenizer
from support.tries import HANDFUL
from transformers import PreTrainedTokenizerFast

from alphaedit_plugin.storage.store import Store

QUICK_ARCHITECTURES = {"llama", "gpt2"}
"""A Linear and a Conv1D: where a test runs on every architecture, the others are slow."""
QUICK_METHODS = {"rome", "memit", "memit+P", "rect+P", "prune+P", "alphaedit"}
"""Likewise where a test runs with every method."""

FAULT_SEED = "ALPHAEDIT_FAULT_SEED"

settings.register_profile("patient", deadline=None)  # a slow machine is no failure
settings.load_profile("patient")
settings.register_profile("quick", max_examples=HANDFUL, deadline=None)


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault(FAULT_SEED, str(time.time_ns() % 10**6))  # one for all processes of this run


def pytest_report_header() -> str:
    return f"faults: {FAULT_SEED}={os.environ[FAULT_SEED]} (set it to repeat tests/test_faults.py)"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if "demo" in fixtures or item.get_closest_marker("user_cache"):
            item.add_marker("real_model")
        if "browser" in fixtures:
            item.add_marker("browser")
        if runs_real_easyedit(item):
            item.add_marker("easyedit")
        if is_one_of_many(item):
            item.add_marker("slow")


def runs_real_easyedit(item: pytest.Item) -> bool:
    return getattr(getattr(item, "module", None), "real_easyedit", None) is not None


def is_one_of_many(item: pytest.Item) -> bool:
    """Of another architecture or with another method than the few that stand for all."""
    call = getattr(item, "callspec", None)
    chosen = {name: value for name, value in call.params.items() if isinstance(value, str)} if call else {}
    others = ARCHITECTURES.keys() - QUICK_ARCHITECTURES
    return bool(others & set(chosen.values())) or not {chosen.get("method", "memit")} <= QUICK_METHODS


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


@pytest.fixture(autouse=True)
def _leaves_gradients_as_they_were():
    """One test that leaves them off would fail others, far from itself."""
    yield
    on = torch.is_grad_enabled()
    torch.set_grad_enabled(True)
    assert on, "this test leaves gradients off"


@pytest.fixture(scope="session")
def demo():
    """(model, tokenizer) of SmolLM2-135M, converted into the user's cache on first use. Restore what you edit."""
    from alphaedit_plugin.model import DEMO_MODEL
    from alphaedit_plugin.model.loading import load

    return load(DEMO_MODEL)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store of its own."""
    return Store(tmp_path / "store")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    """A Hugging Face Hub on this machine, with a token for it."""
    from huggingface_hub import constants
    from support.hub import TOKEN, serving

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        yield running
