"""Who gets what: several queues on one worker, several workers on one queue."""

from __future__ import annotations

import asyncio
import collections
import contextvars
import threading
import time
from typing import Any

import pytest

import taskq
from taskq import State, TaskQ
from taskq.broker.claims import Room
from taskq.broker.line import Line
from taskq.errors import Interrupted
from taskq.testing import running_worker
from taskq.worker.books import Books
from taskq.worker.handover import AHEAD_LEAST
from taskq.worker.port import Port
from tests.eventually import let_pass, until


@pytest.fixture(params=["redis", "memory"])
def app(request: pytest.FixtureRequest, new_app: Any, redis_url: str) -> TaskQ:
    settings = {"url": redis_url} if request.param == "redis" else {}
    made: TaskQ = new_app(queues=["busy", "rare"], **settings)
    return made


def test_a_backlog_in_one_queue_does_not_starve_another(app: TaskQ) -> None:
    """The worker never idles, so nobody listens to the bell of the other queue."""
    order: list[str] = []

    @app.task(queue="busy")
    def busy(_number: int) -> None:
        let_pass(0.01)
        order.append("busy")

    @app.task(queue="rare")
    def rare() -> int:
        order.append("rare")
        return order.count("busy")

    busy.map(range(400))
    with running_worker(app, threads=1, coroutines=0, drain=0):
        waits = []
        for _ in range(4):
            before = order.count("busy")
            waits.append(rare.delay().get(timeout=10) - before)
    assert max(waits) <= 20, waits


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("queue", ["busy", "rare"])
def test_a_backlog_of_quick_messages_starves_no_other_task(
    app: TaskQ, queue: str, threads: int
) -> None:
    """Of those so many are claimed ahead that no slot would ever seem to be free."""
    ran = 0

    @app.task(queue="busy", ignore_result=True)
    def busy(_number: int) -> None:
        nonlocal ran
        ran += 1

    @app.task(queue=queue)
    def rare() -> int:
        return ran

    calls = 40_000
    busy.map(range(calls))
    with running_worker(app, threads=threads, coroutines=0, drain=0):
        until(lambda: ran > 1000, 60)
        assert rare.delay().get(timeout=30) < calls


@pytest.mark.parametrize("queue", ["busy", "rare"])
def test_nor_does_one_of_quick_coroutines(app: TaskQ, queue: str) -> None:
    ran = 0

    @app.task(queue="busy", ignore_result=True)
    async def busy(_number: int) -> None:
        nonlocal ran
        ran += 1

    @app.task(queue=queue)
    async def rare() -> int:
        return ran

    calls = 40_000
    busy.map(range(calls))
    with running_worker(app, threads=1, coroutines=4, drain=0):
        until(lambda: ran > 1000, 60)
        assert rare.delay().get(timeout=30) < calls


def test_no_more_coroutines_run_at_once_than_there_are_slots(app: TaskQ) -> None:
    """However many are claimed ahead; and one that was quick may come to be slow."""
    running: set[int] = set()
    most, gate = 0, asyncio.Event()

    @app.task(queue="busy", ignore_result=True)
    async def busy(number: int) -> None:
        nonlocal most
        running.add(number)
        most = max(most, len(running))
        await asyncio.sleep(0)
        if number >= 3000:
            await gate.wait()
        running.discard(number)

    results = app.enqueue_many([busy.s(number) for number in range(3100)])
    with running_worker(app, threads=1, coroutines=5) as engine:
        until(lambda: min(running, default=0) >= 3000, 60)
        let_pass(0.3)  # those that were claimed ahead go back meanwhile
        assert len(running) == 5
        engine._coroutines.loop.call_soon_threadsafe(gate.set)
        until(lambda: all(one.status is State.SUCCEEDED for one in results[3000:]), 30)
    assert most == 5


def test_slow_coroutines_leave_the_other_slots_to_all(app: TaskQ) -> None:
    """Half of the slots are held for long, and quick ones never end: the rest is for anybody."""
    ran, gate = 0, asyncio.Event()

    @app.task(queue="busy", ignore_result=True)
    async def busy(_number: int) -> None:
        nonlocal ran
        ran += 1

    @app.task(queue="busy", ignore_result=True)
    async def held() -> None:
        await gate.wait()

    @app.task(queue="busy")
    async def rare() -> int:
        return ran

    with running_worker(app, threads=1, coroutines=4, drain=0) as engine:
        holding = [held.delay() for _ in range(2)]
        until(lambda: all(one.status is State.RUNNING for one in holding))
        calls = 40_000
        busy.map(range(calls))
        until(lambda: ran > 1000, 60)
        assert rare.delay().get(timeout=30) < calls
        engine._coroutines.loop.call_soon_threadsafe(gate.set)


def test_nothing_is_claimed_ahead_while_others_hold_all_slots(app: TaskQ) -> None:
    """It would not run here, and might elsewhere."""
    gate = asyncio.Event()

    @app.task(queue="busy", ignore_result=True)
    async def busy(_number: int) -> None:
        pass

    @app.task(queue="busy", ignore_result=True)
    async def held() -> None:
        await gate.wait()

    @app.task(queue="busy")
    def other() -> None:
        pass

    with running_worker(app, threads=2, coroutines=3, drain=0) as engine:
        for result in app.enqueue_many([busy.s(number) for number in range(1000)]):
            until(lambda result=result: result.status is State.SUCCEEDED)
        holding = [held.delay() for _ in range(3)]
        until(lambda: all(one.status is State.RUNNING for one in holding))
        waiting = app.enqueue_many([busy.s(number) for number in range(20)])
        for _ in range(10):
            other.delay().get(timeout=5)  # each has an exchange of its own
        assert all(one.status is State.QUEUED for one in waiting)
        assert not engine._coroutines.buffer
        engine._coroutines.loop.call_soon_threadsafe(gate.set)
        until(lambda: all(one.status is State.SUCCEEDED for one in waiting))


def test_no_message_knows_the_context_of_another(app: TaskQ) -> None:
    tenant: contextvars.ContextVar[int | None] = contextvars.ContextVar("tenant", default=None)

    @app.task(queue="busy")
    async def busy(number: int) -> int | None:
        before = tenant.get()
        tenant.set(number)
        await asyncio.sleep(0)
        return before

    results = app.enqueue_many([busy.s(number) for number in range(1000)])
    with running_worker(app, threads=1, coroutines=3):
        assert taskq.gather(results, timeout=30) == [None] * 1000


def test_a_backlog_of_quick_messages_lets_in_no_more_slow_ones_than_there_are_slots(
    new_app: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app: TaskQ = new_app(url=redis_url)
    held: list[int] = []
    begin = Port.begin

    @app.task(ignore_result=True)
    def quick(_number: int) -> None:
        pass

    @app.task
    def slow() -> None:
        let_pass(0.03)

    def began(self: Port, *arguments: Any) -> None:
        held.append(len(engine.exchange.handover._books._slow["t"]))
        begin(self, *arguments)

    monkeypatch.setattr(Port, "begin", began)
    quick.map(range(10_000))
    calls = app.enqueue_many([slow.s() for _ in range(30)])
    with running_worker(app, threads=3, coroutines=0) as engine:
        taskq.gather(calls, timeout=60)
    assert 1 <= max(held) <= 3, held


def test_with_much_to_run_the_reply_to_one_queue_is_not_waited_for_to_ask_the_next(
    new_app: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app: TaskQ = new_app(url=redis_url, queues=["busy", "rare"])
    ran = 0
    # How many had run when an exchange began with much to run, and how many more at its end.
    begun: dict[Port, int] = {}
    meanwhile: list[int] = []
    begin, end = Port.begin, Port.end

    @app.task(ignore_result=True)
    def note(_number: int) -> None:
        nonlocal ran
        ran += 1

    def began(self: Port, *arguments: Any) -> None:
        books = engine.exchange.handover._books
        if len(books.held) + books.coming >= AHEAD_LEAST:
            begun[self] = ran
        begin(self, *arguments)

    def ended(self: Port, *arguments: Any) -> Any:
        if self in begun:
            meanwhile.append(ran - begun.pop(self))
        return end(self, *arguments)

    monkeypatch.setattr(Port, "begin", began)
    monkeypatch.setattr(Port, "end", ended)
    for queue in ("busy", "rare", "default"):
        app.enqueue_many([note.options(queue=queue).s(number) for number in range(2000)])
    with running_worker(app, threads=1, coroutines=0) as engine:
        until(lambda: ran == 6000, 60)
    assert len(meanwhile) > 5
    assert sum(count > 0 for count in meanwhile) > 0.8 * len(meanwhile), meanwhile


def test_several_full_queues_share_one_worker(app: TaskQ) -> None:
    order: list[str] = []

    @app.task
    def note(queue: str) -> None:
        order.append(queue)
        let_pass(0.002)

    for queue in ("busy", "rare", "default"):
        app.enqueue_many([note.options(queue=queue).s(queue) for _ in range(60)])
    with running_worker(app, threads=1, coroutines=0):
        until(lambda: len(order) == 180, 10)
    first = order[:90]
    assert min(first.count(queue) for queue in ("busy", "rare", "default")) >= 20


def test_what_waits_behind_a_slow_message_goes_to_another_worker(app: TaskQ) -> None:
    """G6: a claimed message that does not start within 100 ms goes back.

    A task that was always quick is claimed ahead, and then one call of it is slow.
    """
    gate = threading.Event()

    @app.task
    def quick(number: int) -> int:
        if number < 0:
            gate.wait(20)
        return number

    with running_worker(app, threads=1, coroutines=0):
        taskq.gather(quick.map(range(400)), timeout=10)
        slow, *rest = quick.map([-1, *range(100)])
        until(lambda: slow.status is State.RUNNING)
        with running_worker(app, threads=1, coroutines=0):
            try:
                assert taskq.gather(rest, timeout=3) == list(range(100))
            finally:
                gate.set()
        assert slow.get(timeout=5) == -1


def test_no_more_is_held_than_there_are_slots(app: TaskQ) -> None:
    gate = threading.Event()

    @app.task
    def hold() -> None:
        gate.wait(20)

    @app.task
    async def ahold() -> None:
        await asyncio.to_thread(gate.wait, 20)

    held, aheld = ([task.delay() for _ in range(20)] for task in (hold, ahold))
    with running_worker(app, threads=3, coroutines=4) as engine:
        until(lambda: engine.exchange.holding == 7)
        let_pass(0.1)
        running = [one.status for one in (*held, *aheld)].count(State.RUNNING)
        assert engine.exchange.holding == running == 7
        gate.set()
        taskq.gather([*held, *aheld], timeout=10)


def test_one_id_in_two_queues_is_two_messages(app: TaskQ) -> None:
    """Each queue counts its exchanges from one: id and number alone tell them not apart."""

    @app.task
    def echo(queue: str) -> str:
        return queue

    for round_number in range(5):
        results = [
            echo.options(queue=queue, id=f"same-{round_number}").delay(queue)
            for queue in ("busy", "rare", "default")
        ]
        with running_worker(app, threads=4, drain=0):
            assert taskq.gather(results, timeout=3) == ["busy", "rare", "default"]


def test_a_worker_of_two_kinds_of_slot_uses_both(app: TaskQ) -> None:
    """Threads that are all busy do not keep coroutines from their work, nor the reverse."""
    gate = threading.Event()

    @app.task
    def hold() -> None:
        gate.wait(20)

    @app.task
    async def quick() -> str:
        return "ran"

    with running_worker(app, threads=2, coroutines=2):
        held = [hold.delay() for _ in range(5)]
        started = time.monotonic()
        assert [quick.delay().get(timeout=15) for _ in range(5)] == ["ran"] * 5
        assert time.monotonic() - started < 15
        gate.set()
        taskq.gather(held, timeout=5)


def test_more_is_claimed_before_a_lot_of_quick_messages_runs(
    app: TaskQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So Redis and the worker are at work at the same time, not in turns."""
    ran: list[int] = []
    # How many had run when a lot came of which there is more, and when the next was asked for.
    came: list[int] = []
    asked: list[int] = []
    begin, end = Port.begin, Port.end

    @app.task
    def note(number: int) -> None:
        ran.append(number)

    def began(self: Port, *arguments: Any) -> None:
        if len(asked) < len(came):
            asked.append(len(ran))
        begin(self, *arguments)

    def ended(self: Port, *arguments: Any) -> Any:
        answer = end(self, *arguments)
        if answer and answer[0].more and len(answer[0].claimed) >= AHEAD_LEAST:
            came.append(len(ran))
        return answer

    monkeypatch.setattr(Port, "begin", began)
    monkeypatch.setattr(Port, "end", ended)
    note.map(range(5000))
    with running_worker(app, threads=1, coroutines=0):
        until(lambda: len(ran) >= 5000, 60)
    assert asked[0] == came[0], (came, asked)


def test_many_messages_are_handed_out_when_the_next_exchange_is_on_its_way(
    new_app: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis would wait for what it takes to hand them out, and the worker then for Redis."""
    app: TaskQ = new_app(url=redis_url)
    ran: set[int] = set()
    story: list[str] = []
    begin, end, enter = Port.begin, Port.end, Books.enter

    @app.task(ignore_result=True)
    def note(number: int) -> None:
        ran.add(number)

    def began(self: Port, *arguments: Any) -> None:
        story.append("sent")
        begin(self, *arguments)

    def ended(self: Port, *arguments: Any) -> Any:
        answer = end(self, *arguments)
        if answer and len(answer[0].claimed) >= AHEAD_LEAST and answer[0].more:
            story.append("came")
        return answer

    def entered(self: Books, claim: Any, reply: Any) -> Any:
        if len(reply.claimed) >= AHEAD_LEAST and reply.more:
            story.append("handed out")
        return enter(self, claim, reply)

    monkeypatch.setattr(Port, "begin", began)
    monkeypatch.setattr(Port, "end", ended)
    monkeypatch.setattr(Books, "enter", entered)
    note.map(range(5000))
    with running_worker(app, threads=1, coroutines=0):
        until(lambda: len(ran) >= 5000, 60)
    after = [story[at + 1 : at + 3] for at, event in enumerate(story) if event == "came"]
    # But for those that came when there was nothing left to run.
    assert ["sent", "handed out"] in after, story


def test_a_defect_in_a_turn_leaves_no_reply_for_the_next(
    new_app: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app: TaskQ = new_app(url=redis_url)
    end, failures = Port.end, iter([True, True])

    def broken(self: Port, *arguments: Any) -> Any:
        if next(failures, False):
            raise LookupError
        return end(self, *arguments)

    @app.task
    def echo(number: int) -> int:
        return number

    with running_worker(app, threads=2, coroutines=0):
        monkeypatch.setattr(Port, "end", broken)
        assert taskq.gather(echo.map(range(50)), timeout=20) == list(range(50))


def test_who_is_cut_off_again_while_it_comes_back_gives_nothing_back_that_it_runs(
    new_app: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the lost reply named is this worker's, though it is not on its books yet."""
    app: TaskQ = new_app(url=redis_url)
    ran: collections.Counter[int] = collections.Counter()
    begin, end = Port.begin, Port.end
    # Who claims while it has much to run, and loses the reply twice.
    victims: list[Port] = []
    cuts, slow = 0, False

    @app.task(ignore_result=True)
    def note(number: int) -> None:
        ran[number] += 1
        if slow:
            let_pass(0.01)

    def began(self: Port, room: Room) -> None:
        nonlocal slow
        if len(ran) > 1000 and not room.empty and not victims:
            victims.append(self)
            slow = True
        begin(self, room)

    def ended(self: Port, line: Line) -> Any:
        nonlocal cuts, slow
        if self in victims and cuts < 2:
            cuts += 1
            line.receive()  # Redis has done it
            line.close()
            msg = "cut"
            raise Interrupted(msg)
        answer = end(self, line)
        slow = slow and (self in victims or not answer or not answer[0].claimed)
        return answer

    monkeypatch.setattr(Port, "begin", began)
    monkeypatch.setattr(Port, "end", ended)
    note.map(range(5000))
    with running_worker(app, threads=1, coroutines=0):
        until(lambda: cuts == 2, 60)
        with running_worker(app, threads=1, coroutines=0):
            until(lambda: len(ran) >= 5000, 60)
    assert set(ran.values()) == {1}


def test_who_cancels_all_others_on_the_loop_costs_those_nothing_that_had_not_begun(
    app: TaskQ,
) -> None:
    @app.task
    async def clear() -> int:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        return sum(one.cancel() for one in others)

    @app.task
    async def double(number: int) -> int:
        return 2 * number

    sent = app.enqueue_many([clear.s(), *map(double.s, range(20))])
    with running_worker(app, threads=0, coroutines=5):
        cancelled, *doubled = taskq.gather(sent, timeout=20)
    assert cancelled
    assert doubled == [2 * number for number in range(20)]
