"""Jobs that submitit sends, on this machine: the dead are sent again, errors are not, and none is left behind."""

from __future__ import annotations

import logging
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from alphaedit_plugin.comparison import submitted
from alphaedit_plugin.comparison.submitted import HERE, SLURM, Worker, executor_of, run_jobs
from alphaedit_plugin.errors import CompareError

pytestmark = pytest.mark.slow


@pytest.fixture
def executor(tmp_path, monkeypatch):
    """Sends workers that run Python code, in the place of `alphaedit`."""
    (tmp_path / "alphaedit_plugin").mkdir()
    (tmp_path / "alphaedit_plugin" / "__init__.py").touch()
    (tmp_path / "alphaedit_plugin" / "__main__.py").write_text("import sys\nexec(sys.argv[1])\n")
    monkeypatch.setattr(submitted, "_SECOND", 0.05)
    monkeypatch.setattr(
        "submitit.core.core.Job._results_timeout_s", 1
    )  # for results that a slow disk has not shown yet
    return executor_of(HERE, tmp_path / "jobs", {})


def worker(code: str, tmp_path: Path) -> Worker:
    return Worker((code,), str(tmp_path))


def dying(times: int, where: Path) -> str:
    """Code that is killed so many times, and then ends well; each time leaves a line."""
    return (
        f"import os, pathlib; p = pathlib.Path({str(where)!r}); p.open('a').write('x\\n'); "
        f"len(p.read_text().split()) > {times} or os.kill(os.getpid(), {signal.SIGKILL})"
    )


def tries(path: Path) -> int:
    return len(path.read_text().split())


def test_a_worker_that_dies_is_sent_again(executor, tmp_path, caplog):
    looked = []
    with caplog.at_level(logging.WARNING):
        run_jobs(executor, [worker(dying(2, tmp_path / "a"), tmp_path)], lambda: looked.append(1))
    assert tries(tmp_path / "a") == 3
    assert [record.getMessage().count("died") for record in caplog.records] == [1, 1]
    assert len(looked) == 3


def test_a_worker_that_always_dies_is_given_up_and_its_log_named(executor, tmp_path):
    with pytest.raises(CompareError, match=r"died.*jobs/\d+_0_log\.err"):
        run_jobs(executor, [worker(dying(99, tmp_path / "a"), tmp_path)])
    assert tries(tmp_path / "a") == 1 + submitted._DEATHS


def test_a_job_whose_machine_is_lost_is_sent_again(executor, tmp_path):
    """With it go submitit's own processes, and no result is written."""
    code = (
        f"import os, pathlib, psutil; p = pathlib.Path({str(tmp_path / 'a')!r}); p.open('a').write('x\\n')\n"
        "if len(p.read_text().split()) == 1:\n"
        "    for each in psutil.Process().parents()[:2]: each.kill()\n"
        "    os.kill(os.getpid(), 9)"
    )
    run_jobs(executor, [worker(code, tmp_path)])
    assert tries(tmp_path / "a") == 2


def test_an_error_of_its_own_is_said_and_not_tried_again(executor, tmp_path):
    code = f"open({str(tmp_path / 'a')!r}, 'a').write('x\\n'); import sys; sys.exit('error: no such thing')"
    with pytest.raises(CompareError, match="error: no such thing"):
        run_jobs(executor, [worker(code, tmp_path)])
    assert tries(tmp_path / "a") == 1


def test_what_a_helper_fails_at_is_a_warning(executor, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run_jobs(executor, [worker("pass", tmp_path), worker("raise SystemExit('error: lost')", tmp_path)])
    assert "error: lost" in caplog.text


def test_an_interrupt_ends_all_jobs(executor, tmp_path):
    begun = [tmp_path / name for name in "ab"]
    # A worker ends when its job's end closes its standard input (`end_with_parent`): submitit leaves a job one second.
    code = "import pathlib, os; pathlib.Path({!r}).write_text(str(os.getpid())); os.read(0, 1)"

    def look() -> None:
        if all(path.exists() and path.read_text() for path in begun):
            raise KeyboardInterrupt

    # What a shell starts in the background ignores interrupts, and so do its children: submitit sends its jobs one.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(submitted, "_LOOK", 0.0)
            with pytest.raises(KeyboardInterrupt):
                run_jobs(executor, [worker(code.format(str(path)), tmp_path) for path in begun], look)
    finally:
        signal.signal(signal.SIGINT, before)
    left = [psutil.Process(pid) for pid in (int(path.read_text()) for path in begun) if psutil.pid_exists(pid)]
    psutil.wait_procs(left, timeout=20)
    assert not [each for each in left if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def test_the_worker_that_submitit_puts_back_into_the_queue_is_the_same(tmp_path):
    sent = worker("pass", tmp_path)
    assert sent.checkpoint().function == sent


def test_a_worker_has_its_threads_and_its_folder(tmp_path, executor):
    code = "import os, pathlib; pathlib.Path('said').write_text(os.environ['OMP_NUM_THREADS'])"
    run_jobs(executor, [replace(worker(code, tmp_path), threads=3)])
    assert (tmp_path / "said").read_text() == "3"


@pytest.mark.parametrize(
    ("parameters", "said"),
    [({"partitoin": "a100"}, "partitoin"), ({"timeout_min": "soon"}, "timeout_min"), ({"gpus_per_node": "2"}, "gpus")],
)
def test_a_wrong_parameter_is_named_before_anything_is_written(parameters, said, tmp_path):
    with pytest.raises(CompareError, match=said):
        executor_of(HERE, tmp_path / "jobs", parameters)
    assert not (tmp_path / "jobs").exists()


def test_slurms_own_words_pass(tmp_path):
    assert executor_of(HERE, tmp_path / "jobs", {"partition": "a100", "gpus_per_node": 0, "mem_gb": 4}) is not None


def test_without_slurm_the_remedy_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompareError, match=f"--engine {HERE}"):
        executor_of(SLURM, tmp_path / "jobs", {})


def test_without_submitit_the_remedy_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(submitted, "find_spec", lambda name: None)
    with pytest.raises(CompareError, match=r"pip install 'alphaedit-plugin\[slurm\]'"):
        executor_of(SLURM, tmp_path / "jobs", {})


def test_a_job_of_slurm_asks_for_what_was_said(tmp_path, monkeypatch):
    """The batch file that sbatch would get, from submitit's own executor; `srun` and `sbatch` are stand-ins."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, does in {
        "srun": "true",
        "sbatch": "echo Submitted batch job 12",
        "scancel": "true",
        "sacct": "true",
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{does}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    executor = executor_of(SLURM, tmp_path / "jobs", {"partition": "a100", "gpus_per_node": 1, "timeout_min": 480})
    job = executor.submit(worker("pass", tmp_path))
    asked = job.paths.submission_file.read_text()
    for line in ("--partition=a100", "--gpus-per-node=1", "--time=480", "--job-name=alphaedit", "--signal=USR2@90"):
        assert f"#SBATCH {line}" in asked, asked
    assert sys.executable in asked
