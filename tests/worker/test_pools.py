"""The pools under load: every message runs once, nothing is left asleep over work."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from taskq.broker.claims import Finish
from taskq.worker.delivery import Claim, Delivery, Done
from taskq.worker.outbox import Outbox
from taskq.worker.pools.coroutines import CoroutinePool
from taskq.worker.pools.threads import ThreadPool
from tests.eventually import let_pass, until

PRODUCERS, EACH = 4, 2000
CLAIM = Claim("q", b"w" * 32, b"0000000001", 1, 0.0)


@pytest.fixture(autouse=True)
def _restless() -> Iterator[None]:
    """Let threads change places as often as Python can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def delivery(number: int) -> Delivery:
    return Delivery(CLAIM, "t", b"", b"%d" % number)


def number_of(one: Delivery) -> int:
    return int(one.raw)


def done(one: Delivery) -> Done:
    return Done(one, Finish("s", one.raw))


def produce(put: Callable[[int], None]) -> None:
    """Call `put` with 8,000 numbers, from four threads."""

    def run(start: int) -> None:
        for number in range(start, start + EACH):
            put(number)

    threads = [threading.Thread(target=run, args=(at * EACH,)) for at in range(PRODUCERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def listen() -> None:
    """Hear a bell that rings all the time."""
    let_pass(0.001)


class Slots:
    """A pool of threads, and what it ran."""

    def __init__(self, size: int, lead: Callable[[], None] = lambda: None) -> None:
        self.ran: Counter[int] = Counter()
        self.outbox = Outbox(lambda *, prompt: None)
        self.pool = ThreadPool(size, self._run, self.outbox, lead, listen)

    def _run(self, one: Delivery, _slot: Any) -> Done:
        self.ran[number_of(one)] += 1
        return done(one)

    @property
    def idle(self) -> bool:
        return self.pool._idle >= self.pool.size and not self.pool.buffer

    def close(self) -> None:
        self.pool.stop()
        assert self.pool.join(5)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_no_wake_up_of_a_thread_is_lost(size: int) -> None:
    """One thread is woken for one message, by nobody's help: it must not be forgotten."""
    slots = Slots(size)
    slots.pool.start()
    produce(lambda number: slots.pool.put([delivery(number)], 0))
    until(lambda: len(slots.outbox) == PRODUCERS * EACH, 20)
    until(lambda: slots.idle)
    assert sorted(one.finish.field for one in slots.outbox.take()) == sorted(
        b"%d" % number for number in range(PRODUCERS * EACH)
    )
    slots.close()


def test_a_pool_that_is_idle_each_time_wakes_each_time() -> None:
    slots = Slots(4)
    slots.pool.start()
    for number in range(100):
        until(lambda: slots.idle)
        slots.pool.put([delivery(number)], 0)
        until(lambda n=number: len(slots.outbox) == n + 1)
    slots.close()


def test_the_thread_that_leads_takes_part_of_what_it_brings() -> None:
    """It claims on its way to rest; what it was given itself it must not sleep over."""
    left = list(range(3000))
    turn = threading.Lock()

    def lead() -> None:
        with turn:
            claimed = [delivery(left.pop()) for _ in range(min(3, len(left)))]
            if claimed:
                slots.pool.put(claimed, 0)

    slots = Slots(4, lead)
    slots.pool.start()
    lead()
    until(lambda: len(slots.outbox) == 3000, 20)
    until(lambda: slots.idle)
    slots.close()


def test_quick_messages_stay_on_one_thread_and_slow_ones_get_help() -> None:
    gate = threading.Event()
    busy: set[str] = set()

    def run(one: Delivery, _slot: Any) -> Done:
        busy.add(threading.current_thread().name)
        gate.wait(10)
        return done(one)

    outbox = Outbox(lambda *, prompt: None)
    pool = ThreadPool(4, run, outbox, lambda: None, listen)
    pool.start()
    until(lambda: pool._idle == 4)
    pool.put([delivery(number) for number in range(10)], 10)
    until(lambda: busy)
    let_pass(0.05)
    pool.help()
    pool.help()
    until(lambda: len(busy) == 4)
    let_pass(0.05)
    assert len(busy) == 4, "five threads, of which one may only listen"
    gate.set()
    until(lambda: len(outbox) == 10)
    pool.stop()
    assert pool.join(5)


def test_a_pool_stops_after_the_messages_it_runs() -> None:
    started, gate = threading.Event(), threading.Event()

    def run(one: Delivery, _slot: Any) -> Done:
        started.set()
        gate.wait(10)
        return done(one)

    outbox = Outbox(lambda *, prompt: None)
    pool = ThreadPool(1, run, outbox, lambda: None, listen)
    pool.start()
    pool.put([delivery(1), delivery(2)], 2)
    assert started.wait(5)
    pool.stop()
    assert not pool.join(0.05)
    gate.set()
    assert pool.join(5)
    assert len(outbox) == 1
    assert len(pool.buffer) == 1


def test_a_pool_without_threads_does_nothing() -> None:
    slots = Slots(0)
    slots.pool.start()
    slots.pool.put([], 0)
    slots.pool.help()
    slots.close()


def test_every_coroutine_starts_and_ends() -> None:
    async def run(one: Delivery, _slot: Any) -> Done:
        await asyncio.sleep(0)
        return done(one)

    outbox = Outbox(lambda *, prompt: None)
    pool = CoroutinePool(100, run, outbox, outbox.hurry)
    pool.start()
    produce(lambda number: pool.put([delivery(number)]))
    until(lambda: len(outbox) == PRODUCERS * EACH, 20)
    numbers = {int(one.finish.field) for one in outbox.take()}
    assert len(numbers) == PRODUCERS * EACH
    until(lambda: not pool._running)
    assert pool.stop(5)


def test_coroutines_that_end_at_once_are_sent_together_and_at_once() -> None:
    async def run(one: Delivery, _slot: Any) -> Done:
        if number_of(one) == 3:
            await gate.wait()
        return done(one)

    told: list[bool] = []
    outbox = Outbox(lambda *, prompt: told.append(prompt))
    pool = CoroutinePool(10, run, outbox, outbox.hurry)
    gate = asyncio.Event()
    pool.start()
    pool.put([delivery(number) for number in range(5)])
    until(lambda: True in told)
    assert told == [False, True]
    assert len(outbox.take()) == 4
    pool.loop.call_soon_threadsafe(gate.set)
    until(lambda: told == [False, True] * 2)
    assert len(outbox) == 1
    assert pool.stop(5)


def test_a_loop_that_stops_cancels_what_runs() -> None:
    told: list[Any] = []

    async def run(one: Delivery, _slot: Any) -> Done:
        try:
            told.append("started")
            await asyncio.Event().wait()
        finally:
            told.append("cancelled")
        return done(one)

    pool = CoroutinePool(10, run, Outbox(lambda *, prompt: None), lambda: None)
    pool.start()
    pool.put([delivery(1), delivery(2)])
    until(lambda: told == ["started"] * 2)
    assert pool.stop(5)
    assert told == ["started"] * 2 + ["cancelled"] * 2


def test_a_loop_that_a_task_keeps_to_itself_is_not_waited_for() -> None:
    started, gate = threading.Event(), threading.Event()

    async def run(one: Delivery, _slot: Any) -> Done:
        started.set()
        gate.wait(60)  # blocks the loop, as careless tasks do
        return done(one)

    pool = CoroutinePool(10, run, Outbox(lambda *, prompt: None), lambda: None)
    pool.start()
    pool.put([delivery(1)])
    assert started.wait(20)
    assert not pool.stop(0.05)
    gate.set()
    assert pool.stop(20)


def test_a_loop_that_is_closed_already_can_be_stopped_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed, go_on = threading.Event(), threading.Event()

    async def run(one: Delivery, _slot: Any) -> Done:
        return done(one)

    pool = CoroutinePool(10, run, Outbox(lambda *, prompt: None), lambda: None)
    close = pool.loop.close

    def held() -> None:
        close()
        closed.set()
        go_on.wait(60)

    monkeypatch.setattr(pool.loop, "close", held)
    pool.start()
    assert not pool.stop(0.0)
    assert closed.wait(20)
    assert not pool.stop(0.0)  # its thread has not ended
    go_on.set()
    assert pool.stop(20)


def test_to_stop_twice_does_not_tear_what_is_being_cancelled() -> None:
    told: list[str] = []

    async def run(one: Delivery, _slot: Any) -> Done:
        told.append("started")
        while len(told) < 4:  # it is cancelled twice by the first stop
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                told.append("cancelled")
        for _ in range(10):
            await asyncio.sleep(0)
        told.append("cleaned up")
        return done(one)

    pool = CoroutinePool(10, run, Outbox(lambda *, prompt: None), lambda: None)
    pool.start()
    pool.put([delivery(1)])
    until(lambda: told == ["started"])
    assert not pool.stop(0.0)
    until(lambda: told == ["started", "cancelled", "cancelled"])
    assert pool.stop(20)
    assert told == ["started", "cancelled", "cancelled", "cancelled", "cleaned up"]


def test_a_defect_in_listening_does_not_make_a_pool_deaf(caplog: pytest.LogCaptureFixture) -> None:
    heard = threading.Event()

    def broken() -> None:
        if "listening for work failed" in caplog.text:
            heard.set()
        msg = "a defect"
        raise ValueError(msg)

    pool = ThreadPool(1, lambda one, _slot: done(one), Outbox(lambda *, prompt: None), list, broken)
    pool.start()
    assert heard.wait(5)
    pool.stop()
    assert pool.join(5)
