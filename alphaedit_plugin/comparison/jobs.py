"""Helper processes that run the same command beside this one."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

import torch

from ..restoring import restoring

log = logging.getLogger(__name__)


def end_with_parent() -> None:
    """In a helper process: end as soon as its parent does."""

    def watch() -> None:
        while os.read(0, 4096):  # not sys.stdin, whose lock nobody may hold when the interpreter ends
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@restoring
def helping(count: int, arguments: Sequence[str]) -> Iterator[Callable[[], None]]:
    """Run `alphaedit` with `arguments` in `count` helper processes during the block; all share the processor's cores.

    Yields what waits for them; helpers that are left when the block ends are ended. A failed helper only causes a
    warning: the block itself does what the helper left undone.
    """
    if not count:
        yield lambda: None
        return
    before, threads = torch.get_num_threads(), threads_of_one(count + 1)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "alphaedit_plugin", *arguments]
    helpers: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):  # a helper ends when its standard input closes, so always with this process
            helpers.append(subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL))
        torch.set_num_threads(threads)
        yield lambda: _wait(helpers)
    finally:
        torch.set_num_threads(before)
        for helper in helpers:
            if helper.poll() is None:
                helper.terminate()
                helper.wait()


def threads_of_one(count: int) -> int:
    """The share of this process's threads that each of `count` processes on this machine gets."""
    return max(1, torch.get_num_threads() // count)


def _wait(helpers: Sequence[subprocess.Popen[bytes]]) -> None:
    for helper in helpers:
        if helper.wait():
            log.warning("a process of --jobs ended with code %d", helper.returncode)
