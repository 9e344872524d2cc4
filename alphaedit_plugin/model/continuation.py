"""The tokens that a model writes after others: many texts at once, without padding."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RequestError
from .batches import Tokens
from .decoder import Decoder, eager_attention
from .gradients import gradients
from .sampling import SEED
from .trace import evaluating, logits_at

_WORTH_SHARING = 16


@gradients(False)
def continuations(
    model: nn.Module | Decoder,
    starts: Sequence[Tokens],
    limits: Sequence[int],
    *,
    ends: Collection[int] = (),
    banned: Sequence[int] = (),
    top_k: int | None = None,
    seed: int = SEED,
    finished: Callable[[list[int]], bool] = lambda new: False,
    batch_tokens: int = 8192,
    on_text: Callable[[], Any] = lambda: None,
) -> list[list[int]]:
    """The tokens that follow each of `starts`, at most its limit, without the token of `ends` that ended the text.

    All texts of a batch advance together, beginning at the end of the shortest start: a text whose own start is longer
    still reads it, the others write. So rows always have equal length, and no padding, mask or positions are needed.

    Raises RequestError for a start longer than the model's positions.
    """
    decoder = Decoder.of(model)
    room = positions(decoder.model)
    for start in starts:
        if len(start) > room:
            raise RequestError(f"a prompt has {len(start)} tokens, but the model has only {room} positions")
    order = sorted(range(len(starts)), key=lambda row: len(starts[row]))
    longest = [min(len(start) + limit, room) for start, limit in zip(starts, limits, strict=True)]
    written: list[list[int]] = [[] for _ in starts]
    choose = _Chooser(banned, top_k)
    with evaluating(decoder.given), eager_attention(decoder.model):
        for rows in _batches(order, longest, batch_tokens):
            texts = [_Text(starts[row], longest[row], ends, finished, seed) for row in rows]
            _advance(decoder, texts, choose, on_text)
            for row, text in zip(rows, texts, strict=True):
                written[row] = text.new
    return written


def positions(model: Any) -> float:
    """How many tokens the model says it can continue; infinite if it says nothing."""
    config = getattr(model.config, "get_text_config", lambda: model.config)()
    known = getattr(config, "max_position_embeddings", None)
    return known if isinstance(known, int) and known > 0 else float("inf")


def _batches(order: Sequence[int], longest: Sequence[float], tokens: int) -> list[list[int]]:
    """Batches in that order, each of at most `tokens` tokens when all its texts are complete, and at least one text."""
    found: list[list[int]] = []
    width = 0.0
    for row in order:
        width = max(width, longest[row])
        if not found or width * (len(found[-1]) + 1) > tokens:
            found.append([])
            width = longest[row]
        found[-1].append(row)
    return found


class _Text:
    """One text as it grows."""

    def __init__(
        self, start: Tokens, longest: float, ends: Collection[int], finished: Callable[[list[int]], bool], seed: int
    ) -> None:
        self.ids, self.begun = list(start), len(start)
        self.longest, self.ends, self.finished = longest, ends, finished
        self.random = random.Random(f"{seed} {self.ids}")
        self.over = self.begun >= longest

    @property
    def new(self) -> list[int]:
        return self.ids[self.begun :]

    def add(self, token: int) -> None:
        if token in self.ends:
            self.over = True
            return
        self.ids.append(token)
        self.over = len(self.ids) >= self.longest or self.finished(self.new)


class _Chooser:
    """The next token of each row of logits (n × vocabulary): the likeliest, or one of the `top_k` likeliest."""

    def __init__(self, banned: Sequence[int], top_k: int | None) -> None:
        self.banned, self.top_k = list(banned), top_k

    def __call__(self, logits: Tensor, texts: Sequence[_Text]) -> list[int]:
        logits = torch.nan_to_num(logits.float())  # a model that edits have ruined still writes, though nonsense
        logits[:, self.banned] = -torch.inf
        if self.top_k is None:
            return logits.argmax(-1).tolist()
        best = logits.topk(min(self.top_k, logits.shape[1]))
        # Sorted by id: rounding may decide which of two near equals is likelier, and must not swap their draws.
        tokens, order = best.indices.cpu().sort(-1)
        reached = best.values.cpu().gather(1, order).double().softmax(-1).cumsum(-1)
        drawn = torch.tensor([[text.random.random()] for text in texts], dtype=torch.float64) * reached[:, -1:]
        return tokens.gather(1, torch.searchsorted(reached, drawn, right=True)).flatten().tolist()


def _advance(decoder: Decoder, texts: Sequence[_Text], choose: _Chooser, on_text: Callable[[], Any]) -> None:
    """Write all `texts` to their ends with one cache; a finished text leaves it."""
    model: Any = decoder.given
    for _ in range(sum(text.over for text in texts)):
        on_text()
    live = [text for text in texts if not text.over]
    cache: Any
    caches = decoder.takes("past_key_values")
    cache, done = _shared_cache(decoder, live) if caches else (None, 0)
    upto = min((len(text.ids) for text in live), default=0)
    while live:
        step = torch.tensor([text.ids[done if cache is not None else 0 : upto] for text in live])
        with logits_at(decoder.head, torch.arange(len(live)), torch.full((len(live),), -1)):
            output = model(input_ids=step.to(decoder.device), past_key_values=cache, use_cache=caches)
        cache, done, upto = getattr(output, "past_key_values", None), upto, upto + 1
        writing = [row for row, text in enumerate(live) if len(text.ids) == done]
        if not writing:
            continue
        writers = [live[row] for row in writing]
        for text, token in zip(writers, choose(output.logits[0][writing], writers), strict=True):
            text.add(token)
        keep = [row for row, text in enumerate(live) if not text.over]
        for _ in range(len(live) - len(keep)):
            on_text()
        if len(keep) < len(live) and hasattr(cache, "batch_select_indices"):
            cache.batch_select_indices(torch.tensor(keep, dtype=torch.long))
        elif len(keep) < len(live):  # the model's own kind of cache: read the remaining texts again
            cache, done = None, 0
        live = [live[row] for row in keep]


def _shared_cache(decoder: Decoder, texts: Sequence[_Text]) -> tuple[Any, int]:
    """(cache, its length) of the tokens that all texts begin with, read once; (None, 0) if they are few."""
    columns = zip(*(text.ids[:-1] for text in texts), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
    if len(texts) < 2 or shared < _WORTH_SHARING:
        return None, 0
    ids = torch.tensor([texts[0].ids[:shared]], device=decoder.device)
    model: Any = decoder.given
    with logits_at(decoder.head, torch.tensor([0]), torch.tensor([-1])):
        cache: Any = getattr(model(input_ids=ids, use_cache=True), "past_key_values", None)
    if not hasattr(cache, "batch_repeat_interleave"):
        return None, 0
    cache.batch_repeat_interleave(len(texts))
    return cache, shared
