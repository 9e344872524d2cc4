"""How probable a model finds texts, in batches that compute nothing twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..batches import Tokens, batches
from ..modules import Decoder, eager_attention
from ..requests import encode
from ..trace import evaluating, logits_at


@dataclass(frozen=True)
class Scored:
    """Of n (prompt, target) pairs, under teacher forcing; float64.

    `mean_log_probability` of the target's tokens; `accuracy`, the share of them that are the likeliest token.
    """

    mean_log_probability: Tensor
    accuracy: Tensor


@torch.no_grad()
def score_pairs(
    model: nn.Module,
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    *,
    batch_tokens: int = 2048,
    progress: bool = False,
) -> Scored:
    """How the tokens of " " + target are predicted after the prompt, for each (prompt, target).

    Sequences that begin alike share a row: two targets of one token after one prompt cost one prompt.
    """
    rows: dict[tuple[int, ...], int] = {}
    wanted: list[tuple[int, int, int, int]] = []  # (pair, row, position, token)
    lengths = torch.zeros(len(pairs), dtype=torch.float64)
    for pair, (prompt, target) in enumerate(pairs):
        ids, answer = _encode_pair(tokenizer, prompt, target)
        row = rows.setdefault((*ids, *answer[:-1]), len(rows))
        lengths[pair] = len(answer)
        wanted += [(pair, row, len(ids) - 1 + i, token) for i, token in enumerate(answer)]
    decoder = Decoder(model)
    by_row: dict[int, list[tuple[int, int, int]]] = {}
    for pair, row, position, token in wanted:
        by_row.setdefault(row, []).append((pair, position, token))

    total, hits = torch.zeros(len(pairs), dtype=torch.float64), torch.zeros(len(pairs), dtype=torch.float64)
    with (
        evaluating(model),
        eager_attention(model),
        tqdm(total=len(rows), desc="scoring", unit="prompt", disable=not progress, leave=False) as bar,
    ):
        for batch in batches(list(rows), batch_tokens, decoder.device):
            asked = [(at, *want) for at, row in enumerate(batch.rows) for want in by_row[row]]
            at, pair_, position_, token_ = torch.tensor(asked).T
            with logits_at(decoder.head, at, position_):
                logits = model(**batch.model_inputs(), use_cache=False).logits[0]
            log_probabilities = logits.double().log_softmax(-1).cpu()
            total.index_add_(0, pair_, log_probabilities[torch.arange(len(asked)), token_])
            hits.index_add_(0, pair_, (log_probabilities.argmax(-1) == token_).double())
            bar.update(len(batch.rows))
    return Scored(total / lengths, hits / lengths)


def _encode_pair(tokenizer: Any, prompt: str, target: str) -> tuple[list[int], list[int]]:
    # The prompt as a whole stands in the subject's place: only where the target begins matters here.
    encoded = encode(tokenizer, "{}", prompt, target)
    return encoded.ids, encoded.target


@torch.no_grad()
def perplexity(
    model: nn.Module, windows: Sequence[Tokens], *, batch_tokens: int = 1024, progress: bool = False
) -> float:
    """exp of the mean negative log-likelihood per token, the first of each window unscored."""
    decoder = Decoder(model)
    loss, count = 0.0, 0
    with evaluating(model):
        for batch in tqdm(
            list(batches(windows, batch_tokens, decoder.device)), desc="perplexity", disable=not progress, leave=False
        ):
            real = batch.mask[:, 1:].bool()
            at, position = real.cpu().nonzero().T
            with logits_at(decoder.head, at, position):
                logits = model(**batch.model_inputs(), use_cache=False).logits[0]
            tokens = batch.ids[:, 1:][real].to(logits.device)
            loss += float(torch.nn.functional.cross_entropy(logits.float(), tokens, reduction="sum"))
            count += len(tokens)
    return float(torch.tensor(loss / count, dtype=torch.float64).exp())
