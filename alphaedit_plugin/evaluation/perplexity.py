"""How well a model predicts held-out text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import CorpusError
from ..model.batches import Tokens, batches, digest
from ..model.decoder import Decoder
from ..model.gradients import gradients
from ..model.trace import evaluating, logits_at
from ..progress import progress_bar
from .facts import Fact
from .measure import Measured, estimate

WINDOW = 256


class Perplexity:
    """exp of the mean negative log-likelihood per token of a text, in windows of 256 tokens; intervals over windows.

    It is infinite for a model whose outputs are no longer finite.
    """

    name = "perplexity"

    def __init__(self, text: str, tokenizer: Any) -> None:
        """Raises CorpusError for a text of fewer than two tokens."""
        ids = tokenizer(text, verbose=False)["input_ids"]
        windows = [ids[i : i + WINDOW] for i in range(0, len(ids), WINDOW)]
        self.windows = [window for window in windows if len(window) > 1]
        if not self.windows:
            raise CorpusError("the held-out text is empty: perplexity needs some")

    def identity(self) -> Mapping[str, Any]:
        return {"windows": digest(self.windows)}

    def __call__(
        self,
        model: nn.Module,
        tokenizer: Any,
        facts: Sequence[Fact],
        before: Measured | None,
        *,
        progress: bool = False,
    ) -> Measured:
        losses, counts = negative_log_likelihoods(model, self.windows, progress=progress)
        items = torch.stack([losses, counts], 1).numpy()
        records = [
            {"loss": loss / count if isfinite(loss) else None, "tokens": int(count)} for loss, count in items.tolist()
        ]

        def over_windows(sample: np.ndarray) -> np.ndarray:
            with np.errstate(over="ignore"):
                mean = sample[..., 0].sum(-1) / sample[..., 1].sum(-1)
                return np.exp(np.where(np.isnan(mean), np.inf, mean))

        return Measured({"perplexity": estimate(items, over_windows)}, records)


@gradients(False)
def negative_log_likelihoods(
    model: nn.Module, windows: Sequence[Tokens], *, batch_tokens: int = 1024, progress: bool = False
) -> tuple[Tensor, Tensor]:
    """(sums over the scored tokens, number of scored tokens) of each window, float64."""
    decoder = Decoder(model)
    losses, counts = torch.zeros(2, len(windows), dtype=torch.float64)
    with evaluating(model):
        for batch in progress_bar(
            list(batches(windows, batch_tokens, decoder.device)), desc="perplexity", shown=progress, leave=False
        ):
            real = batch.mask[:, 1:].bool()
            at, position = real.cpu().nonzero().T
            with logits_at(decoder.head, at, position):
                logits = model(**batch.model_inputs(), use_cache=False).logits[0]
            tokens = batch.ids[:, 1:][real].to(logits.device)
            loss = nn.functional.cross_entropy(logits.float(), tokens, reduction="none").cpu().double()
            rows = torch.tensor(batch.rows)[at]
            losses.index_add_(0, rows, loss)
            counts.index_add_(0, rows, torch.ones_like(loss))
    return losses, counts
