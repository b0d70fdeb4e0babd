"""The handle on one outcome: waiting for it, looking at it, passing it on."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import pickle
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import taskq
from taskq import Context, MessageLost, ResultTimeout, Snapshot, State, TaskQ
from taskq.client import waiter, watch
from taskq.testing import running_worker
from tests.eventually import until


@pytest.fixture(scope="module")
def shop(new_app: Any) -> Iterator[Any]:
    """An app with a worker; what it runs ends when the test says so."""
    app: TaskQ = new_app(queues=["mail"])
    gates: dict[str, threading.Event] = {}
    started: set[str] = set()

    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="fail")
    def fail() -> None:
        msg = "no luck"
        raise ValueError(msg)

    @app.task(name="hold", bind=True)
    def hold(ctx: Context, name: str) -> str:
        started.add(name)
        assert gates[name].wait(20)
        return name

    def gate(name: str) -> threading.Event:
        return gates.setdefault(name, threading.Event())

    with running_worker(app, threads=4):
        yield SimpleNamespace(
            app=app, add=add, fail=fail, hold=hold, gate=gate, started=started, gates=gates
        )
        for one in gates.values():
            one.set()


@pytest.mark.parametrize("awaited", [False, True])
def test_what_is_answered_at_once_is_heard_and_not_asked_for(
    shop: Any, monkeypatch: pytest.MonkeyPatch, *, awaited: bool
) -> None:
    asked: list[tuple[Any, ...]] = []

    def spy(call: Any) -> Any:
        def noted(*arguments: Any, **options: Any) -> Any:
            asked.append(arguments)
            return call(*arguments, **options)

        return noted

    async def answer() -> int:
        broker = shop.app.abroker()
        with monkeypatch.context() as patch:
            patch.setattr(broker, "call", spy(broker.call))
            value = await (await shop.add.adelay(1, 2)).aget(timeout=20)
        await shop.app.leave_loop()
        return int(value)

    def heard() -> bool:
        """Within 2 ms, which a busy machine may need for itself."""
        asked.clear()
        value = asyncio.run(answer()) if awaited else shop.add.delay(1, 2).get(timeout=20)
        assert value == 3
        return not asked

    monkeypatch.setattr(shop.app.broker, "call", spy(shop.app.broker.call))
    until(heard, 60)


def test_an_app_is_closed_at_once_though_a_thread_reads(
    new_app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiter, "_READ_SECONDS", 30.0)
    app: TaskQ = new_app()

    @app.task
    async def echo(number: int) -> int:
        return number

    async def story() -> float:
        async with app:
            for number in range(10):
                assert await (await echo.adelay(number)).aget(timeout=20) == number
            left_at = time.monotonic()
        return time.monotonic() - left_at

    with running_worker(app):
        assert asyncio.run(story()) < 15


def test_a_result_says_how_far_it_is(shop: Any) -> None:
    gate = shop.gate("far")
    result = shop.hold.delay("far")
    until(lambda: "far" in shop.started)
    assert result.status is State.RUNNING
    assert not result.ready()
    assert not result.successful()
    assert not result.failed()
    gate.set()
    assert result.get(timeout=5) == "far"
    assert result.status is State.SUCCEEDED
    assert result.ready()
    assert result.successful()
    assert not result.failed()
    assert result.exception() is None


def test_a_failure_is_a_result_as_well(shop: Any) -> None:
    result = shop.fail.delay()
    with pytest.raises(ValueError, match="no luck"):
        result.get(timeout=5)
    assert isinstance(result.exception(), ValueError)
    assert result.status is State.FAILED
    assert result.ready()
    assert result.failed()
    assert not result.successful()


def test_every_question_has_an_awaited_twin(shop: Any, awaited: Any) -> None:
    async def story() -> None:
        gate = shop.gate("twin")
        result = await shop.hold.adelay("twin")
        with pytest.raises(ResultTimeout):
            await result.aget(timeout=0.1)
        assert not await result.aready()
        assert not await result.asuccessful()
        assert not await result.afailed()
        gate.set()
        assert await result == "twin"
        assert await result.aget() == "twin"
        assert await result.aexception() is None
        assert await result.astatus() is State.SUCCEEDED
        assert await result.aready()
        assert await result.asuccessful()
        snapshot = await result.asnapshot()
        assert snapshot.status is State.SUCCEEDED
        failed = await shop.fail.adelay()
        assert isinstance(await failed.aexception(timeout=5), ValueError)
        assert await failed.afailed()
        with pytest.raises(ValueError, match="no luck"):
            await failed
        assert await result.aforget()
        assert await shop.app.result(result.id).astatus() is State.UNKNOWN

    awaited(story(), shop.app)


def test_a_timeout_leaves_the_message_running(shop: Any) -> None:
    gate = shop.gate("timeout")
    result = shop.hold.delay("timeout")
    asked = time.monotonic()
    with pytest.raises(ResultTimeout, match=result.id) as caught:
        result.get(timeout=0.2)
    assert 0.19 < time.monotonic() - asked < 5
    assert isinstance(caught.value, TimeoutError)
    assert result.status is State.RUNNING
    with pytest.raises(ResultTimeout):
        result.exception(timeout=dt.timedelta(milliseconds=10))
    gate.set()
    assert result.get(timeout=5) == "timeout"


def test_a_timeout_of_zero_looks_once(shop: Any) -> None:
    gate = shop.gate("zero")
    result = shop.hold.delay("zero")
    with pytest.raises(ResultTimeout):
        result.get(timeout=0)
    gate.set()
    until(lambda: shop.app.result(result.id).ready())
    assert result.get(timeout=0) == "zero"


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "5", True])
def test_a_timeout_is_a_number_of_seconds(shop: Any, timeout: Any) -> None:
    result = shop.app.result("nobody")
    with pytest.raises((ValueError, TypeError), match="timeout"):
        result.get(timeout=timeout)


def test_what_was_read_once_is_not_asked_for_again(shop: Any) -> None:
    result = shop.add.delay(1, 2)
    assert result.get(timeout=5) == 3
    assert shop.app.result(result.id).forget()
    assert result.get() == 3
    assert result.status is State.SUCCEEDED
    assert isinstance(shop.app.result(result.id).exception(timeout=5), MessageLost)


def test_only_what_is_over_can_be_forgotten(shop: Any) -> None:
    gate = shop.gate("forget")
    result = shop.hold.delay("forget")
    assert not result.forget()
    gate.set()
    assert result.get(timeout=5) == "forget"
    assert result.forget()
    assert not result.forget()


def test_an_id_that_nobody_knows_is_unknown_and_lost(shop: Any) -> None:
    result = shop.app.result("never-sent")
    assert result.status is State.UNKNOWN
    assert not result.ready()
    assert not result.failed()
    with pytest.raises(MessageLost, match="never-sent"):
        result.get(timeout=5)
    assert result.snapshot().status is State.UNKNOWN
    assert "not know" in str(result.snapshot().note)


def test_to_be_unknown_is_not_an_end(shop: Any, awaited: Any) -> None:
    """A handle made before its message was sent sees the message all the same."""
    result = shop.app.result("sent-later")
    assert result.status is State.UNKNOWN
    shop.add.options(id="sent-later").delay(1, 1)
    assert result.get(timeout=5) == 2

    other = shop.app.result("sent-later-2")
    with pytest.raises(MessageLost):
        other.get(timeout=1)
    shop.add.options(id="sent-later-2").delay(2, 2)
    assert awaited(other.aget(timeout=5), shop.app) == 4


def test_an_address_finds_its_message_in_any_queue(shop: Any) -> None:
    result = shop.add.options(queue="mail", id="order-7").delay(3, 4)
    assert result.id == "order-7@mail"
    again = shop.app.result("order-7@mail")
    assert again == result
    assert hash(again) == hash(result)
    assert again != shop.app.result("order-7")
    assert again.get(timeout=5) == 7


def test_an_address_can_be_wrong(shop: Any) -> None:
    with pytest.raises(ValueError, match="queue"):
        shop.app.result("x@not a queue")
    with pytest.raises(ValueError, match="id"):
        shop.app.result("")


def test_a_result_pickles_by_its_id(shop: Any) -> None:
    result = shop.add.options(queue="mail").delay(5, 5)
    data = pickle.dumps(result)
    assert len(data) < 300
    again = pickle.loads(data)
    assert again == result
    assert again.get(timeout=5) == 10


def test_a_result_can_be_an_argument_and_a_result(shop: Any) -> None:
    @shop.app.task(name="reader")
    def reader(result: Any) -> Any: ...

    inner = shop.add.delay(1, 1)
    with running_worker(shop.app, threads=1):
        assert reader.delay(inner).get(timeout=5) is None


def test_many_threads_may_wait_for_one_message(shop: Any) -> None:
    gate = shop.gate("many")
    result = shop.hold.delay("many")
    got: list[str] = []
    handles = [result, result, *(shop.app.result(result.id) for _ in range(6))]
    threads = [
        threading.Thread(target=lambda one=one: got.append(one.get(timeout=10))) for one in handles
    ]
    for thread in threads:
        thread.start()
    until(lambda: "many" in shop.started)
    gate.set()
    for thread in threads:
        thread.join(10)
    assert got == ["many"] * 8


def test_a_snapshot_tells_a_messages_life(shop: Any) -> None:
    gate = shop.gate("snap")
    before = dt.datetime.now(dt.UTC)
    result = shop.hold.options(countdown=1.0, queue="mail").delay("snap")
    waiting = result.snapshot()
    assert isinstance(waiting, Snapshot)
    assert (waiting.id, waiting.task, waiting.queue) == (result.id, "hold", "mail")
    assert waiting.status is State.SCHEDULED
    assert (waiting.attempt, waiting.delivery, waiting.worker) == (0, 0, None)
    assert waiting.due_at is not None
    assert 0 < (waiting.due_at - before).total_seconds() < 2

    until(lambda: "snap" in shop.started)
    running = result.snapshot()
    assert running.status is State.RUNNING
    assert (running.attempt, running.delivery, running.worker) == (1, 1, "test-worker")
    assert running.started_at is not None
    assert running.started_at >= waiting.due_at - dt.timedelta(milliseconds=5)
    assert running.due_at is None
    assert running.finished_at is None

    gate.set()
    result.get(timeout=5)
    ended = result.snapshot()
    assert ended.status is State.SUCCEEDED
    assert ended.task == "hold"
    assert ended.enqueued_at is not None
    assert ended.finished_at is not None
    assert abs((ended.enqueued_at - before).total_seconds()) < 2
    assert ended.started_at is not None
    assert ended.started_at <= ended.finished_at
    assert (ended.errors, ended.traceback, ended.note) == ((), None, None)
    with pytest.raises(AttributeError):
        ended.status = State.FAILED  # type: ignore[misc]


def test_a_snapshot_of_a_failure_has_the_traceback(shop: Any) -> None:
    result = shop.fail.delay()
    result.exception(timeout=5)
    snapshot = result.snapshot()
    assert snapshot.status is State.FAILED
    assert [(e.attempt, e.type, e.text) for e in snapshot.errors] == [(1, "ValueError", "no luck")]
    assert "in fail" in str(snapshot.traceback)


def test_a_snapshot_says_that_nobody_can_run_a_message(new_app: Any) -> None:
    """What is odd about it, in words, so that nobody must guess why nothing happens."""
    app: TaskQ = new_app()
    result = app.send_task("nobody.knows.this")
    with running_worker(app):
        assert "no live worker knows" in str(until(lambda: result.snapshot().note, 2))
    assert result.snapshot().status is State.QUEUED


def test_waiting_in_a_task_can_lock_up_a_worker_and_is_refused(new_app: Any) -> None:
    app: TaskQ = new_app()

    @app.task
    def inner() -> str:
        return "inner"

    @app.task
    def careless() -> str:
        return inner.delay().get(timeout=5)

    @app.task
    def gathering() -> list[str]:
        return taskq.gather([inner.delay()], timeout=5)

    @app.task
    def completing() -> list[Any]:
        return list(taskq.as_completed([inner.delay()], timeout=5))

    @app.task
    def careful() -> list[str]:
        first = inner.delay().get(timeout=5, in_task=True)
        return [first, *taskq.gather([inner.delay()], timeout=5, in_task=True)]

    @app.task
    async def blocking() -> str:
        return inner.delay().get(timeout=5, in_task=True)

    @app.task
    async def awaiting() -> list[str]:
        first = await inner.delay()
        return [first, *await taskq.agather([inner.delay()], timeout=5)]

    with running_worker(app, threads=2):
        for task in (careless, gathering, completing):
            assert "in_task=True" in str(task.delay().exception(timeout=5)), task
        assert careful.delay().get(timeout=5) == ["inner", "inner"]
        error = blocking.delay().exception(timeout=5)
        assert isinstance(error, RuntimeError)
        assert "await" in str(error)
        assert awaiting.delay().get(timeout=5) == ["inner", "inner"]


def test_who_waits_without_a_worker_is_told_what_to_type(
    new_app: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app: TaskQ = new_app(queues=["mail"])
    monkeypatch.setattr(watch, "PATIENCE_SECONDS", 0.1)

    @app.task
    def greet() -> str:
        return "hello"

    results = [greet.delay(), greet.options(queue="mail").delay()]
    with caplog.at_level(logging.WARNING), pytest.raises(ResultTimeout):
        taskq.gather(results, timeout=0.6)
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 2
    assert all("taskq worker" in text for text in texts)
    assert "-Q mail" in texts[1]
    with running_worker(app):
        assert taskq.gather(results, timeout=5) == ["hello", "hello"]


def test_who_waits_with_a_worker_is_not_warned(
    new_app: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app: TaskQ = new_app()
    monkeypatch.setattr(watch, "PATIENCE_SECONDS", 0.1)
    gate = threading.Event()

    @app.task
    def hold() -> bool:
        return gate.wait(10)

    with running_worker(app), caplog.at_level(logging.WARNING):
        result = hold.delay()
        with pytest.raises(ResultTimeout):
            result.get(timeout=0.4)
        gate.set()
        assert result.get(timeout=5)
    assert [record.getMessage() for record in caplog.records] == []


def test_a_worker_that_starts_on_a_backlog_raises_no_false_alarm(
    new_app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It knows the tasks; that it has not yet said so is not worth a warning."""
    for _ in range(5):
        app: TaskQ = new_app(queues=["a", "b", "c"])

        @app.task
        def known() -> str:
            return "known"

        results = [known.options(queue=queue).delay() for queue in ("a", "b", "c")]
        with caplog.at_level(logging.WARNING), running_worker(app):
            taskq.gather(results, timeout=5)
    assert [record.getMessage() for record in caplog.records] == []


def test_a_wait_ends_at_whatever_step_it_is_cancelled(shop: Any, awaited: Any) -> None:
    """`asyncio.wait_for` of Python 3.11, which the client uses, can swallow a cancellation."""
    result = shop.add.options(countdown=3600).delay(1, 2)

    async def story() -> None:
        with pytest.raises(ResultTimeout):  # from here on it is subscribed, and asks at once
            await result.aget(timeout=0.3)
        for steps in range(20):
            wait = asyncio.ensure_future(result.aget())
            for _ in range(steps):
                await asyncio.sleep(0)
            wait.cancel()
            await asyncio.wait([wait], timeout=10)
            assert wait.cancelled()

    awaited(story(), shop.app)


def test_a_wait_that_is_cancelled_leaves_nothing_behind(shop: Any, awaited: Any) -> None:
    async def story() -> str:
        gate = shop.gate("cancelled")
        result = await shop.hold.adelay("cancelled")
        for _ in range(5):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(result.aget(), 0.02)
        gate.set()
        return str(await result.aget(timeout=5))

    assert awaited(story(), shop.app) == "cancelled"
    assert shop.app.waiter._waits == {}
