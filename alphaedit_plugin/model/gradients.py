"""Whether torch records gradients, for a block."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..restoring import restoring


@restoring
def gradients(recorded: bool) -> Iterator[None]:
    """`torch.set_grad_enabled` for a block, or as a decorator; what was set before is set again, whenever Ctrl-C comes.

    (torch.no_grad() leaves gradients off for the rest of the process if an interrupt comes while it ends.)
    """
    before = torch.is_grad_enabled()
    try:
        torch.set_grad_enabled(recorded)
        yield
    finally:
        torch.set_grad_enabled(before)
