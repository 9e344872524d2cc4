"""How probable a model finds texts, in batches that compute nothing twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..progress import progress_bar
from .batches import Tokens, batches
from .decoder import Decoder, eager_attention
from .gradients import gradients
from .precision import float64_device
from .trace import evaluating, logits_at


@dataclass(frozen=True)
class Scored:
    """Results for n (prompt, target) pairs, under teacher forcing; float64.

    `mean_log_probability` of the target's tokens; `accuracy`, the share of them that are the likeliest token;
    `predicted`, the likeliest token at the place of each.
    """

    mean_log_probability: Tensor
    accuracy: Tensor
    predicted: list[list[int]]


@gradients(False)
def score_tokens(
    model: nn.Module | Decoder,
    pairs: Sequence[tuple[Tokens, Tokens]],
    *,
    batch_tokens: int = 2048,
    progress: bool = False,
) -> Scored:
    """How well the target's tokens are predicted after the prompt's, for each (prompt, target).

    A sequence that is the beginning of another shares its row: two targets of one token cost one prompt.
    """
    lengths = torch.tensor([len(answer) for _, answer in pairs], dtype=torch.float64)
    sequences = [(*ids, *answer[:-1]) for ids, answer in pairs]
    row_of, rows = rows_of(sequences)
    decoder = Decoder.of(model)
    by_row: dict[int, list[tuple[int, int, int]]] = {}  # (pair, position, token)
    for pair, (ids, answer) in enumerate(pairs):
        wanted = by_row.setdefault(row_of[sequences[pair]], [])
        wanted += [(pair, len(ids) - 1 + i, token) for i, token in enumerate(answer)]

    total, hits = torch.zeros(len(pairs), dtype=torch.float64), torch.zeros(len(pairs), dtype=torch.float64)
    predicted: list[dict[int, int]] = [{} for _ in pairs]
    with (
        evaluating(decoder.given),
        eager_attention(decoder.model),  # the model itself is run with what may be around it
        progress_bar(total=len(rows), desc="scoring", unit="prompt", shown=progress, leave=False) as bar,
    ):
        for batch in batches(rows, batch_tokens, decoder.device):
            asked = [(at, *want) for at, row in enumerate(batch.rows) for want in by_row[row]]
            at, pair_, position_, token_ = torch.tensor(asked).T
            with logits_at(decoder.head, at, position_):
                logits = decoder.given(**batch.model_inputs(), use_cache=False).logits[0]
            log_probabilities = logits.to(float64_device(logits.device)).double().log_softmax(-1).cpu()
            total.index_add_(0, pair_, log_probabilities[torch.arange(len(asked)), token_])
            likeliest = log_probabilities.argmax(-1)
            hits.index_add_(0, pair_, (likeliest == token_).double())
            for (_, pair, position, _), token in zip(asked, likeliest.tolist(), strict=True):
                predicted[pair][position] = token
            bar.update(len(batch.rows))
    return Scored(total / lengths, hits / lengths, [[of[at] for at in sorted(of)] for of in predicted])


def rows_of(sequences: Sequence[tuple[int, ...]]) -> tuple[dict[tuple[int, ...], int], list[tuple[int, ...]]]:
    """(sequence → its row, rows): each sequence is the beginning of a row, and no row is the beginning of another."""
    row_of: dict[tuple[int, ...], int] = {}
    rows: list[tuple[int, ...]] = []
    for sequence in sorted(set(sequences), reverse=True):  # sequences that begin with it come just before it
        if not rows or rows[-1][: len(sequence)] != sequence:
            rows.append(sequence)
        row_of[sequence] = len(rows) - 1
    return row_of, rows
