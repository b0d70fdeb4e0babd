"""Messages that are to be cancelled, at each point of their way through a child."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from taskq import TaskQ
from taskq.broker import records
from taskq.model import clock, message
from taskq.model.message import Envelope, Message, new_id
from taskq.model.signing import Domain
from taskq.model.states import State
from taskq.worker.board import Board
from taskq.worker.delivery import Claim, Delivery, Done
from taskq.worker.executor import Executor
from taskq.worker.outbox import Outbox
from taskq.worker.pools.coroutines import CoroutinePool, LoopSlot
from taskq.worker.pools.threads import ThreadSlot
from tests.eventually import until

CLAIM = (b"w" * 32, b"0000000007", 1_700_000_000_000_001)


@pytest.fixture
def app(new_app: Any) -> Any:
    app: TaskQ = new_app()
    app.ran = []  # type: ignore[attr-defined]

    @app.task(name="note")
    def note() -> None:
        app.ran.append("note")  # type: ignore[attr-defined]

    @app.task(name="anote")
    async def anote() -> None:
        app.ran.append("anote")  # type: ignore[attr-defined]

    return app


def delivered(app: TaskQ, task: str, kind: str, record: bytes = b"") -> Delivery:
    one = Message(new_id(clock.now_ms()), 0, Envelope(task, 1, "json", b"[[],{}]"))
    raw = message.encode(one, app.seal(Domain.MESSAGE, "default"))
    worker, seq, fence = CLAIM
    return Delivery(Claim("default", worker, seq, fence, clock.monotonic()), kind, record, raw)


def run(executor: Executor, delivery: Delivery) -> Done:
    if delivery.kind == "c":

        async def on_a_loop() -> Done:
            return await executor.arun(delivery, LoopSlot(asyncio.get_running_loop()))

        return asyncio.run(on_a_loop())
    return executor.run(delivery, ThreadSlot(lambda _slot: None, "slot"))


@pytest.mark.parametrize(("task", "kind"), [("note", "t"), ("anote", "c")])
@pytest.mark.parametrize("attempts", [0, 3])
def test_what_has_not_started_does_not_and_counts_no_attempt(
    app: Any, task: str, kind: str, attempts: int
) -> None:
    executor = Executor(app, "w", Board(5))
    before = b""
    if attempts:
        head = b"R" + records.NO_LABEL + b"%06d" % attempts + b"0" * 6 + b"000004" + b"0" * 16
        before = head + CLAIM[0] + CLAIM[1] + b"a history"
    delivery = delivered(app, task, kind, before)
    executor.cancelled[delivery] = b"why"
    done = run(executor, delivery)
    record = records.parse(done.finish.payload)
    assert (done.finish.kind, done.finish.field) == ("c", delivery.field)
    assert (record.state, record.tail, record.attempts) == (State.CANCELLED, b"why", attempts)
    assert (record.worker, record.seq) == CLAIM[:2]
    assert app.ran == []


@pytest.mark.parametrize(("task", "kind"), [("note", "t"), ("anote", "c")])
def test_an_order_that_comes_while_the_arguments_are_read_is_obeyed(
    app: Any, task: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing runs then that could be interrupted, so it is looked at once more."""
    executor = Executor(app, "w", Board(5))
    delivery = delivered(app, task, kind)
    read = executor._arguments

    def late(attempt: Any) -> Any:
        executor.cancelled[delivery] = b"why"
        return read(attempt)

    monkeypatch.setattr(executor, "_arguments", late)
    done = run(executor, delivery)
    assert done.finish.kind == "c"
    assert records.parse(done.finish.payload).attempts == 1
    assert app.ran == []


def test_others_run_as_ever(app: Any) -> None:
    executor = Executor(app, "w", Board(5))
    executor.cancelled[delivered(app, "note", "t")] = b"why"
    assert run(executor, delivered(app, "note", "t")).finish.kind == "s"
    assert app.ran == ["note"]


def test_what_raises_so_without_an_order_has_failed(app: Any) -> None:
    @app.task(name="confused")
    def confused() -> None:
        raise asyncio.CancelledError

    assert run(Executor(app, "w", Board(5)), delivered(app, "confused", "t")).finish.kind == "f"


class TestCoroutinePool:
    def test_what_has_not_begun_is_left_to_whoever_begins_it(self, app: Any) -> None:
        """An asyncio task that is cancelled before its first step never says that it ended."""
        executor, outbox = Executor(app, "w", Board(5)), Outbox(lambda *, prompt: None)
        pool = CoroutinePool(5, executor.arun, outbox, outbox.hurry)
        delivery = delivered(app, "anote", "c")
        busy = threading.Event()
        pool.start()
        pool.loop.call_soon_threadsafe(busy.wait, 5)
        pool.put([delivery])
        executor.cancelled[delivery] = b"why"
        assert not pool.interrupt(delivery.key, asyncio.CancelledError)
        busy.set()
        until(lambda: len(outbox))
        assert [one.finish.kind for one in outbox.take()] == ["c"]
        assert pool.stop(5)
