"""Work in processes of its own: one that may be killed, or two that talk to each other by torch.distributed."""

from __future__ import annotations

import datetime
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed


def exit_code_of(work: Callable[[], object]) -> int | None:
    """Of a process that does this work: 0 if it ends well, and less than that if it is killed."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    assert not process.is_alive()
    return process.exitcode


def results_of_two(work: Callable[[], Any], folder: Path, patience: float = 60) -> dict[int, Any]:
    """What the same work returns in each of two processes, by rank; a RuntimeError where it raises one.

    The two meet in `folder`; one gives up when it has waited `patience` seconds for the other.
    """
    context = multiprocessing.get_context("fork")
    results = context.Queue()

    def one(rank: int) -> None:
        torch.set_num_threads(1)
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=2,
            timeout=datetime.timedelta(seconds=patience),
        )
        try:
            results.put((rank, work()))
        except RuntimeError as failure:
            results.put((rank, failure))
            raise
        distributed.destroy_process_group()

    workers = [context.Process(target=one, args=(rank,)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = dict(results.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join(10)
        worker.kill()
    return found
