"""Small models of every architecture that know the world of `world.py` by heart, trained once and kept on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from alphaedit_plugin.editors.requests import encode
from alphaedit_plugin.model.decoder import Decoder, hidden_states, with_hidden_states
from alphaedit_plugin.model.trace import hooks
from alphaedit_plugin.model.undisturbed import seeded, undisturbed
from alphaedit_plugin.storage.store import Store
from support import tiny as tiny_models
from support import world
from support.tiny import ARCHITECTURES, MORE, NAMES, tiny

FOLDER = "ALPHAEDIT_LEARNED"
"""The environment's name of the folder that keeps what was trained; by default one in the user's cache."""

# What the sizes of `tiny.py` become: enough to know sixty facts.
_SIZES = {
    "hidden_size": 64,
    "n_embd": 64,
    "word_embed_proj_dim": 64,
    "intermediate_size": 128,
    "n_inner": 128,
    "ffn_dim": 128,
    "ffn_hidden_size": 128,
    "num_attention_heads": 4,
    "num_heads": 4,
    "n_head": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rotary_dim": 16,
}
DECODERS = (*NAMES, *(name for name in MORE if name not in NAMES))
BOS = frozenset({"llama", "mistral", "gemma", "gemma2", "gemma3_text", "cohere", "bloom", "opt"})
"""Architectures whose tokenizer puts a BOS before every text. The others' adds nothing."""

_TRIES, _STEPS, _CHECK, _RATE = 4, 150, 10, 5e-3
_PLAIN, _ALONE, _IN_CONTEXT = 20, 30, 0.4
_LAST_READ = 2
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
    tiniest = MORE[name] if name in MORE else ARCHITECTURES[name][0]
    settings = {key: _SIZES.get(key, value) for key, value in tiniest.items()}
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
    """The weights after training. Raises RuntimeError if the facts were not learned.

    On another processor rounding differs, and training ends elsewhere: where it gets nowhere, other lessons may help.

    Left to itself, so small a model brings the subject's name to the end of the prompt at once, and finds the object
    there. Large ones find it at the subject's last token, and late layers read it there: this is what an edit changes.
    So in training, what the tokens after the subject know by block `_LAST_READ` is that of another subject.
    """
    start = {key: value.clone() for key, value in model.state_dict().items()}
    for seed in range(_TRIES):
        model.load_state_dict(start)
        if _learns(model, _Lessons(tokenizer), seed):
            return {key: value.detach().clone() for key, value in model.state_dict().items()}
    raise RuntimeError(f"{type(model).__name__} did not learn the world in {_TRIES} times {_STEPS} steps")


def _learns(model: PreTrainedModel, lessons: _Lessons, seed: int) -> bool:
    with undisturbed(), seeded(seed), torch.enable_grad():
        torch.set_num_threads(1)
        model.requires_grad_(True)  # and in eval mode: dropout would only make it learn more slowly
        optimiser = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.01, betas=(0.9, 0.95))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: min(1.0, (step + 1) / 10, 2 * (1 - step / _STEPS))
        )
        for step in range(_STEPS):
            lesson = lessons.lesson(_IN_CONTEXT if step >= _ALONE else 0.0)
            with _misled(model, lesson, 0.5):
                logits = model(input_ids=lesson.ids, attention_mask=lesson.mask, use_cache=False).logits[:, :-1]
            losses = nn.functional.cross_entropy(logits.transpose(1, 2), lesson.ids[:, 1:], reduction="none")
            share = lesson.asked[:, :-1] / lesson.asked.sum() + 0.1 * lesson.mask[:, 1:] / lesson.mask.sum()
            optimiser.zero_grad()
            (losses * share).sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            if step % _CHECK == _CHECK - 1 and knowledge(model, lessons) >= SURE:
                return True
    return False


@dataclass(frozen=True)
class _Lesson:
    """Sentences as rows of tokens; all n × tokens, but `other`, which is n.

    `asked` is 1 where the next token is a fact's object, `later` where a subject came before, and `other` a row that
    says the same of another subject, at the same place.
    """

    ids: Tensor
    mask: Tensor
    asked: Tensor
    later: Tensor
    other: Tensor


class _Lessons:
    def __init__(self, tokenizer: Any) -> None:
        self.opening = tokenizer("")["input_ids"]

        def ids(sentences: Sequence[str]) -> list[list[int]]:
            return [tokenizer(f"{each} .", add_special_tokens=False)["input_ids"] for each in sentences]

        self.plain, self.before = ids(world.plain_sentences()), ids(world.OPENINGS)
        self.facts: list[list[tuple[list[int], int]]] = []  # per prompt: sentences, and where their subjects end
        for relation in world.RELATIONS:
            of_relation = [each for each in world.statements() if each.relation is relation]
            for prompt in relation.prompts:
                encoded = [encode(tokenizer, prompt, each.subject, f"{each.object} .") for each in of_relation]
                opening = len(self.opening)
                self.facts.append([([*e.ids, *e.target][opening:], e.subject_last - opening) for e in encoded])

    def lesson(self, in_context: float) -> _Lesson:
        """All facts in all of their ways, this share of the prompts behind another sentence; and some plain ones."""

        def before() -> list[int]:
            follows = bool(torch.rand(()) < in_context)
            return self.before[int(torch.randint(len(self.before), ()))] if follows else []

        plain = [self.plain[i] for i in torch.randperm(len(self.plain))[:_PLAIN]]
        return self._of([([*self.opening, *before()], facts) for facts in self.facts], plain)

    def _of(
        self, chosen: Sequence[tuple[list[int], Sequence[tuple[list[int], int]]]], plain: Sequence[list[int]]
    ) -> _Lesson:
        rows: list[list[int]] = []
        ends, other = [], []
        for before, facts in chosen:
            alike: dict[int, list[int]] = {}  # rows whose subjects end at the same place, so that they can be exchanged
            for ids, end in facts:
                alike.setdefault(len(before) + end, []).append(len(rows))
                ends.append(len(before) + end)
                rows.append([*before, *ids])
                other.append(0)
            for together in alike.values():
                group = [together[i] for i in torch.randperm(len(together))]
                for one, another in zip(group, group[1:] + group[:1], strict=True):
                    other[one] = another
        asked = [len(row) - 3 for row in rows]
        rows += [[*self.opening, *each] for each in plain]
        width = max(map(len, rows))
        place, n = torch.arange(width), len(ends)
        nowhere = [width] * (len(rows) - n)
        return _Lesson(
            torch.tensor([[*row, *[0] * (width - len(row))] for row in rows]),
            (place < torch.tensor([len(row) for row in rows])[:, None]).long(),
            (place == torch.tensor([*asked, *nowhere])[:, None]).float(),
            place > torch.tensor([*ends, *nowhere])[:, None],
            torch.tensor([*other, *range(n, len(rows))]),
        )


@contextmanager
def _misled(model: PreTrainedModel, lesson: _Lesson, share: float) -> Iterator[None]:
    """Inside the block, in this share of rows, what tokens after the subject know by block `_LAST_READ` is about the
    `other` subject.
    """
    swapped = torch.rand(len(lesson.ids)) < share
    other = torch.where(swapped, lesson.other, torch.arange(len(swapped)))

    def exchange(_module: nn.Module, _args: Any, output: Any) -> Any:
        states = hidden_states(output)
        return with_hidden_states(output, torch.where(lesson.later[..., None], states[other], states))

    with hooks((Decoder(model).block(_LAST_READ), exchange)):
        yield


@torch.no_grad()
def knowledge(model: PreTrainedModel, lessons: _Lessons) -> float:
    """The least probability of a true object, over all statements and ways to ask, alone and in context."""
    found = []
    for in_context, misled in ((0.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
        lesson = lessons.lesson(in_context)
        with _misled(model, lesson, misled):
            logits = model(input_ids=lesson.ids, attention_mask=lesson.mask, use_cache=False).logits
        log_probability = logits[:, :-1].log_softmax(-1).gather(-1, lesson.ids[:, 1:, None]).squeeze(-1)
        found.append(log_probability[lesson.asked[:, :-1].bool()].min().exp())
    return float(min(found))
