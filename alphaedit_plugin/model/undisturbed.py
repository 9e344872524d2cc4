"""What runs without a trace: random states, working directory and torch's defaults as they were."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ..restoring import restoring


@restoring
def seeded(seed: int) -> Iterator[None]:
    """Python's, NumPy's and torch's random states, seeded for the block and restored after it."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (other people's editors draw from it)
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            torch.manual_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


@restoring
def undisturbed() -> Iterator[None]:
    """The working directory, torch's default type and its number of threads are restored after the block."""
    folder, dtype, threads = Path.cwd(), torch.get_default_dtype(), torch.get_num_threads()
    try:
        yield
    finally:
        os.chdir(folder)
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
