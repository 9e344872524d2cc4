"""Helper processes: they end quietly when their work is done, and with their parent whatever becomes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from support.paths import ROOT

HELPER = "from alphaedit_plugin.comparison.jobs import end_with_parent; end_with_parent()"

pytestmark = pytest.mark.slow


def helper(then: str) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", f"{HELPER}; {then}"], cwd=ROOT, text=True, **pipes)


@pytest.mark.parametrize(
    "then", ["pass", "import sys; sys.stdin", "import time; time.sleep(0.2)", "raise SystemExit(0)"]
)
def test_a_helper_whose_work_is_done_ends_with_0_and_says_nothing(then):
    """Its parent lives on, and so does its standard input."""
    process = helper(then)
    assert process.wait(60) == 0
    assert process.stderr.read() == ""
    process.stdin.close()


def test_a_helper_ends_when_its_parent_closes_its_input():
    process = helper("import time; print('ready', flush=True); time.sleep(60)")
    assert process.stdout.readline() == "ready\n"
    process.stdin.close()
    assert process.wait(10) == 1
    assert "Fatal" not in process.stderr.read()


def test_a_helper_ends_when_its_parent_is_killed():
    parent = textwrap.dedent(
        f"""
        import subprocess, sys, time
        command = [sys.executable, "-c", {HELPER + "; import time; print(1, flush=True); time.sleep(60)"!r}]
        helper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        helper.stdout.readline()
        print(helper.pid, flush=True)
        time.sleep(60)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT, text=True, stdout=subprocess.PIPE)
    pid = int(process.stdout.readline())
    assert alive(pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)


def alive(pid: int) -> bool:
    """Whether it runs; not one that has ended and that nobody has waited for."""
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
