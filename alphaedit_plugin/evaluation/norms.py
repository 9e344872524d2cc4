"""How far edits have stretched a model: the norms of its edited weights, and of its hidden states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CorpusError
from ..model.batches import Tokens, batches, digest
from ..model.decoder import Decoder, first_stream, hidden_states
from ..model.gradients import gradients
from ..model.trace import evaluating, hooks, stop, stopping
from ..progress import progress_bar
from .facts import Fact
from .measure import Estimate, Measured, mean_of

WINDOW, WINDOWS = 256, 16


class Norms:
    """Relative to the model before any edit: `weight_norm`, the mean over `layers` of ‖W‖ of their out-projections, and
    `state_norm`, the mean length of hidden states of a text, where the last of these layers has added its own.

    A window's first token counts not: on many models it is an attention sink, a thousand times as long as any other.
    Growth of either is said to come before collapse (Gupta et al. 2025, 2502.01636; Liu et al. 2026, 2602.02543). The
    second is infinite where states are no longer finite.
    """

    name = "norms"

    def __init__(self, text: str, tokenizer: Any, layers: Sequence[int], template: str | None = None) -> None:
        """Of the text the first 16 windows of 256 tokens. Raises CorpusError for a text of fewer than two tokens."""
        ids = tokenizer(text, verbose=False)["input_ids"][: WINDOW * WINDOWS]
        windows = [ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW)]
        self.windows = [window for window in windows if len(window) > 1]
        self.layers, self.template = tuple(sorted(set(layers))), template
        if not self.windows:
            raise CorpusError("the held-out text is empty: the lengths of hidden states need some")

    def identity(self) -> Mapping[str, Any]:
        return {"windows": digest(self.windows), "layers": list(self.layers), "template": self.template}

    def __call__(
        self,
        model: nn.Module,
        tokenizer: Any,
        facts: Sequence[Fact],
        before: Measured | None,
        *,
        progress: bool = False,
    ) -> Measured:
        decoder = Decoder(model, self.template)
        weights = [float(p.matrix.double().norm()) for p in decoder.out_projections(self.layers).values()]
        states = state_norms(decoder, self.windows, self.layers[-1], progress=progress).tolist()
        now = weights + states
        then = now if before is None else before.records[0]["norms"]
        ratios = [one / other for one, other in zip(now, then, strict=True)]
        count = len(weights)
        stretched = {"weight_norm": Estimate(sum(ratios[:count]) / count), "state_norm": mean_of(ratios[count:])}
        known = [norm if isfinite(norm) else None for norm in now]
        return Measured({name: of for name, of in stretched.items() if of}, [{"norms": known}])


@gradients(False)
def state_norms(
    decoder: Decoder, windows: Sequence[Tokens], layer: int, *, batch_tokens: int = 1024, progress: bool = False
) -> Tensor:
    """The mean ‖h‖ over each window's tokens but the first, h the output of block `layer`: float64, on the CPU."""
    seen: list[Tensor] = []

    def read(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.append(first_stream(hidden_states(output), decoder.hidden_size))
        stop()

    found = torch.zeros(len(windows), dtype=torch.float64)
    bar = progress_bar(total=len(windows), desc="norms", unit="window", shown=progress, leave=False)
    with evaluating(decoder.model), hooks((decoder.block(layer), read)), bar:
        for batch in batches(windows, batch_tokens, decoder.device):
            with stopping():
                decoder.model(**batch.model_inputs(), use_cache=False)
            hidden = seen.pop()
            norms = hidden.reshape(*batch.ids.shape, -1).double().norm(dim=-1).nan_to_num(torch.inf).cpu()
            counted = batch.mask.bool().cpu()
            counted[:, 0] = False
            found[torch.tensor(batch.rows)] = torch.where(counted, norms, 0.0).sum(1) / counted.sum(1)
            bar.update(len(batch.rows))
    return found
