"""Token sequences of unequal length as padded batches.

Padding is always on the right, where a causal model cannot see it, and never depends on the tokenizer's settings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Tokens = Sequence[int]


@dataclass(frozen=True)
class PaddedBatch:
    """`ids` and `mask` are batch × width; mask is 1 at tokens and 0 at padding. `rows` are positions in the input."""

    rows: list[int]
    ids: Tensor
    mask: Tensor

    @property
    def lengths(self) -> Tensor:
        return self.mask.sum(1)

    def model_inputs(self) -> dict[str, Tensor]:
        return {"input_ids": self.ids, "attention_mask": self.mask}


def digest(sequences: Sequence[Tokens]) -> str:
    """sha256 of the token ids: it identifies the text of a covariance, whatever the source was called."""
    running = hashlib.sha256()
    for sequence in sequences:
        running.update(" ".join(map(str, sequence)).encode() + b"\n")
    return running.hexdigest()


def pad(sequences: Sequence[Tokens], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """(ids, mask), right-padded to the longest sequence."""
    width = max(len(sequence) for sequence in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.as_tensor(sequence)
        mask[row, : len(sequence)] = 1
    return ids.to(device), mask.to(device)


def batches(
    sequences: Sequence[Tokens], tokens: int, device: torch.device | str = "cpu", *, sort: bool = True
) -> Iterator[PaddedBatch]:
    """Padded batches of at most `tokens` tokens (at least one sequence), similar lengths together when sorting."""
    order = list(range(len(sequences)))
    if sort:
        order.sort(key=lambda row: len(sequences[row]), reverse=True)
    rows: list[int] = []
    width = 0
    for row in order:
        width_with = max(width, len(sequences[row]))
        if rows and width_with * (len(rows) + 1) > tokens:
            yield PaddedBatch(rows, *pad([sequences[r] for r in rows], device))
            rows, width_with = [], len(sequences[row])
        rows.append(row)
        width = width_with
    if rows:
        yield PaddedBatch(rows, *pad([sequences[r] for r in rows], device))
