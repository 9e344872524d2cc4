"""Text that a model writes: sampled tokens, from given starts or from random first words."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..progress import progress_bar
from .batches import Tokens
from .decoder import Decoder, eager_attention
from .gradients import gradients
from .precision import reduced_precision
from .trace import evaluating

SEED = 0
SELF_WRITTEN_WINDOW = 64
_BLOCK = 256


def self_written(
    model: nn.Module | Decoder,
    tokenizer: Any,
    budget: int,
    *,
    window: int = SELF_WRITTEN_WINDOW,
    seed: int = SEED,
    batch_size: int = 256,
    progress: bool = False,
) -> list[list[int]]:
    """Windows of text that the model itself writes: no corpus, no download.

    Every window begins with a random word of the vocabulary and goes on by sampling from the model's full
    distribution, as in data-free quantisation (Liu et al. 2023, LLM-QAT, 2305.17888). The same seed gives the
    same text on the same machine.
    """
    decoder = Decoder.of(model)
    starts = openings(tokenizer, -(-budget // window), seed)
    written: list[list[int]] = []
    tokens = len(starts) * window
    with (
        reduced_precision(),
        progress_bar(total=tokens, desc="self-written text", unit="token", unit_scale=True, shown=progress) as bar,
    ):
        for first in range(0, len(starts), batch_size):
            written += sample(
                decoder,
                starts[first : first + batch_size],
                window,
                seed=seed + first,
                banned=unsayable(decoder, tokenizer),
                on_step=bar.update,
            )
    return written


def openings(tokenizer: Any, count: int, seed: int = SEED) -> list[list[int]]:
    """Random words to begin texts with, behind the tokenizer's BOS if it has one."""
    vocabulary = _words(tokenizer)
    special = set(tokenizer.all_special_ids)
    bos = list(itertools.takewhile(special.__contains__, tokenizer("a")["input_ids"]))
    chooser = random.Random(seed)
    return [[*bos, chooser.choice(vocabulary)] for _ in range(count)]


def unsayable(model: nn.Module | Decoder, tokenizer: Any) -> list[int]:
    """Ids that no text should hold: special tokens, and ids that only pad the model's vocabulary."""
    padded = Decoder.of(model).head.weight.shape[0]
    return sorted({*tokenizer.all_special_ids, *range(len(tokenizer), padded)})


@gradients(False)
def sample(
    model: nn.Module | Decoder,
    starts: Sequence[Tokens],
    length: int,
    *,
    seed: int,
    banned: Sequence[int] = (),
    top_k: int | None = None,
    on_step: Callable[[int], Any] = lambda tokens: None,
) -> list[list[int]]:
    """Continue `starts`, all equally long, to `length` tokens by sampling at temperature 1 (from the `top_k` best).

    `banned` tokens (the end of text among them) are never sampled. The caller's random state is left alone.
    """
    decoder = Decoder.of(model)
    device = decoder.device
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor(starts)
    cache, step, caches = None, ids, decoder.takes("past_key_values")
    on_step(ids.numel())
    with evaluating(decoder.model), eager_attention(decoder.model):
        while ids.shape[1] < length:
            output = decoder.model(input_ids=step.to(device), past_key_values=cache, use_cache=caches)
            cache = getattr(output, "past_key_values", None)
            logits = output.logits[:, -1].float().cpu()
            logits[:, list(banned)] = -torch.inf
            if top_k is not None:
                logits[logits < logits.topk(top_k).values[:, -1:]] = -torch.inf
            step = _draw(logits, generator)
            ids = torch.cat([ids, step], 1)
            step = step if cache is not None else ids  # a model without a cache reads all of it again
            on_step(len(starts))
    return ids.tolist()


def _draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one id per row, n × 1, with the probabilities that `logits` give (n × vocabulary, overwritten).

    Inverse-transform sampling in two stages, a block of the vocabulary and then a word in it: several times faster
    than torch.multinomial.
    """
    rows, size = logits.shape
    weights = logits.sub_(logits.max(-1, keepdim=True).values).exp_()
    weights = torch.nn.functional.pad(weights, (0, -size % _BLOCK)).view(rows, -1, _BLOCK)
    drawn = torch.rand(2, rows, 1, generator=generator, dtype=torch.float64)
    block = _invert(weights.sum(-1).double(), drawn[0])
    word = _invert(weights[torch.arange(rows), block[:, 0]].double(), drawn[1])
    return block * _BLOCK + word


def _invert(weights: Tensor, drawn: Tensor) -> Tensor:
    """The first position at which the cumulated `weights` exceed the share `drawn` of their sum."""
    cumulative = weights.cumsum(-1)
    position = torch.searchsorted(cumulative, drawn * cumulative[:, -1:], right=True)
    last_possible = weights.shape[-1] - 1 - weights.flip(-1).ne(0).to(torch.uint8).argmax(-1, keepdim=True)
    return torch.minimum(position, last_possible)


def _words(tokenizer: Any) -> list[int]:
    """Tokens that begin a word of at least three letters, in any script."""
    special = set(getattr(tokenizer, "all_special_ids", []))
    words = [
        token
        for token in range(len(tokenizer))
        if token not in special and (text := tokenizer.decode([token])).strip().isalpha() and len(text.strip()) > 2
    ]
    return words or [token for token in range(len(tokenizer)) if token not in special]
