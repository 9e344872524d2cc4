"""A lock for processes on several machines: whoever dies, or loses its machine, loses it too."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import SoftFileLease, Timeout

log = logging.getLogger(__name__)

_SECONDS = 120.0  # every process must agree on it
_POLL = 0.2


@contextmanager
def leased(path: Path, *, wait: bool) -> Iterator[bool]:
    """Yield whether this process holds `path`; if another one does, `wait` for it or yield False.

    Holding is a file that is made atomically and touched every 40 seconds, which needs no lock manager: it works
    on NFS and Lustre. It passes on if its process has died (at once on the same machine), or has not touched it for
    two minutes. A holder that was only slow is then one of two, which the log says: what a lease protects must bear
    that. Raises OSError if the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lease = SoftFileLease(path, lease_duration=_SECONDS, poll_interval=_POLL)
    try:
        lease.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        owner = lease.owner  # looked at now, as the last touch may be 40 seconds ago
        lost = lease.compromise is not None or owner is None or owner.token != lease.token
        lease.release()
        if lost:
            log.warning("%s passed to another process meanwhile: some work is done twice", path)
