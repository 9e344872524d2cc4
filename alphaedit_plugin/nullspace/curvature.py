"""How sharply the loss on preserved text reacts to what out-projections put out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..model.batches import PaddedBatch, Tokens, digest
from ..model.decoder import Decoder
from ..model.gradients import gradients
from ..model.trace import Hook, hooks, logits_at
from ..storage.store import Store
from .covariance import Covariance, summed, tokens_where
from .statistics import TOKENS_PER_DIMENSION, budget_for, kept_covariances, text_of, whole_model

log = logging.getLogger(__name__)

BATCH_TOKENS = 1024
"""Fewer than for keys: the gradient keeps all activations, and logits of the whole vocabulary."""


@gradients(True)
def output_gradients(
    model: nn.Module | Decoder,
    windows: Sequence[Tokens],
    layers: Sequence[int],
    *,
    template: str | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = False,
    partial: Path | None = None,
) -> dict[int, Covariance]:
    """B = Σ g gᵀ / N of all `layers` from one pass over `windows`, d_out × d_out each.

    g, d_out, is the gradient of a window's loss with respect to the out-projection's output at one token, and the loss
    is the sum of −log p over the window's next tokens. These are the text's own tokens, as in the authors' code of
    CrispEdit (arXiv 2602.15823, github.com/zarifikram/CrispEdit): B is a factor of the empirical Fisher matrix, while
    that of the true one would draw the tokens from the model. Together with C, the covariance of the inputs, it
    approximates the curvature of the loss in W by B ⊗ C (K-FAC, Martens and Grosse 2015).

    The N tokens are those that have a next one in their window: padding is never counted, and a last token predicts
    nothing. (The authors leave it out of C too; our C counts it, as for all methods.) All else is as in
    `covariance.collect`. Parameters keep their `grad`, and need not require one.

    Raises ModelStructureError for a model without a language-model head, StatisticsError if no token has a next one or
    a gradient is not finite.
    """
    decoder = Decoder.of(model, template)
    projections = decoder.out_projections(layers)
    head = decoder.head
    leaves: dict[int, Tensor] = {}

    def tap(layer: int) -> Hook:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            leaves[layer] = torch.zeros_like(output, requires_grad=True)  # no parameter needs to require a gradient
            return output + leaves[layer]

        return hook

    taps = [(projection.module, tap(layer)) for layer, projection in projections.items()]

    def read(batch: PaddedBatch) -> dict[int, Tensor]:
        predicting = batch.mask.roll(-1, 1)  # right-padded: a token has a next one where the next place has a token
        predicting[:, -1] = 0
        rows, positions = predicting.nonzero(as_tuple=True)
        if not len(rows):
            return {}
        with hooks(*taps), logits_at(head, rows, positions):
            logits = decoder.model(**batch.model_inputs(), use_cache=False).logits[0]
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        # The sum, not the mean: a token's gradient must not depend on who shares its batch.
        loss = nn.functional.cross_entropy(exact, batch.ids[rows, positions + 1].to(exact.device), reduction="sum")
        found = torch.autograd.grad(loss, [leaves[layer] for layer in projections])
        return {layer: tokens_where(predicting, each) for layer, each in zip(projections, found, strict=True)}

    return summed(
        decoder,
        windows,
        {layer: (projection.name, projection.d_out) for layer, projection in projections.items()},
        read,
        batch_tokens=batch_tokens,
        progress=progress,
        partial=partial,
    )


def prepare_output_gradients(
    model: nn.Module | Decoder,
    tokenizer: Any,
    layers: Sequence[int],
    *,
    source: str | Path | None = None,
    tokens: int | None = None,
    template: str | None = None,
    store: Store | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = False,
) -> dict[int, Covariance]:
    """`output_gradients` of the beginning of the text that `prepare_statistics` reads, from the store or collected and
    stored.

    Of at most 10 × the largest d_out tokens, by which B is as well known as C by 10 × d_in: a token costs ten times as
    much here, as all of the model is run, and backwards too. `tokens` are those of the whole text.

    Raises CorpusError for text that cannot be read, and what `output_gradients` raises.
    """
    store = store or Store()
    decoder = Decoder.of(model, template)
    projections = decoder.out_projections(layers)
    enough = TOKENS_PER_DIMENSION * max(projection.d_out for projection in projections.values())
    whole = text_of(decoder, tokenizer, source, budget_for(projections, tokens), store, progress)
    windows = _beginning(whole, enough)
    shared = {**whole_model(decoder), "text": {"tokens": sum(map(len, windows)), "digest": digest(windows)}}
    recipes: Mapping[int, dict[str, Any]] = {
        layer: {**shared, "module": projection.name, "counted": "gradients of the next tokens' loss"}
        for layer, projection in projections.items()
    }

    def collected(missing: list[int], partial: Path) -> dict[int, Covariance]:
        log.info("collecting gradients of layers %s over %d tokens", missing, shared["text"]["tokens"])
        return output_gradients(
            decoder, windows, missing, batch_tokens=batch_tokens, progress=progress, partial=partial
        )

    return kept_covariances(store, recipes, collected)


def _beginning(windows: Sequence[Tokens], tokens: int) -> list[Tokens]:
    """The first `tokens` tokens of a text."""
    chosen: list[Tokens] = []
    for window in windows:
        if tokens <= 0:
            break
        chosen.append(window[:tokens])
        tokens -= len(window)
    return chosen
