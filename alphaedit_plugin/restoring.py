"""Blocks that put back what they changed, whenever Ctrl-C comes."""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T_co = TypeVar("T_co", covariant=True)


def restoring(function: Callable[P, Iterator[T_co]]) -> Callable[P, Restoring[T_co]]:
    """`contextlib.contextmanager` for blocks that change something and must put it back.

    The generator changes things inside its `try` and restores them in its `finally`. Ctrl-C while it enters, or while
    the block runs, ends the block as usual; Ctrl-C while it restores waits until everything is restored. (With
    `contextlib.contextmanager`, an interrupt at the wrong instruction leaves a `finally` half done, or not begun.)

    Enter it by `with`, not through an ExitStack, which can itself be interrupted between two of its contexts.
    """
    return _decorated(function, enters_whole=False)


def swapping(function: Callable[P, Iterator[T_co]]) -> Callable[P, Restoring[T_co]]:
    """`restoring` for blocks that are entered at once: Ctrl-C waits while it enters, too.

    For what is swapped by means of others (hooks, redirected output), which may be interrupted before they can be put
    back.
    """
    return _decorated(function, enters_whole=True)


def _decorated(function: Callable[P, Iterator[T_co]], *, enters_whole: bool) -> Callable[P, Restoring[T_co]]:
    made = contextlib.contextmanager(function)

    @functools.wraps(function)
    def manager(*args: P.args, **kwargs: P.kwargs) -> Restoring[T_co]:
        return Restoring(lambda: made(*args, **kwargs), enters_whole)

    return manager


class Restoring(contextlib.AbstractContextManager[T_co], contextlib.ContextDecorator, Generic[T_co]):
    """One such block.

    Invariant: once the generator has yielded, the rest of it runs, whole, before an interrupt is raised. Python calls
    a signal's handler between two instructions of the main thread; `_on_interrupt` sees by the frame of that
    instruction whether a restoring part is about to begin.
    """

    def __init__(
        self, make: Callable[[], contextlib._GeneratorContextManager[T_co]], enters_whole: bool = False
    ) -> None:
        self._make, self._manager = make, make()
        self._previous: Any = None
        self._enters_whole = enters_whole
        self._waits = self._enters = self._over = False
        self._pending: tuple[int, FrameType | None] | None = None

    def _recreate_cm(self) -> Restoring[T_co]:
        return Restoring(self._make, self._enters_whole)  # for each call of a function that it decorates

    def __enter__(self) -> T_co:
        self._enters = True
        self._watch()
        try:
            value = next(self._manager.gen)
            self._waits = self._enters = False
            self._deliver()
        except BaseException as failure:
            self._waits = True
            try:
                self._manager.gen.throw(failure)  # restores, if it has yielded; raises `failure` again, if not
            except StopIteration:
                pass
            finally:
                self._release()
            if not isinstance(failure, KeyboardInterrupt):
                self._deliver()
            if isinstance(failure, StopIteration):
                raise RuntimeError("the generator did not yield") from None
            raise
        return value

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._waits = True
        try:
            return self._manager.__exit__(kind, value, trace)
        finally:
            self._release()
            if not isinstance(value, KeyboardInterrupt):
                self._deliver()

    def _watch(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # interrupts come to the main thread only, and only there may a handler be set
        previous = signal.getsignal(signal.SIGINT)
        if callable(previous):  # neither ignored nor handled outside Python
            self._previous, self._waits = previous, True  # until its own frames are left
            signal.signal(signal.SIGINT, self._on_interrupt)
            self._waits = self._enters_whole

    def _release(self) -> None:
        """Give Ctrl-C back. A block that ends before one that began later stays in the chain, and passes it on.

        So does one that ends in another thread, where no handler may be set; the next to end takes them out.
        """
        self._over = True
        here = threading.current_thread() is threading.main_thread()
        if here and self._previous is not None and signal.getsignal(signal.SIGINT) == self._on_interrupt:
            previous = self._previous
            while isinstance(owner := getattr(previous, "__self__", None), Restoring) and owner._over:
                previous = owner._previous
            signal.signal(signal.SIGINT, previous)
        self._waits = False

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        ours = frame is not None and frame.f_code in _MUST_NOT_BREAK and frame.f_locals.get("self") is self
        if self._waits or ours:
            self._pending = number, frame
            return
        try:
            self._previous(number, frame)
        except BaseException:
            self._waits = self._enters  # the generator's `finally` runs now: a second interrupt waits
            raise

    def _deliver(self) -> None:
        """Raise the interrupt that had to wait, if one came."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._previous(*pending)


_MUST_NOT_BREAK = {
    method.__code__
    for method in (
        Restoring.__enter__, Restoring.__exit__, Restoring._watch, Restoring._release, Restoring._on_interrupt
    )
}  # fmt: skip
