"""`deadline=`: the instant by which a call, its retries and all it enqueues have ended."""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
import time
from typing import Any

import pytest
import tenacity

import taskq
from taskq import (
    Context,
    Expired,
    MaxRetriesExceeded,
    RetryPolicy,
    SoftTimeLimitExceeded,
    State,
    TaskQ,
    current,
)
from taskq.broker import keys, queries
from taskq.model import clock, message
from taskq.model.message import Envelope, Message
from taskq.model.signing import Domain
from taskq.testing import running_worker
from taskq.worker.board import Board
from taskq.worker.delivery import Claim, Delivery
from taskq.worker.executor import Executor
from taskq.worker.pools.threads import ThreadSlot
from tests.eventually import let_pass, until


@pytest.fixture
def app(new_app: Any) -> TaskQ:
    made: TaskQ = new_app()
    return made


def in_seconds(seconds: float) -> dt.datetime:
    """Return an instant in whole milliseconds, as it travels."""
    now = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def spin(seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def expired_of(app: TaskQ) -> int:
    survey = app.broker.run(queries.survey(keys.base(app.name, "default"), "default"))
    return survey.counts.get("expired", 0)


def deadline_of(ctx: Context) -> dt.datetime | None:
    return ctx.deadline


class TestBeforeTheStart:
    def test_what_has_passed_is_never_started_and_counted(self, app: TaskQ) -> None:
        ran: list[str] = []
        note = app.task(name="note")(ran.append)
        late = note.options(deadline=in_seconds(-1)).delay("late")
        soon = note.options(deadline=60).delay("soon")
        with running_worker(app):
            soon.get(timeout=5)
            assert isinstance(late.exception(timeout=5), Expired)
        assert late.status is State.EXPIRED
        assert ran == ["soon"]
        assert expired_of(app) == 1

    def test_the_future_ends_though_no_worker_lives(self, app: TaskQ) -> None:
        result = app.send_task("nobody", deadline=0.2)
        with pytest.raises(Expired):
            result.get(timeout=5)
        scheduled = app.send_task("nobody", countdown=60, deadline=dt.timedelta(seconds=0.2))
        with pytest.raises(Expired):
            scheduled.get(timeout=5)
        assert expired_of(app) == 2

    @pytest.mark.parametrize("first", ["expires", "deadline"])
    def test_with_expires_the_earlier_one_counts(self, app: TaskQ, first: str) -> None:
        limits: Any = {"expires": 60, "deadline": 60} | {first: 0.2}
        with pytest.raises(Expired):
            app.send_task("nobody", **limits).get(timeout=5)

    def test_a_task_may_have_one(self, app: TaskQ) -> None:
        @app.task(name="own", deadline=60)
        def own() -> dt.datetime | None:
            return deadline_of(current())

        with running_worker(app):
            left = own.delay().get(timeout=5) - dt.datetime.now(dt.UTC)
            assert dt.timedelta(seconds=50) < left < dt.timedelta(seconds=60)
            soon = in_seconds(30)
            assert own.options(deadline=soon).delay().get(timeout=5) == soon

    @pytest.mark.parametrize(("header", "kind"), [("deadline", "b"), ("later", "r"), ("none", "r")])
    def test_between_the_claim_and_the_start_it_goes_back(
        self, app: TaskQ, header: str, kind: str
    ) -> None:
        """To the claim that drops it; what no claim would drop is refused."""
        ran: list[int] = []
        app.task(name="note")(lambda: ran.append(1))
        passed = clock.now_ms() - 5
        expires = {"deadline": passed, "later": passed + 60_000, "none": 0}[header]
        envelope = Envelope("note", 1, "json", b"[[],{}]", deadline_ms=passed)
        one = Message(message.new_id(passed), expires, envelope)
        raw = message.encode(one, app.seal(Domain.MESSAGE, "default"))
        fence = clock.now_ms() * 1000
        claim = Claim("default", b"w" * 32, b"0" * 10, fence, clock.monotonic())
        slot = ThreadSlot(lambda _slot: None, "slot")
        done = Executor(app, "w", Board(5)).run(Delivery(claim, "t", b"", raw), slot)
        assert (done.finish.kind, ran) == (kind, [])


class TestShown:
    def test_in_threads_and_coroutines(self, app: TaskQ) -> None:
        @app.task(name="thread", bind=True)
        def thread(ctx: Context) -> Any:
            return ctx.deadline

        @app.task(name="coroutine", bind=True)
        async def coroutine(ctx: Context) -> Any:
            return ctx.deadline

        soon = in_seconds(60)
        with running_worker(app):
            for task in (thread, coroutine):
                assert task.options(deadline=soon).delay().get(timeout=5) == soon
                assert task.delay().get(timeout=5) is None

    def test_the_earlier_of_it_and_the_time_limit(self, app: TaskQ) -> None:
        @app.task(name="limited", bind=True, timeout=100)
        def limited(ctx: Context) -> Any:
            return ctx.deadline

        with running_worker(app):
            soon = in_seconds(50)
            assert limited.options(deadline=soon).delay().get(timeout=5) == soon
            limit = limited.options(deadline=500).delay().get(timeout=5)
            assert limit - in_seconds(100) < dt.timedelta(seconds=1)


class TestAtTheDeadline:
    def test_a_running_thread_is_told(self, app: TaskQ) -> None:
        @app.task(name="busy")
        def busy() -> None:
            spin()

        with running_worker(app):
            error = busy.options(deadline=0.4).delay().exception(timeout=5)
        assert isinstance(error, SoftTimeLimitExceeded)
        assert "busy ran into its deadline" in str(error)

    def test_a_running_coroutine_is_told_and_may_clean_up(self, app: TaskQ) -> None:
        @app.task(name="wait")
        async def wait() -> str:
            try:
                await asyncio.Event().wait()
            except SoftTimeLimitExceeded:
                return "partial"
            return "whole"

        with running_worker(app):
            began = time.time()
            assert wait.options(deadline=0.4, timeout=60).delay().get(timeout=5) == "partial"
            assert time.time() - began < 3

    def test_a_time_limit_that_is_sooner_is_named(self, app: TaskQ) -> None:
        @app.task(name="busy", timeout=0.2)
        def busy() -> None:
            spin()

        with running_worker(app):
            error = busy.options(deadline=60).delay().exception(timeout=5)
        assert "timeout of 0.2 s" in str(error)


class TestRetries:
    def test_one_that_would_come_after_it_is_not_made(self, app: TaskQ) -> None:
        runs: list[int] = []

        @app.task(name="fails", bind=True, max_retries=5, default_retry_delay=30)
        def fails(ctx: Context, *, ask: bool) -> None:
            runs.append(ctx.attempt)
            error = ValueError(f"attempt {ctx.attempt}")
            if ctx.attempt == 1:
                ctx.retry(exc=error, countdown=0)
            if ask:
                ctx.retry(exc=error)
            ctx.retry()

        with running_worker(app):
            limited = fails.options(deadline=20)
            with pytest.raises(ValueError, match="attempt 2"):
                limited.delay(ask=True).get(timeout=5)
            with pytest.raises(MaxRetriesExceeded):
                limited.delay(ask=False).get(timeout=5)
        assert runs == [1, 2, 1, 2]

    def test_nor_is_one_of_a_policy(self, app: TaskQ) -> None:
        policy = RetryPolicy(wait=tenacity.wait_fixed(30))

        @app.task(name="fails", retry=policy)
        def fails() -> None:
            raise KeyError

        with running_worker(app):
            with pytest.raises(KeyError):
                fails.options(deadline=20).delay().get(timeout=5)
            waits = fails.options(deadline=40).delay()
            until(lambda: waits.status is State.RETRYING)


class TestInherited:
    @pytest.fixture
    def tell(self, app: TaskQ) -> Any:
        @app.task(name="tell", bind=True)
        def tell(ctx: Context, _item: int = 0) -> dt.datetime | None:
            return ctx.deadline

        return tell

    def test_by_whatever_a_thread_enqueues(self, app: TaskQ, tell: Any) -> None:
        @app.task(name="parent", timeout=30)
        def parent() -> Any:
            results = [
                tell.delay(),
                *tell.map([1]),
                *app.enqueue_many([tell.s(), tell.options(deadline=3600).s()]),
                app.send_task("tell"),
                tell.apply_async(countdown=0.01),
            ]
            return taskq.gather(results, timeout=5, in_task=True)

        soon = in_seconds(60)
        with running_worker(app, threads=4):
            assert parent.options(deadline=soon).delay().get(timeout=8) == [soon] * 6
            # A time limit is of one attempt: nobody inherits it.
            assert parent.delay().get(timeout=8)[0] is None

    def test_by_whatever_a_coroutine_enqueues(self, app: TaskQ, tell: Any) -> None:
        @app.task(name="parent")
        async def parent() -> Any:
            results = [
                await tell.adelay(),
                *await tell.amap([1]),
                *await app.aenqueue_many([tell.s()]),
                await app.asend_task("tell"),
                await asyncio.to_thread(tell.delay),
                await asyncio.create_task(tell.adelay()),
            ]
            return await taskq.agather(results, timeout=5)

        soon = in_seconds(60)
        with running_worker(app):
            assert parent.options(deadline=soon).delay().get(timeout=8) == [soon] * 6

    def test_an_earlier_one_of_the_call_stands(self, app: TaskQ, tell: Any) -> None:
        sooner, later = in_seconds(20), in_seconds(60)

        @app.task(name="parent")
        def parent() -> Any:
            return tell.options(deadline=sooner).delay().get(timeout=5, in_task=True)

        with running_worker(app):
            assert parent.options(deadline=later).delay().get(timeout=8) == sooner

    def test_down_to_grandchildren(self, app: TaskQ, tell: Any) -> None:
        @app.task(name="child")
        def child() -> Any:
            return tell.delay().get(timeout=5, in_task=True)

        @app.task(name="parent")
        async def parent() -> Any:
            result = await child.adelay()
            return await result

        soon = in_seconds(60)
        with running_worker(app):
            assert parent.options(deadline=soon).delay().get(timeout=8) == soon

    def test_a_child_past_it_never_starts(self, app: TaskQ) -> None:
        ran = threading.Event()
        app.task(name="child")(ran.set)

        @app.task(name="parent")
        def parent() -> str:
            return app.send_task("child", countdown=60).id

        with running_worker(app):
            child = app.result(parent.options(deadline=2).delay().get(timeout=5))
            assert child.status is State.SCHEDULED
            assert isinstance(child.exception(timeout=5), Expired)
        assert not ran.is_set()

    def test_not_by_what_is_sent_outside_or_after(self, app: TaskQ, tell: Any) -> None:
        @app.task(name="parent")
        def parent() -> str:
            return tell.delay().id

        with running_worker(app, threads=1, coroutines=0):
            for deadline in (60, None, 30):
                child = app.result(parent.options(deadline=deadline).delay().get(timeout=5))
                assert bool(child.get(timeout=5)) is bool(deadline)
                assert tell.delay().get(timeout=5) is None


@pytest.mark.parametrize(
    ("deadline", "told"),
    [
        (dt.datetime(2030, 1, 1), "aware"),  # noqa: DTZ001
        (in_seconds(12 * 366 * 86_400), "ten years"),
        (12 * 366 * 86_400, "ten years"),
        (-1, "deadline"),
        (float("nan"), "deadline"),
        ("soon", "deadline"),
    ],
)
def test_what_is_no_deadline_is_told_at_the_call(app: TaskQ, deadline: Any, told: str) -> None:
    with pytest.raises((ValueError, TypeError), match=told):
        app.send_task("nobody", deadline=deadline)


def test_a_dead_letter_that_is_sent_again_is_free_of_one_that_passed(app: TaskQ) -> None:
    @app.task(name="fails", bind=True)
    def fails(ctx: Context) -> Any:
        if gate.is_set():
            return ctx.deadline
        return spin()

    gate = threading.Event()
    with running_worker(app):
        first = fails.options(deadline=0.4).delay()
        assert isinstance(first.exception(timeout=5), SoftTimeLimitExceeded)
        gate.set()
        assert app.dead.retry(first.id).get(timeout=5) is None


def test_a_dead_letter_keeps_one_that_has_not_passed(app: TaskQ) -> None:
    @app.task(name="fails", bind=True)
    def fails(ctx: Context) -> Any:
        if gate.is_set():
            return ctx.deadline
        raise ValueError

    gate, soon = threading.Event(), in_seconds(60)
    with running_worker(app):
        first = fails.options(deadline=soon, expires=0.4).delay()
        assert isinstance(first.exception(timeout=5), ValueError)
        gate.set()
        let_pass(0.5)
        assert app.dead.retry(first.id).get(timeout=5) == soon
