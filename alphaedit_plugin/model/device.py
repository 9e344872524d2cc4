"""Which device a model goes to."""

from __future__ import annotations

import torch

from ..errors import ModelStructureError
from .precision import float64_device


def device_of(name: str) -> torch.device:
    """The device of this name. "auto" is the accelerator, if there is one that has float64, in which updates are
    written (Apple's has not); else the CPU.

    Raises ModelStructureError, with the devices that there are, if this torch cannot compute there.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return float64_device(found or "cpu")
    try:
        torch.zeros(1, device=name).cpu()
    except Exception as failure:  # each backend has an error of its own for what is not there
        reason = str(failure).splitlines()[0].split(". ")[0]
        raise ModelStructureError(
            f"the device {name!r} cannot be used here: say {', '.join(_devices())} or auto, the best of them ({reason})"
        ) from failure
    return torch.device(name)


def _devices() -> list[str]:
    if not torch.accelerator.is_available():
        return ["cpu"]
    kind = torch.accelerator.current_accelerator()
    return ["cpu", *(f"{kind}:{index}" for index in range(torch.accelerator.device_count()))]
