"""Ctrl-C at a chosen place: at each point where CPython looks for signals, in turn or at random."""

from __future__ import annotations

import dis
import functools
import gc
import itertools
import random
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any


@dataclass
class Interrupted:
    """What became of a call. A point is where CPython may run a signal's handler: the entry of a Python function, the
    instruction after a call, a jump backwards."""

    points: int
    where: str | None
    """Function and line of the interrupt; None if the call ended before it."""
    raised: BaseException | None


_LOOKS = ("RESUME", "JUMP_BACKWARD", "CALL")
"""After these instructions CPython looks for signals."""


@functools.cache
def _names(code: CodeType) -> dict[int, str]:
    return {instruction.offset: instruction.opname for instruction in dis.get_instructions(code)}


def interrupted(function: Callable[[], Any], at: int | None) -> Interrupted:
    """Calls `function`, with Ctrl-C at its point number `at` (from 1). The handler of the moment is called, as a signal
    would call it, but always at the same place."""
    last: dict[FrameType, str] = {}
    outcome = Interrupted(0, None, None)

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        if outcome.where is not None:
            return None
        frame.f_trace_opcodes = True
        point = event == "opcode" and last.get(frame, "").startswith(_LOOKS)
        if event == "opcode":
            last[frame] = _names(frame.f_code).get(frame.f_lasti, "")
        elif event == "call":
            last[frame] = "RESUME"
        elif event == "exception":
            last[frame] = ""  # what raised does not look
        outcome.points += point
        if point and outcome.points == at:
            outcome.where = f"{frame.f_code.co_qualname}:{frame.f_lineno}"
            handler = signal.getsignal(signal.SIGINT)
            if callable(handler):
                handler(signal.SIGINT, frame)
        return trace

    others, collects = sys.gettrace(), gc.isenabled()
    gc.disable()  # Python swallows what is raised in a finalizer
    try:
        sys.settrace(trace)
        function()
    except BaseException as failure:
        outcome.raised = failure
    finally:
        sys.settrace(others)
        if collects:
            gc.enable()
    return outcome


def at_every_point(function: Callable[[], Any], *, step: int = 1) -> Iterator[Interrupted]:
    """Calls `function` again and again, interrupted at each point in turn (or at every `step`th)."""
    for at in itertools.count(1, step):
        outcome = interrupted(function, at)
        if outcome.where is None:
            return
        yield outcome


def at_random_points(function: Callable[[], Any], count: int, seed: int) -> Iterator[Interrupted]:
    """Calls `function` `count` times, each interrupted at another point."""
    points = interrupted(function, None).points
    for at in random.Random(seed).sample(range(1, points + 1), min(count, points)):
        outcome = interrupted(function, at)
        if outcome.where is not None:  # caches may make a later call shorter
            yield outcome
