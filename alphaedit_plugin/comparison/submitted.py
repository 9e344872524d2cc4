"""Jobs on a cluster that share the work of a run, sent by submitit: one that dies is sent again."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import CompareError
from ..restoring import restoring

log = logging.getLogger(__name__)

SLURM, HERE = "submitit", "submitit-local"
"""Engines: SLURM, and processes on this machine that are dealt with in the same way."""

HELPS, WAITS = "helps", "waits"
"""Kinds of worker: one ends when all that is left is being worked on, the other when nothing is left."""

_CLUSTERS = {SLURM: "slurm", HERE: "local"}
_DEATHS, _TIMEOUTS = 3, 20
_MINUTES = 240
_GENERIC = ("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node")
_SECOND, _LOOK = 1.0, 30.0


@dataclass(frozen=True)
class Worker:
    """What a job does: `alphaedit` with these words, in a process that ends with the job's.

    The process is in a session of its own: SLURM's signals are for submitit, which answers them.
    """

    words: tuple[str, ...]
    folder: str
    threads: int | None = None

    def __call__(self) -> int:
        """The exit code, or below 0 the signal that killed it."""
        environment = dict(os.environ)
        if self.threads is not None:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        command = [sys.executable, "-m", "alphaedit_plugin", *self.words]
        process = subprocess.Popen(
            command, cwd=self.folder, env=environment, stdin=subprocess.PIPE, start_new_session=True
        )
        try:
            return process.wait()
        finally:  # submitit ends a job that is preempted, or out of time, by an exception
            process.kill()

    def checkpoint(self) -> Any:
        """What submitit puts back into the queue when the job is preempted or out of time: the same once more."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def executor_of(engine: str, folder: Path, parameters: Mapping[str, Any]) -> Any:
    """What sends jobs, with its logs in `folder`. `parameters` are submitit's, or those of sbatch.

    Raises CompareError if submitit or SLURM is missing, or a parameter is wrong.
    """
    if find_spec("submitit") is None:
        raise CompareError(f"--engine {engine} needs submitit: pip install 'alphaedit-plugin[slurm]'")
    from submitit import AutoExecutor

    given = {name if name in _GENERIC else f"slurm_{name}": value for name, value in parameters.items()}
    given = {"name": "alphaedit", "timeout_min": _MINUTES, **given}
    try:
        AutoExecutor(folder, cluster="debug").update_parameters(**given)  # checks the names, and does nothing else
        executor = AutoExecutor(folder, cluster=_CLUSTERS[engine], slurm_max_num_timeout=_TIMEOUTS)
        executor.update_parameters(**given)
    except RuntimeError as failure:
        raise CompareError(
            f"--engine {engine}: {failure} Run it where `srun` is, or say --engine {HERE} to try it on this machine"
        ) from failure
    except (NameError, ValueError, AssertionError) as failure:  # one line per thing that is wrong
        raise CompareError(f"--slurm: {str(failure).splitlines()[0]}") from failure
    return executor


@restoring
def _cancelling() -> Iterator[dict[int, Any]]:
    """Jobs under way by number; those that are left when the block ends are cancelled."""
    jobs: dict[int, Any] = {}
    try:
        yield jobs
    finally:
        for job in jobs.values():
            job.cancel(check=False)


def run_jobs(executor: Any, workers: Sequence[Worker], look: Callable[[], None] = lambda: None) -> None:
    """Send all workers and wait for them; `look` is called every half a minute, and whenever one ends.

    A worker that dies (killed, out of memory, its machine lost) is sent again, up to three times; one that ends by
    itself with an error is not. The first worker finishes what others leave: its failure is a CompareError that names
    its log, those of others are warnings.
    """
    failed: dict[int, str] = {}
    deaths = dict.fromkeys(range(len(workers)), 0)
    looked = time.monotonic()
    with _cancelling() as jobs:
        for number, worker in enumerate(workers):
            jobs[number] = executor.submit(worker)
        while jobs:
            ended = {number: job for number, job in jobs.items() if job.done()}
            for number, job in ended.items():
                del jobs[number]
                code = _exit_code(job)
                if code is None or code < 0:
                    deaths[number] += 1
                    if deaths[number] <= _DEATHS:
                        jobs[number] = executor.submit(workers[number])
                        log.warning(
                            "job %s died (%s); it is sent again as job %s, which goes on where it stopped (%d of %d)",
                            job.job_id, _log_of(job), jobs[number].job_id, deaths[number], _DEATHS,
                        )  # fmt: skip
                        continue
                    failed[number] = f"job {job.job_id} died, as those before it: see {_log_of(job)}"
                elif code:
                    failed[number] = f"job {job.job_id} failed: {_last_line(job)} (all of it: {_log_of(job)})"
            if ended or time.monotonic() - looked > _LOOK:
                looked = time.monotonic()
                look()
            if jobs:
                time.sleep(_SECOND)
    if 0 in failed:
        raise CompareError(f"{failed[0]}. What is done is kept: put this right and give the same --out again")
    for said in failed.values():
        log.warning("%s. Another job did its work", said)


def _exit_code(job: Any) -> int | None:
    """Of an ended job's worker; None if the job died with it."""
    from submitit.core.utils import UncompletedJobError

    failure = job.exception()
    if isinstance(failure, UncompletedJobError):
        return None
    return 1 if failure is not None else int(job.result())


def _log_of(job: Any) -> Path:
    return Path(job.paths.stderr)


def _last_line(job: Any) -> str:
    """The last thing that a job said."""
    lines = [line for line in (job.stderr() or "").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"
