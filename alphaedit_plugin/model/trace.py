"""Read what goes into or comes out of some modules during one forward pass."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..restoring import restoring, swapping

Hook = Callable[..., Any]


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


@swapping
def hooks(*after: tuple[nn.Module, Hook], before: Sequence[tuple[nn.Module, Hook]] = ()) -> Iterator[None]:
    """Forward hooks, and forward pre-hooks (`before`), of these modules inside the block."""
    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for module, hook in after:
            handles.append(module.register_forward_hook(hook))
        for module, hook in before:
            handles.append(module.register_forward_pre_hook(hook))
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

    with hooks(before=[(module, watch(key)) for key, module in modules.items()]), stopping():
        run()
    return seen


def _eagerly() -> AbstractContextManager[Any]:
    """Runs as plain Python what torch.compile has compiled, which would not see hooks that came later."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@restoring
def logits_at(head: nn.Module, rows: Tensor, positions: Tensor) -> Iterator[None]:
    """Let the head see only the hidden states at (row, position): the model then returns logits 1 × n × vocabulary.

    The model still applies its own scaling and soft caps to these logits; all others are never computed.
    """

    def gather(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        chosen = hidden[rows.to(hidden.device), positions.to(hidden.device)]
        return (chosen.unsqueeze(0), *args[1:])

    with hooks(before=[(head, gather)]):
        yield


@restoring
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turn dropout off inside the block, and restore every module's training flag afterwards."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
