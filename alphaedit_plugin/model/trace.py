"""Read what goes into or comes out of some modules during one forward pass."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn


class _EnoughSeen(Exception):
    """Ends a forward pass whose remaining layers are not needed."""


@contextmanager
def stopping() -> Iterator[None]:
    """Run a forward pass inside; it ends where a hook calls `stop`."""
    with suppress(_EnoughSeen):
        yield


def stop() -> None:
    """End the forward pass under way, from inside a hook."""
    raise _EnoughSeen


@contextmanager
def hooks(*handles: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    """Remove the given hooks when the block ends, also after an error."""
    try:
        with _eagerly():
            yield
    finally:
        for handle in handles:
            handle.remove()


def inputs_of(
    modules: Mapping[int, nn.Module], run: Callable[[], Any], *, last: int | None = None
) -> dict[int, Tensor]:
    """The first input of each module during `run()`, detached.

    `last` names the module after which the pass stops; None lets it run to its end.
    """
    seen: dict[int, Tensor] = {}

    def watch(key: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            seen[key] = args[0].detach()
            if key == last:
                stop()

        return hook

    handles = [module.register_forward_pre_hook(watch(key)) for key, module in modules.items()]
    with hooks(*handles), stopping():
        run()
    return seen


def _eagerly() -> AbstractContextManager[Any]:
    """Runs as plain Python what torch.compile has compiled, which would not see hooks that came later."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def logits_at(head: nn.Module, rows: Tensor, positions: Tensor) -> Iterator[None]:
    """Let the head see only the hidden states at (row, position): the model then returns logits 1 × n × vocabulary.

    The model still applies its own scaling and soft caps to these logits; all others are never computed.
    """

    def gather(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        chosen = hidden[rows.to(hidden.device), positions.to(hidden.device)]
        return (chosen.unsqueeze(0), *args[1:])

    with hooks(head.register_forward_pre_hook(gather)):
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turn dropout off inside the block, and restore every module's training flag afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
