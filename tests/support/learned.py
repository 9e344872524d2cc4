"""Small models of every architecture that know the world of `world.py` by heart, trained once and kept on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from alphaedit_plugin.model.undisturbed import seeded, undisturbed
from alphaedit_plugin.storage.store import Store
from support import tiny as tiny_models
from support import world
from support.tiny import ARCHITECTURES, tiny

FOLDER = "ALPHAEDIT_LEARNED"
"""The environment's name of the folder that keeps what was trained; by default one in the user's cache."""

# What the sizes of `tiny.py` become: enough to know sixty facts.
_SIZES = {
    "hidden_size": 64,
    "n_embd": 64,
    "word_embed_proj_dim": 64,
    "intermediate_size": 192,
    "n_inner": 192,
    "ffn_dim": 192,
    "ffn_hidden_size": 192,
    "num_attention_heads": 4,
    "num_heads": 4,
    "n_head": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rotary_dim": 16,
}
BOS = frozenset({"llama", "mistral", "gemma", "gemma2", "gemma3_text", "cohere", "bloom", "opt"})
"""Architectures whose tokenizer puts a BOS before every text. The others' adds nothing."""

_STEPS, _CHECK, _RATE = 120, 10, 5e-3
_FACTS, _PLAIN, _IN_CONTEXT = 120, 24, 0.3  # sentences of each kind in a step, and how many of them follow another
SURE = 0.8
"""Training ends when every object, wherever it is asked for, is at least this probable."""


def learned(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A model of this architecture that knows every statement of the world, and its tokenizer; yours to edit.

    The weights are those of the same seed, code and versions of torch and transformers, trained once on this machine.
    """
    tokenizer = world.tokenizer(name in BOS)
    model = _untrained(name, tokenizer)
    model.load_state_dict(_weights(name))
    return model, tokenizer


def _untrained(name: str, tokenizer: Any) -> PreTrainedModel:
    settings = {key: _SIZES.get(key, value) for key, value in ARCHITECTURES[name][0].items()}
    model = tiny(name, scale=0.1, **{**settings, "vocab_size": len(tokenizer)})
    model.set_attn_implementation("eager")
    return model


@cache
def _weights(name: str) -> dict[str, Tensor]:
    tokenizer = world.tokenizer(name in BOS)
    model = _untrained(name, tokenizer)
    sources = [Path(module.__file__ or "") for module in (world, tiny_models)]
    recipe = {
        "config": model.config.to_dict(),
        "bos": name in BOS,
        "sources": [hashlib.sha256(path.read_bytes()).hexdigest() for path in (Path(__file__), *sources)],
        "versions": [torch.__version__, transformers.__version__],
    }
    folder = os.environ.get(FOLDER) or platformdirs.user_cache_dir("alphaedit-tests", appauthor=False)
    made = Store(folder).get_or_make("learned", {0: recipe}, lambda _missing: {0: _trained(model, tokenizer)})
    return made[0]


def _trained(model: PreTrainedModel, tokenizer: Any) -> dict[str, Tensor]:
    """The weights after training. Raises RuntimeError if the facts were not learned."""
    sentences = _Sentences(tokenizer)
    with undisturbed(), seeded(0), torch.enable_grad():
        torch.set_num_threads(1)
        sure = 0.0
        model.train().requires_grad_(True)
        optimiser = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.01, betas=(0.9, 0.95))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: min(1.0, (step + 1) / 10, 2 * (1 - step / _STEPS))
        )
        for step in range(_STEPS):
            ids, mask, answers = sentences.batch()
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            losses = nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
            share = answers[:, 1:] / answers.sum() + 0.1 * mask[:, 1:] / mask.sum()
            optimiser.zero_grad()
            (losses * share).sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            if step % _CHECK == _CHECK - 1:
                sure = knowledge(model, tokenizer)
                if sure >= SURE:
                    return {key: value.detach().clone() for key, value in model.state_dict().items()}
    raise RuntimeError(f"{type(model).__name__} did not learn the world in {_STEPS} steps: {sure:.2f} sure")


class _Sentences:
    """What a model learns from, as token ids; a fact's object comes last, before the full stop."""

    def __init__(self, tokenizer: Any) -> None:
        def ids(sentences: Iterable[str]) -> list[list[int]]:
            return [tokenizer(f"{each} .", add_special_tokens=False)["input_ids"] for each in sentences]

        self.opening = tokenizer("")["input_ids"]
        self.facts = ids(f"{prompt} {answer}" for each in world.statements() for prompt, answer in each.sentences())
        self.plain = ids(world.plain_sentences())

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of random sentences, some of them behind a plain one: token ids, mask, and 1 where a fact's object stands."""
        rows, answers = [], []
        for pool, count in ((self.facts, _FACTS), (self.plain, _PLAIN)):
            for i in torch.randperm(len(pool))[:count]:
                before = self.plain[int(torch.randint(len(self.plain), ()))] if torch.rand(()) < _IN_CONTEXT else []
                rows.append([*self.opening, *before, *pool[i]])
                answers.append([0] * (len(rows[-1]) - 2) + [int(pool is self.facts), 0])
        width = max(map(len, rows))

        def padded(values: list[list[int]]) -> Tensor:
            return torch.tensor([[*each, *[0] * (width - len(each))] for each in values])

        return padded(rows), padded([[1] * len(row) for row in rows]), padded(answers)


@torch.no_grad()
def knowledge(model: PreTrainedModel, tokenizer: Any) -> float:
    """The least probability that the model gives a true object, over all statements and ways to ask for them."""
    pairs = [pair for each in world.statements() for pair in each.sentences()]
    training = model.training
    model.eval()
    encoded = tokenizer([prompt for prompt, _ in pairs], padding=True, padding_side="right", return_tensors="pt")
    logits = model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"], use_cache=False).logits
    last = encoded["attention_mask"].sum(1) - 1
    objects = torch.tensor(tokenizer.convert_tokens_to_ids([answer for _, answer in pairs]))
    model.train(training)
    return float(logits[torch.arange(len(pairs)), last].softmax(-1)[torch.arange(len(pairs)), objects].min())
