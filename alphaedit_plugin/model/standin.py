"""Replace blocks whose output is already known, so that they compute nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..restoring import restoring
from .decoder import Decoder, with_hidden_states


class _StandIn(nn.Module):
    """Takes a block's place and returns the block's known output."""

    def __init__(self, block: nn.Module, output: Any, hidden: Tensor | None) -> None:
        super().__init__()
        self.__dict__["_stands_for"] = block
        self.__dict__["_output"], self.__dict__["_hidden"] = output, hidden

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_stands_for"], name)

    def forward(self, hidden: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        return with_hidden_states(self._output, hidden if self._hidden is None else self._hidden)


@restoring
def standing_in(decoder: Decoder, layer: int, hidden: Tensor | None, output: Any) -> Iterator[None]:
    """Replace blocks 0 … layer, which then compute nothing; block `layer` returns `hidden`, shaped like its `output`.

    With layer −1 no block is replaced.
    """
    originals = [decoder.blocks[i] for i in range(layer + 1)]
    try:
        for i, block in enumerate(originals):
            decoder.blocks[i] = _StandIn(block, output, hidden if i == layer else None)
        yield
    finally:
        for i, block in enumerate(originals):
            decoder.blocks[i] = block
