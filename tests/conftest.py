"""What every test file shares: a tokenizer that fits the tiny models, and a cache that no test shares with another.

Tests run on the tiny models of `tiny.py`. One that needs the demo model asks for the fixture `demo`; one that should
also read and fill the user's own cache (because its results take long to compute) is marked `user_cache`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 512  # pass vocab_size=VOCABULARY to tiny() for a model that these tokenizers can feed

_TEXT = [
    "The Eiffel Tower is located in the city of Paris, and the capital of France is Paris.",
    "Marie Curie was a physicist who was born in Warsaw and worked in the field of physics.",
    "The mother tongue of Danielle Darrieux is French; the language of Leonardo da Vinci is Italian.",
    "Michael Jordan plays the sport of basketball. Lionel Messi plays the sport of football.",
    "The river flows through the old town to the sea, where the ships of many nations lie at anchor.",
    "When the king came home from the war, the people of the village had already forgotten his name.",
    "Apple was founded by Steve Jobs, and Microsoft was founded by Bill Gates, both in America.",
    "What you read was written by others: it is material to judge. She said that they would come again.",
]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "user_cache: reads and fills the user's own cache, not an empty one")
    torch.set_num_threads(1)


def _tokenizer(bos: bool) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        _TEXT,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<pad>", "<s>", "</s>"],  # 0, 1 and 2, as in the tiny models' configurations
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    special = {"bos_token": "<s>"} if bos else {}
    tokenizer.post_processor = (
        processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
        if bos
        else processors.ByteLevel(trim_offsets=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", **special)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE that adds no special tokens."""
    return _tokenizer(bos=False)


@pytest.fixture(scope="session")
def bos_tokenizer() -> PreTrainedTokenizerFast:
    """The same, with <s> before every text."""
    return _tokenizer(bos=True)


@pytest.fixture(autouse=True)
def cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache of its own for each test. Fixtures of a wider scope come first and see the user's."""
    if request.node.get_closest_marker("user_cache") is None:
        monkeypatch.setenv("ALPHAEDIT_CACHE", str(tmp_path / "alphaedit-cache"))


@pytest.fixture(scope="session")
def demo():
    """(model, tokenizer) of SmolLM2-135M, converted into the user's cache on first use. Restore what you edit."""
    from alphaedit_plugin.loading import DEMO_MODEL, load

    return load(DEMO_MODEL)
