"""Time that a test puts forward: what falls due on the way runs, and nobody sleeps."""

from __future__ import annotations

import datetime as dt
import threading
import time
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from tenacity import stop_after_attempt, wait_fixed

from taskq import Context, Expired, RetryPolicy, State, TaskQ
from taskq.broker import keys, scripts
from taskq.model import clock as clocks
from taskq.testing import VirtualClock, milliseconds, running_worker

HOUR = dt.timedelta(hours=1)


@pytest.fixture
def app(new_app: Any) -> TaskQ:
    made: TaskQ = new_app()
    return made


def test_a_delayed_call_runs_when_its_time_has_come(app: TaskQ) -> None:
    clock, ran = VirtualClock(), []

    @app.task
    def remind(what: str) -> str:
        ran.append(what)
        return what

    with running_worker(app, clock=clock):
        result = remind.options(countdown=HOUR).delay("tea")
        clock.advance("59m")
        assert result.status is State.SCHEDULED
        began = time.monotonic()
        clock.advance("61s")
        assert ran == ["tea"]
        assert time.monotonic() - began < 30
        assert result.get(timeout=5) == "tea"


def test_an_eta_is_told_by_the_virtual_clock(app: TaskQ) -> None:
    clock = VirtualClock()

    @app.task
    def remind() -> None: ...

    with running_worker(app, clock=clock):
        clock.advance(dt.timedelta(days=400))
        assert clock.now() - dt.datetime.now(dt.UTC) > dt.timedelta(days=399)
        result = remind.options(eta=clock.now() + HOUR).delay()
        clock.advance("30m")
        assert result.status is State.SCHEDULED
        clock.advance("31m")
        assert result.status is State.SUCCEEDED


def test_all_that_falls_due_on_the_way_runs_at_its_time_and_in_order(app: TaskQ) -> None:
    clock, ran = VirtualClock(), []

    @app.task
    def note(name: str) -> None:
        ran.append((name, clock.now()))

    with running_worker(app, clock=clock):
        start = clock.now()
        for minutes in (50, 10, 30):
            note.options(countdown=60 * minutes).delay(f"{minutes}")
        clock.advance("2h")
    assert [name for name, _ in ran] == ["10", "30", "50"]
    for name, when in ran:
        late = when - start - dt.timedelta(minutes=int(name))
        assert dt.timedelta(0) <= late < dt.timedelta(seconds=5)


def test_retries_with_a_long_backoff_take_no_time(app: TaskQ) -> None:
    clock = VirtualClock()

    @app.task(bind=True, retry=RetryPolicy(stop=stop_after_attempt(4), wait=wait_fixed(3 * 86_400)))
    def flaky(ctx: Context) -> int:
        if ctx.attempt < 4:
            raise ConnectionError
        return ctx.attempt

    with running_worker(app, clock=clock):
        result = flaky.delay()
        clock.advance("8d")
        assert result.status is State.RETRYING
        assert result.snapshot().attempt == 3
        clock.advance("2d")
        assert result.get(timeout=5) == 4


def test_what_a_task_sends_with_a_delay_is_sent_on_by_the_same_call(app: TaskQ) -> None:
    clock, ran = VirtualClock(), []

    @app.task
    def chain(left: int) -> None:
        ran.append(left)
        if left:
            chain.options(countdown=HOUR).delay(left - 1)

    with running_worker(app, clock=clock):
        chain.delay(5)
        clock.advance("5h1m")
    assert ran == [5, 4, 3, 2, 1, 0]


def test_a_message_expires(app: TaskQ) -> None:
    clock = VirtualClock()

    ran = []

    @app.task
    def late() -> None:
        ran.append(1)

    with running_worker(app, clock=clock):
        result = late.options(countdown=2 * HOUR, expires=3600).delay()
        clock.advance("3h")
        with pytest.raises(Expired):
            result.get(timeout=5)
        assert ran == []
        # By the clock of the machine this one is three hours away.
        late.options(expires=60).delay().get(timeout=5)
        assert ran == [1]


def test_each_tick_of_a_schedule_on_the_way_is_fired_at_its_time(app: TaskQ) -> None:
    clock, ran = VirtualClock(), []

    @app.periodic(cron="0 7 * * *", timezone="Europe/Berlin", name="daily")
    @app.task
    def report() -> None:
        ran.append(clock.now().astimezone(ZoneInfo("Europe/Berlin")))

    with running_worker(app, clock=clock):
        clock.advance("10d")
    assert len(ran) == 10
    assert all(when.time() < dt.time(7, 0, 5) for when in ran)
    assert {after.date() - before.date() for before, after in pairwise(ran)} == {24 * HOUR}


def test_ticks_that_wait_for_each_other_come_one_by_one(app: TaskQ) -> None:
    clock, ran = VirtualClock(), []

    @app.task
    def sync() -> None:
        ran.append(1)

    with running_worker(app, clock=clock):
        app.schedules.add("sync", sync.s(), every=60, overlap="queue", catch_up="all")
        clock.advance("10m")
        assert 9 <= len(ran) <= 10
        app.schedules.pause("sync", note="enough")
        clock.advance("10m")
    assert 9 <= len(ran) <= 10


def test_a_late_reminder_is_sent_by_a_schedule_and_a_delay(app: TaskQ) -> None:
    clock, ran = VirtualClock(), []

    @app.task
    def remind() -> None:
        ran.append("reminded")

    @app.task
    def check() -> None:
        ran.append("checked")
        remind.options(countdown=30 * 60).delay()

    with running_worker(app, clock=clock):
        app.schedules.add("check", check.s(), cron="0 * * * *")
        clock.advance("3h")
        assert ran[:4] == ["checked", "reminded"] * 2


def test_what_still_runs_is_not_waited_for_without_end(app: TaskQ) -> None:
    clock, go, ran = VirtualClock(), threading.Event(), threading.Event()

    @app.task
    def slow() -> None:
        go.wait(20)

    @app.task
    def other() -> None:
        ran.set()

    with running_worker(app, clock=clock):
        result = slow.delay()
        other.options(countdown=HOUR).delay()
        clock.advance("2h", patience=0.3)
        assert ran.wait(5)
        # Its lease did not run out: it was not taken for lost.
        go.set()
        result.get(timeout=5)
        assert result.snapshot().delivery == 1


def test_time_is_real_again_when_the_worker_has_gone(app: TaskQ) -> None:
    clock = VirtualClock()
    before = clocks.now_ms
    with running_worker(app, clock=clock):
        clock.advance("1d")
        assert clocks.now() - time.time() > 86_000
        assert app.broker.call("GET", keys.ahead(app.name, "default")) is not None
    assert clocks.now_ms is before
    assert app.broker.call("GET", keys.ahead(app.name, "default")) is None
    with pytest.raises(RuntimeError, match="no worker runs by this clock"):
        clock.advance("1h")


def test_in_production_no_script_asks_for_it() -> None:
    for name in scripts.names():
        own, shifted = scripts.load(name).text, scripts.load_ahead(name).text
        assert "'ahead'" not in own
        assert ("'ahead'" in shifted) == ("call('TIME')" in own)
        assert shifted.replace(scripts.source("lib/ahead") + "\n", "") == own


def test_what_a_killed_test_left_is_not_taken_for_time(app: TaskQ) -> None:
    clock = VirtualClock()

    @app.task
    def remind() -> None: ...

    app.broker.call("SET", keys.ahead(app.name, "default"), 86_400_000_000)
    with running_worker(app, clock=clock):
        result = remind.options(countdown=HOUR).delay()
        clock.advance("10m")
        assert result.status is State.SCHEDULED


def test_one_clock_is_in_use_at_a_time(app: TaskQ) -> None:
    with (
        running_worker(app, clock=VirtualClock()),
        pytest.raises(RuntimeError, match="another virtual clock"),
        running_worker(app, clock=VirtualClock()),
    ):
        pytest.fail("both run")


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ("2h", 7_200_000),
        ("1h30m", 5_400_000),
        ("90s", 90_000),
        ("1.5 d", 129_600_000),
        ("1w 2ms", 604_800_002),
        (5, 5000),
        (0.25, 250),
        (HOUR, 3_600_000),
    ],
)
def test_spans_are_written_as_people_do(span: Any, expected: int) -> None:
    assert milliseconds(span) == expected


@pytest.mark.parametrize("span", ["", "2", "h", "2 hours", "-1h", "1h x", -1, float("nan")])
def test_other_spans_are_refused(span: Any) -> None:
    with pytest.raises(ValueError, match=r"span of time|finite number"):
        milliseconds(span)
