"""Messages sent at the same time share a call; what befalls it befalls each of them alone."""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from taskq.broker.commands import MOST_BYTES, Outgoing
from taskq.broker.grouping import AsyncGroup, Group
from taskq.broker.replication import Unreplicated
from taskq.errors import BrokerError, BrokerFull, BrokerUnavailable, Interrupted
from taskq.model.message import Envelope, Message
from tests.eventually import let_pass, until

PLACES = 2
raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc


def one(number: int, size: int = 10) -> Outgoing:
    message = Message(f"{number:032x}", 0, Envelope("add", 0, "json", b""))
    return Outgoing(message, b"x" * size, "add")


class Wire:
    """Notes what each call of the script carries, and ends it when the test says so."""

    def __init__(self, *ends: BaseException | str | None) -> None:
        self.calls: list[list[str]] = []
        self.withins: list[float] = []
        self._ends = list(ends)
        self._begun = threading.Semaphore(0)
        self._may_end = threading.Semaphore(0)

    def run(self, some: Sequence[Outgoing], *, within: float) -> str:
        return self._answer(some, self._take(some, within))

    async def arun(self, some: Sequence[Outgoing], *, within: float) -> str:
        # In the order in which they are sent: that of the threads is another one.
        return await asyncio.to_thread(self._answer, some, self._take(some, within))

    def wait_for(self, calls: int) -> None:
        for _ in range(calls):
            assert self._begun.acquire(timeout=5)

    def let_go(self, calls: int = 100) -> None:
        self._may_end.release(calls)

    def _take(self, some: Sequence[Outgoing], within: float) -> BaseException | str | None:
        self.calls.append([each.message.id for each in some])
        self.withins.append(within)
        return self._ends.pop(0) if self._ends else None

    def _answer(self, some: Sequence[Outgoing], end: BaseException | str | None) -> str:
        self._begun.release()
        assert self._may_end.acquire(timeout=5)
        if isinstance(end, BaseException):
            raise end
        return end or "o" * len(some)


class Senders:
    """Threads that send, each one message."""

    def __init__(self, wire: Wire, seconds: float = 10.0) -> None:
        self.group = Group(wire.run, seconds)
        self._pool = ThreadPoolExecutor(50)
        self._sent = 0

    def send(self, *messages: Outgoing) -> list[Future[str]]:
        """Send them; those that find no place are in line on return."""
        futures = [self._pool.submit(self.group.send, message) for message in messages]
        self._sent += len(messages)
        until(lambda: self.waiting == max(0, self._sent - PLACES))
        return futures

    @property
    def waiting(self) -> int:
        return len(self.group._waiting)


def test_threads_that_send_while_calls_are_under_way_share_the_next() -> None:
    wire = Wire()
    senders = Senders(wire)
    first = senders.send(one(1), one(2))
    wire.wait_for(PLACES)
    rest = senders.send(*map(one, range(3, 23)))
    wire.let_go()
    assert [future.result(5) for future in (*first, *rest)] == ["o"] * 22
    assert len(wire.calls) <= 4
    assert sorted(id for call in wire.calls for id in call) == [f"{n:032x}" for n in range(1, 23)]


def test_who_sends_alone_waits_for_nobody_and_needs_no_limit() -> None:
    wire = Wire()
    wire.let_go()
    group = Group(wire.run, 10)
    assert [group.send(one(number)) for number in (1, 2)] == ["o", "o"]
    assert wire.withins == [float("inf")] * 2


def test_each_gets_the_verdict_on_its_own_message() -> None:
    wire = Wire(None, None, "odx")
    senders = Senders(wire)
    senders.send(one(1), one(2))
    wire.wait_for(PLACES)
    futures = senders.send(one(3), one(4), one(5))
    wire.let_go()
    verdicts = {f"{n:032x}": future.result(5) for n, future in enumerate(futures, 3)}
    assert [verdicts[id] for id in wire.calls[2]] == list("odx")


def test_a_refusal_is_raised_in_each_as_an_error_of_its_own() -> None:
    wire = Wire(None, None, BrokerFull("full"))
    senders = Senders(wire)
    senders.send(one(1), one(2))
    wire.wait_for(PLACES)
    futures = senders.send(one(3), one(4))
    wire.let_go()
    errors = [future.exception(5) for future in futures]
    assert all(isinstance(error, BrokerFull) for error in errors)
    assert errors[0] is not errors[1]


def test_what_is_wrong_with_one_message_is_raised_for_that_one_alone() -> None:
    wire = Wire(None, None, BrokerError("a lane of a wrong type"), None, BrokerError("again"), None)
    senders = Senders(wire)
    senders.send(one(1), one(2))
    wire.wait_for(PLACES)
    futures = senders.send(one(3), one(4), one(5))
    wire.let_go()
    outcomes = [future.exception(5) or future.result(5) for future in futures]
    assert sorted(map(str, outcomes)) == ["again", "o", "o"]
    assert [len(call) for call in wire.calls[2:]] == [3, 1, 1, 1]


def test_a_message_whose_sender_was_interrupted_in_line_is_not_sent_later() -> None:
    wire = Wire()
    senders = Senders(wire)
    busy = senders.send(one(1), one(2))
    wire.wait_for(PLACES)
    stopped = threading.Event()
    idents: list[int] = []

    def send() -> None:
        idents.append(threading.get_ident())
        try:
            senders.group.send(one(3))
        except SystemExit:
            stopped.set()

    thread = threading.Thread(target=send)
    thread.start()
    until(lambda: senders.waiting == 1)
    raise_in(ctypes.c_ulong(idents[0]), ctypes.py_object(SystemExit))
    assert stopped.wait(5)
    wire.let_go()
    assert [future.result(5) for future in busy] == ["o", "o"]
    assert senders.group.send(one(4)) == "o"
    assert f"{3:032x}" not in [id for call in wire.calls for id in call]


def test_what_an_interrupted_thread_had_taken_is_sent_by_its_owner() -> None:
    wire = Wire(None, None, KeyboardInterrupt())
    senders = Senders(wire)
    senders.send(one(1), one(2))
    wire.wait_for(PLACES)
    futures = senders.send(one(3), one(4), one(5))
    wire.let_go()
    outcomes = [future.exception(5) or future.result(5) for future in futures]
    assert sorted(map(repr, outcomes)) == ["'o'", "'o'", "KeyboardInterrupt()"]


def test_while_there_is_time_another_call_carries_what_could_not_be_sent() -> None:
    wire = Wire(None, None, BrokerUnavailable("away"))
    senders = Senders(wire, seconds=10)
    senders.send(one(1), one(2))
    wire.wait_for(PLACES)
    futures = senders.send(one(3), one(4))
    wire.let_go()
    assert [future.result(5) for future in futures] == ["o", "o"]
    assert all(within <= 10 for within in wire.withins[2:])


def test_when_time_is_up_a_message_that_may_have_arrived_is_uncertain() -> None:
    wire = Wire(None, None, Interrupted("cut"), BrokerUnavailable("away"))
    senders = Senders(wire, seconds=1.0)
    senders.send(one(1), one(2))
    wire.wait_for(PLACES)
    (future,) = senders.send(one(3))
    wire.let_go()
    assert isinstance(future.exception(5), Interrupted)


def test_who_waited_for_a_place_has_so_much_less_time() -> None:
    wire = Wire()
    senders = Senders(wire, seconds=10)
    senders.send(one(1), one(2))
    wire.wait_for(PLACES)
    (future,) = senders.send(one(3))
    let_pass(0.5)
    wire.let_go()
    assert future.result(5) == "o"
    assert wire.withins[2] <= 9.5


def test_whichever_place_is_free_is_taken() -> None:
    may_end = {f"{number:032x}": threading.Event() for number in range(1, 4)}
    begun: list[str] = []

    def run(some: Sequence[Outgoing], *, within: float) -> str:
        assert within > 0
        begun.extend(each.message.id for each in some)
        assert may_end[some[0].message.id].wait(20)
        return "o" * len(some)

    group = Group(run, 30)
    with ThreadPoolExecutor(3) as pool:
        sent: list[Future[str]] = []
        for number, event in enumerate(may_end.values(), 1):
            sent.append(pool.submit(group.send, one(number)))
            until(lambda: len(begun) + len(group._waiting) == len(sent))
            if number > PLACES:
                event.set()
        let_pass(0.3)  # longer than who waits is patient
        may_end[begun[1]].set()
        assert sent[2].result(10) == "o"
        assert not sent[0].done()
        may_end[begun[0]].set()


def test_each_waits_for_replicas_as_long_as_it_may() -> None:
    wire = Wire(None, None, Unreplicated("too few", "oo", late=True))
    senders = Senders(wire, seconds=30)
    senders.send(one(1), one(2))
    wire.wait_for(PLACES)
    futures = senders.send(one(3), one(4))
    wire.let_go()
    assert [future.result(5) for future in futures] == ["o", "o"]


def test_replicas_that_cannot_be_waited_for_are_not_asked_again() -> None:
    wire = Wire(None, None, Unreplicated("no such command", "oo"))
    senders = Senders(wire, seconds=30)
    senders.send(one(1), one(2))
    wire.wait_for(PLACES)
    futures = senders.send(one(3), one(4))
    wire.let_go()
    assert [type(future.exception(5)) for future in futures] == [Unreplicated] * 2
    assert len(wire.calls) == 3


def test_a_call_carries_no_more_bytes_than_it_may() -> None:
    wire = Wire()
    senders = Senders(wire)
    senders.send(one(1), one(2))
    wire.wait_for(PLACES)
    futures = senders.send(*(one(number, MOST_BYTES // 2) for number in range(3, 8)))
    wire.let_go()
    assert [future.result(5) for future in futures] == ["o"] * 5
    assert max(map(len, wire.calls)) == 2


class TestAwaited:
    """The same on an event loop."""

    @staticmethod
    async def _sent(group: AsyncGroup, numbers: Sequence[int]) -> list[asyncio.Task[str]]:
        tasks = [asyncio.create_task(group.send(one(number))) for number in numbers]
        await asyncio.sleep(0)
        return tasks

    def test_coroutines_that_send_at_once_share_calls(self) -> None:
        async def main() -> list[str]:
            wire.let_go()
            return await asyncio.gather(*(group.send(one(number)) for number in range(100)))

        wire = Wire()
        group = AsyncGroup(wire.arun, 10)
        assert asyncio.run(main()) == ["o"] * 100
        assert [len(call) for call in wire.calls] in ([1, 1, 98], [1, 1, 98, 0])

    def test_one_that_is_cancelled_costs_the_others_nothing(self) -> None:
        async def main() -> list[Any]:
            tasks = await self._sent(group, range(5))
            for task in (tasks[0], tasks[3]):
                task.cancel()
            await asyncio.sleep(0)
            wire.let_go()
            return await asyncio.gather(*tasks, return_exceptions=True)

        wire = Wire()
        group = AsyncGroup(wire.arun, 10)
        ends = asyncio.run(main())
        assert [isinstance(end, asyncio.CancelledError) for end in ends] == [
            True, False, False, True, False,
        ]  # fmt: skip
        assert [end for end in ends if end == "o"] == ["o"] * 3

    def test_those_behind_many_that_were_cancelled_are_sent(self) -> None:
        """As many as the next calls carry: then nobody is left to whom those belong."""

        async def main() -> str:
            first = await self._sent(group, range(PLACES))
            large = [one(number, MOST_BYTES // 2) for number in range(10, 10 + 2 * PLACES)]
            cancelled = [asyncio.create_task(group.send(each)) for each in large]
            last = asyncio.create_task(group.send(one(20, MOST_BYTES // 2)))
            await asyncio.sleep(0)
            for task in cancelled:
                task.cancel()
            await asyncio.sleep(0)
            wire.let_go()
            await asyncio.gather(*first)
            return await asyncio.wait_for(last, 5)

        wire = Wire()
        group = AsyncGroup(wire.arun, 10)
        assert asyncio.run(main()) == "o"

    def test_what_is_wrong_with_one_message_is_raised_for_that_one_alone(self) -> None:
        async def main() -> list[Any]:
            wire.let_go()
            return await asyncio.gather(
                *(group.send(one(number)) for number in range(4)), return_exceptions=True
            )

        wire = Wire(None, None, BrokerError("a lane of a wrong type"), BrokerError("again"), None)
        group = AsyncGroup(wire.arun, 10)
        ends = asyncio.run(main())
        assert [str(end) for end in ends] == ["o", "o", "again", "o"]

    @pytest.mark.parametrize("error", [BrokerFull("full"), BrokerError("no")])
    def test_a_refusal_is_raised_in_each(self, error: BrokerError) -> None:
        async def main() -> list[Any]:
            wire.let_go()
            return await asyncio.gather(
                *(group.send(one(number)) for number in range(4)), return_exceptions=True
            )

        wire = Wire(None, None, error, error, error)
        group = AsyncGroup(wire.arun, 10)
        ends = asyncio.run(main())
        assert sum(isinstance(end, type(error)) for end in ends) == 2
        assert len({id(end) for end in ends if not isinstance(end, str)}) == 2

    def test_while_there_is_time_they_try_again(self) -> None:
        async def main() -> list[str]:
            wire.let_go()
            return await asyncio.gather(*(group.send(one(number)) for number in range(5)))

        wire = Wire(None, None, BrokerUnavailable("away"))
        group = AsyncGroup(wire.arun, 10)
        assert asyncio.run(main()) == ["o"] * 5

    def test_each_waits_for_replicas_as_long_as_it_may(self) -> None:
        async def main() -> list[str]:
            wire.let_go()
            return await asyncio.gather(*(group.send(one(number)) for number in range(4)))

        wire = Wire(None, None, Unreplicated("too few", "oo", late=True))
        group = AsyncGroup(wire.arun, 30)
        assert asyncio.run(main()) == ["o"] * 4
