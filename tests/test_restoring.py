"""Blocks that put back what they changed: as contextlib's, and whole whenever Ctrl-C comes."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

import pytest
from support.interrupting import at_every_point, interrupted

from alphaedit_plugin.restoring import restoring, swapping


class Table(dict):
    """What blocks change. As it was: empty."""

    def __init__(self) -> None:
        super().__init__()
        self.restored = 0

    def put(self, key: str) -> None:
        self[key] = len(self)

    def remove(self, key: str) -> None:
        self.pop(key, None)
        self.restored += 1


@pytest.fixture(autouse=True)
def _the_handler_stays():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    now = signal.signal(signal.SIGINT, before)
    assert now is signal.default_int_handler, "Ctrl-C was not given back"


def changing(table: Table, decorator=restoring):
    @decorator
    def change(key: str) -> Iterator[str]:
        try:
            table.put(key)
            yield key
        finally:
            str(key)
            table.remove(key)

    return change


DECORATORS = pytest.mark.parametrize("decorator", [restoring, swapping], ids=["restoring", "swapping"])


def nested(table: Table, decorator=restoring) -> None:
    change = changing(table, decorator)
    with change("a"), change("b"):
        for key in "xyz":
            str(key)


# --------------------------------------------------------------------------------------------------- as contextlib


@DECORATORS
def test_it_yields_the_generators_value_and_restores(decorator):
    table = Table()
    with changing(table, decorator)("a") as value:
        assert value == "a"
        assert table == {"a": 0}
    assert table == {}


@DECORATORS
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, StopIteration])
def test_the_blocks_own_exception_comes_out(decorator, error):
    table, mine = Table(), error("mine")

    def fail():
        with changing(table, decorator)("a"):
            raise mine

    with pytest.raises(error) as caught:
        fail()
    assert caught.value is mine
    assert table == {}


def test_a_generator_may_suppress_an_exception():
    @restoring
    def suppressing() -> Iterator[None]:
        with contextlib.suppress(ValueError):
            yield

    with suppressing():
        raise ValueError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_generator_may_raise_another_exception():
    @restoring
    def translating() -> Iterator[None]:
        try:
            yield
        except ValueError as failure:
            raise KeyError("theirs") from failure

    def fail():
        with translating():
            raise ValueError

    with pytest.raises(KeyError, match="theirs"):
        fail()


@restoring
def _without_yield() -> Iterator[None]:
    yield from ()


@restoring
def _with_two() -> Iterator[None]:
    yield
    yield


@pytest.mark.parametrize(("wrong", "message"), [(_without_yield, "did not yield"), (_with_two, "didn't stop")])
def test_a_generator_that_does_not_yield_once_is_reported(wrong, message):
    def enter():
        with wrong():
            pass

    with pytest.raises(RuntimeError, match=message):
        enter()


@pytest.mark.parametrize("decorator", [restoring, contextlib.contextmanager])
def test_what_fails_while_it_enters_is_raised(decorator):
    table = Table()

    @decorator
    def failing() -> Iterator[None]:
        try:
            table.put("a")
            raise ValueError("inside")
            yield
        finally:
            table.remove("a")

    def enter():
        with failing():
            pass

    with pytest.raises(ValueError, match="inside"):
        enter()
    assert table == {}


def test_it_decorates_functions_and_each_call_is_a_block_of_its_own():
    table = Table()

    @changing(table)("a")
    def look() -> dict:
        return dict(table)

    assert [look(), look()] == [{"a": 0}, {"a": 0}]
    assert table.restored == 2


def test_name_and_docstring_stay():
    @restoring
    def documented() -> Iterator[None]:
        """What it does."""
        yield

    assert documented.__name__ == "documented"
    assert documented.__doc__ == "What it does."


# ------------------------------------------------------------------------------------------------------ interrupted


@DECORATORS
def test_an_interrupt_at_any_point_leaves_nothing_changed_and_is_raised(decorator):
    table = Table()
    tried = 0
    for outcome in at_every_point(lambda: nested(table, decorator)):
        assert isinstance(outcome.raised, KeyboardInterrupt), outcome.where
        assert table == {}, outcome.where
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, outcome.where
        tried += 1
    assert tried > 100


def test_the_same_interrupts_break_contextlibs_blocks():
    """Were it not so, the test above would show nothing."""
    table, broken = Table(), 0
    for _ in at_every_point(lambda: nested(table, contextlib.contextmanager)):
        broken += table != {}
        table.clear()
    assert broken > 0


@DECORATORS
def test_a_second_interrupt_while_it_restores_waits(decorator):
    table = Table()

    def twice():
        with changing(table, decorator)("a"):
            signal.raise_signal(signal.SIGINT)

    for outcome in at_every_point(twice):
        assert isinstance(outcome.raised, KeyboardInterrupt), outcome.where
        assert table == {}, outcome.where
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, outcome.where


@DECORATORS
def test_an_interrupt_while_an_exception_restores_leaves_nothing_changed(decorator):
    """Then either comes out; the exception is not lost if Ctrl-C does."""
    table = Table()

    def fail():
        with changing(table, decorator)("a"), changing(table, decorator)("b"):
            raise ValueError("mine")

    seen = set()
    for outcome in at_every_point(fail):
        seen.add(type(outcome.raised))
        assert table == {}, outcome.where
    assert seen == {KeyboardInterrupt}


def test_an_interrupt_inside_the_restoring_part_comes_after_it():
    table = Table()

    @restoring
    def change() -> Iterator[None]:
        try:
            table.update(a=1, b=1)
            yield
        finally:
            del table["a"]
            signal.raise_signal(signal.SIGINT)
            del table["b"]

    def run():
        with change():
            pass
        table["after"] = True

    with pytest.raises(KeyboardInterrupt):
        run()
    assert table == {}


def test_an_interrupt_of_the_block_ends_it_at_once():
    table, reached = Table(), []

    def run():
        with changing(table)("a"):
            signal.raise_signal(signal.SIGINT)
            reached.append("after")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert reached == []


def test_a_swapping_block_is_entered_whole():
    entered = Table()

    @swapping
    def change() -> Iterator[None]:
        try:
            entered.put("begun")
            signal.raise_signal(signal.SIGINT)
            entered.put("done")
            yield
        finally:
            entered.restored += 1

    def run():
        with change():
            entered.put("block")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert set(entered) == {"begun", "done"}
    assert entered.restored == 1


def test_the_users_own_handler_is_called_and_comes_back():
    table, seen = Table(), []

    def handler(number, _frame):
        seen.append(number)

    default = signal.signal(signal.SIGINT, handler)
    try:
        with changing(table)("a"):
            signal.raise_signal(signal.SIGINT)
            assert table == {"a": 0}, "this handler does not end the block"
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, default)
    assert seen == [signal.SIGINT]


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_ctrl_c_that_is_ignored_or_left_to_the_system_stays_so(handler):
    table = Table()
    default = signal.signal(signal.SIGINT, handler)
    try:
        with changing(table)("a"):
            assert signal.getsignal(signal.SIGINT) == handler
        assert signal.getsignal(signal.SIGINT) == handler
    finally:
        signal.signal(signal.SIGINT, default)
    assert table == {}


def test_a_handler_that_the_block_sets_stays():
    def theirs(_number, _frame):
        """Somebody else's."""

    with changing(Table())("a"):
        signal.signal(signal.SIGINT, theirs)
    assert signal.signal(signal.SIGINT, signal.default_int_handler) is theirs


@DECORATORS
def test_it_works_in_other_threads(decorator):
    table, errors = Table(), []

    def run():
        try:
            nested(table, decorator)
        except BaseException as failure:
            errors.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert errors == []
    assert table == {}
    assert table.restored == 2


def _held_open(table: Table, key: str) -> Iterator[None]:
    with changing(table)(key):
        yield


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_blocks_may_end_in_any_order(order):
    table = Table()
    blocks = {key: _held_open(table, key) for key in "ab"}
    for key in "ab":
        next(blocks[key])
    for key in order:
        with contextlib.suppress(StopIteration):
            next(blocks[key])
    assert table == {}


def test_what_one_block_of_another_order_leaves_in_the_chain_still_passes_interrupts_on():
    table = Table()
    first, second = _held_open(table, "a"), _held_open(table, "b")
    next(first)
    next(second)
    with contextlib.suppress(StopIteration):
        next(first)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    second.close()
    assert table == {}


def test_a_block_that_ends_in_another_thread_gives_ctrl_c_back_with_the_next():
    table = Table()
    held = _held_open(table, "a")
    next(held)
    thread = threading.Thread(target=held.close)
    thread.start()
    thread.join()
    assert table == {}
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert interrupted(lambda: nested(table), 60).where is not None
    signal.signal(signal.SIGINT, signal.default_int_handler)  # until a block of its own begins before, it stays


def test_a_block_that_nobody_ends_restores_when_it_is_collected():
    table = Table()
    held = _held_open(table, "a")
    next(held)
    del held
    assert table == {}
