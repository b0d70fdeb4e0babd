"""Messages that wait for their time: on time, re-timed, taken back, and in nobody's memory."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import time
from typing import Any

import pytest

import taskq
from taskq import Cancellation, ConfigError, Expired, Rescheduling, State, TaskQ
from taskq.broker import keys, queries
from taskq.testing import running_worker
from tests.eventually import let_pass, until
from tests.servers import Server

# On a machine with other work: how late a message may start that nothing holds up.
LATE = 0.4


@pytest.fixture
def app(new_app: Any) -> TaskQ:
    made: TaskQ = new_app()
    return made


@pytest.fixture
def now(app: TaskQ) -> Any:
    @app.task(name="now")
    def now(_tag: Any = None) -> float:
        return time.time()

    return now


def in_seconds(seconds: float) -> dt.datetime:
    return dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)


def base(app: TaskQ) -> str:
    return keys.base(app.name, "default")


def all_asleep(app: TaskQ) -> None:
    """Wait until somebody watches for the earliest due time, and the rest have heard of it."""
    until(lambda: app.broker.call("EXISTS", base(app) + "timer"))
    let_pass(0.2)


@pytest.mark.alone
class TestOnTime:
    def test_an_earlier_one_while_every_worker_sleeps_until_a_later_one(
        self, app: TaskQ, now: Any
    ) -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(running_worker(app, threads=1))
            now.options(countdown=3600).delay()
            all_asleep(app)
            for wait in (0.5, 0.3, 0.1):
                due = time.time() + wait
                assert 0 <= now.options(eta=at(due)).delay().get(timeout=5) - due < LATE

    def test_one_that_is_brought_forward(self, app: TaskQ, now: Any) -> None:
        with running_worker(app, threads=1), running_worker(app, threads=1):
            now.options(countdown=1800).delay()
            later = now.options(countdown=3600).delay()
            all_asleep(app)
            due = time.time() + 0.3
            assert later.reschedule(eta=at(due)) is Rescheduling.MOVED
            assert 0 <= later.get(timeout=5) - due < LATE

    def test_one_that_is_put_off_does_not_hold_up_the_next(self, app: TaskQ, now: Any) -> None:
        with running_worker(app, threads=1), running_worker(app, threads=1):
            first = now.options(countdown=1.0).delay()
            due = time.time() + 1.2
            second = now.options(eta=at(due)).delay()
            all_asleep(app)
            assert first.reschedule(countdown=3600) is Rescheduling.MOVED
            assert 0 <= second.get(timeout=5) - due < LATE
            assert first.status is State.SCHEDULED

    def test_another_attempt_is_brought_forward(self, app: TaskQ) -> None:
        @app.task(name="twice", retry=3, bind=True)
        def twice(ctx: taskq.Context) -> int:
            if ctx.attempt == 1:
                ctx.retry(countdown=3600)
            return ctx.attempt

        with running_worker(app):
            result = twice.delay()
            until(lambda: result.status is State.RETRYING)
            assert result.reschedule(countdown=0) == "moved"
            assert result.get(timeout=5) == 2


def at(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


class TestReschedule:
    def test_it_says_what_it_did(self, app: TaskQ, now: Any) -> None:
        waits, queued = now.options(countdown=60).delay(), now.delay()
        assert waits.reschedule(countdown=dt.timedelta(hours=1)) is Rescheduling.MOVED
        due = waits.snapshot().due_at
        assert abs(due - in_seconds(3600)) < dt.timedelta(seconds=5)
        assert waits.reschedule(eta=in_seconds(-5)) is Rescheduling.MOVED
        assert queued.reschedule(countdown=1) is Rescheduling.QUEUED
        assert app.result("nobody").reschedule(countdown=1) is Rescheduling.UNKNOWN
        with running_worker(app):
            taskq.gather([waits, queued], timeout=5)
        assert waits.reschedule(countdown=1) is Rescheduling.OVER

    def test_what_runs_is_let_run(self, app: TaskQ) -> None:
        @app.task(name="hold")
        async def hold() -> str:
            return app.result(taskq.current().id).reschedule(countdown=9)

        with running_worker(app):
            assert hold.delay().get(timeout=5) == "running"

    def test_awaited(self, app: TaskQ, now: Any, awaited: Any) -> None:
        result = now.options(countdown=60).delay()

        async def both() -> list[Rescheduling]:
            return [
                await result.areschedule(eta=in_seconds(9)),
                await app.result("nobody").areschedule(countdown=1),
            ]

        assert awaited(both(), app) == ["moved", "unknown"]

    @pytest.mark.parametrize(
        ("given", "kind"),
        [
            ({}, ConfigError),
            ({"eta": in_seconds(1), "countdown": 1}, ConfigError),
            ({"eta": dt.datetime(2030, 1, 1)}, ValueError),  # noqa: DTZ001
            ({"eta": in_seconds(12 * 366 * 86_400)}, ValueError),
            ({"eta": "2030-01-01"}, TypeError),
            ({"countdown": 12 * 366 * 86_400}, ValueError),
            ({"countdown": -1}, ValueError),
            ({"countdown": "5"}, TypeError),
        ],
    )
    def test_what_is_no_time_is_told(self, app: TaskQ, given: Any, kind: Any) -> None:
        with pytest.raises(kind, match=r"eta|countdown"):
            app.result("any").reschedule(**given)
        with pytest.raises(kind, match=r"eta|countdown"):
            asyncio.run(app.result("any").areschedule(**given))


class TestMemory:
    def test_a_cancelled_one_frees_its_own_at_once(self, app: TaskQ) -> None:
        later = app.send_task("any", (b"x" * 500_000,), countdown=3600)
        key = keys.record(app.name, "default", later.wire_id)
        assert app.broker.call("STRLEN", key) > 500_000
        assert later.cancel() is Cancellation.CANCELLED
        assert app.broker.call("STRLEN", key) < 200
        left = app.broker.call("KEYS", base(app) + "*")
        assert [name.decode() for name in left] == [key]

    def test_a_worker_holds_none(self, app: TaskQ, now: Any) -> None:
        now.options(countdown=3600).starmap((n,) for n in range(2000))
        with running_worker(app) as engine:
            now.delay().get(timeout=5)
            all_asleep(app)
            assert engine.exchange.holding == 0
            survey = app.broker.run(queries.survey(base(app), "default"))
        assert survey.tasks["now"].scheduled == 2000

    def test_what_expires_while_it_waits_never_runs_and_is_counted(
        self, app: TaskQ, now: Any
    ) -> None:
        result = now.options(countdown=0.3, expires=0.1).delay()
        with running_worker(app):
            assert isinstance(result.exception(timeout=5), Expired)
            let_pass(0.4)
        survey = app.broker.run(queries.survey(base(app), "default"))
        assert survey.counts["expired"] == 1


def calls_of(server: Server, *names: str) -> int:
    with server.client() as client:
        stats = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in names)


@pytest.mark.alone
def test_one_worker_wakes_for_what_falls_due(new_redis_app: Any) -> None:
    """Each of many that slept through it would have claimed: EVALSHA is what that costs."""
    with Server() as server, contextlib.ExitStack() as stack:
        app = new_redis_app(url=server.url)

        @app.task(name="now")
        def now() -> float:
            return time.time()

        for _ in range(8):
            stack.enter_context(running_worker(app, threads=1, coroutines=1))
        far = now.options(countdown=3600).delay()
        all_asleep(app)
        due = time.time() + 1.0
        results = [now.options(eta=at(due)).delay()]
        let_pass(0.5)
        before = calls_of(server, "evalsha")
        until(lambda: time.time() > due - 0.02)
        quiet = calls_of(server, "evalsha") - before
        assert 0 <= results[0].get(timeout=5) - due < LATE
        spent = calls_of(server, "evalsha") - before - quiet
        # The claim and the report of the one that watched; a thread more may look, and each
        # worker comes by every two seconds.
        assert spent <= 6, (spent, quiet)
        assert far.status is State.SCHEDULED
