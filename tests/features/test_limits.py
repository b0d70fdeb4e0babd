"""Soft time limits: raised in the task, wherever it runs, and nowhere else."""

from __future__ import annotations

import asyncio
import datetime as dt
import gc
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import taskq
from taskq import ConfigError, Context, RemoteError, SoftTimeLimitExceeded, TaskQ
from taskq.broker.line import MOST_LINES
from taskq.testing import running_worker
from taskq.worker.pools.threads import _raise_in_thread
from tests.eventually import let_pass, until


@pytest.fixture
def app(new_app: Any) -> TaskQ:
    made: TaskQ = new_app()
    return made


def spin(seconds: float = 10.0) -> None:
    """Keep a thread busy in Python code."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_a_thread_is_told_that_its_time_is_over(app: TaskQ) -> None:
    @app.task(timeout=0.1)
    def busy() -> None:
        spin()

    with running_worker(app):
        error = busy.delay().exception(timeout=5)
    assert isinstance(error, SoftTimeLimitExceeded)
    assert "busy ran into its timeout of 0.1 s" in str(error)


def test_a_coroutine_is_told_that_its_time_is_over(app: TaskQ) -> None:
    @app.task(timeout=0.1)
    async def wait() -> None:
        await asyncio.Event().wait()

    with running_worker(app):
        error = wait.delay().exception(timeout=5)
    assert isinstance(error, SoftTimeLimitExceeded)
    assert "timeout of 0.1 s" in str(error)


def test_a_thread_may_clean_up_and_return(app: TaskQ) -> None:
    @app.task(timeout=0.1)
    def careful() -> str:
        try:
            spin()
        except SoftTimeLimitExceeded:
            return "partial"
        return "whole"

    with running_worker(app):
        assert careful.delay().get(timeout=5) == "partial"


def test_a_coroutine_may_clean_up_wait_and_return(app: TaskQ) -> None:
    """After the limit it is no cancelled task: `asyncio.timeout` in it must still work."""

    @app.task(timeout=0.1)
    async def careful() -> str:
        try:
            await asyncio.Event().wait()
        except SoftTimeLimitExceeded:
            try:
                async with asyncio.timeout(0.05):
                    await asyncio.Event().wait()
            except TimeoutError:
                return "partial"
        return "whole"

    with running_worker(app):
        assert careful.delay().get(timeout=5) == "partial"


def test_a_coroutine_is_told_even_where_it_swallows_cancellations(app: TaskQ) -> None:
    @app.task(timeout=0.1)
    async def wait() -> str:
        async def stubborn() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return

        try:
            await asyncio.create_task(stubborn())
        except SoftTimeLimitExceeded:
            return "told"
        return "not told"

    with running_worker(app):
        assert wait.delay().get(timeout=5) == "told"


def test_in_a_blocking_call_a_thread_is_told_when_it_returns(app: TaskQ) -> None:
    reader, writer = os.pipe()

    @app.task(timeout=0.1)
    def read() -> str:
        try:
            os.read(reader, 1)
            spin(1)
        except SoftTimeLimitExceeded:
            return "told"
        return "not told"

    with running_worker(app):
        result = read.delay()
        let_pass(0.3)
        assert not result.ready()
        os.write(writer, b"x")
        assert result.get(timeout=5) == "told"
    os.close(reader)
    os.close(writer)


def test_what_ends_in_time_is_left_alone(app: TaskQ) -> None:
    """Its alarm must not ring in the message that runs there next."""

    @app.task(timeout=0.2)
    def quick() -> int:
        return 1

    @app.task
    def slow() -> int:
        spin(0.6)
        return 2

    with running_worker(app, threads=1):
        first, second = quick.delay(), slow.delay()
        assert (first.get(timeout=5), second.get(timeout=5)) == (1, 2)


def test_an_uncaught_limit_is_retried_as_any_failure(app: TaskQ) -> None:
    @app.task(bind=True, timeout=0.1, autoretry_for=SoftTimeLimitExceeded, default_retry_delay=0.01)
    def first_slow(ctx: Context) -> int:
        if ctx.attempt == 1:
            spin()
        return ctx.attempt

    with running_worker(app):
        assert first_slow.delay().get(timeout=5) == 2


def test_a_call_sets_another_limit_than_its_task(app: TaskQ) -> None:
    @app.task(timeout=60)
    def busy() -> None:
        spin()

    with running_worker(app):
        error = busy.options(timeout=dt.timedelta(milliseconds=100)).delay().exception(timeout=5)
        assert "0.1 s" in str(error)
        sent = app.send_task(busy.name, timeout=0.1).exception(timeout=5)
        assert isinstance(sent, SoftTimeLimitExceeded)


def test_a_producer_without_the_code_leaves_the_limit_to_the_task(app: TaskQ) -> None:
    @app.task(timeout=0.1)
    def busy() -> None:
        spin()

    with running_worker(app):
        error = app.send_task(busy.name).exception(timeout=5)
        assert isinstance(error, SoftTimeLimitExceeded)


def test_the_limit_travels_without_pickle(new_app: Any) -> None:
    app = new_app(serializer="json")

    @app.task(timeout=0.1)
    def busy() -> None:
        spin()

    with running_worker(app):
        error = busy.delay().exception(timeout=5)
    assert isinstance(error, SoftTimeLimitExceeded)
    assert "0.1 s" in str(error)


def test_celery_s_names_mean_the_same(app: TaskQ) -> None:
    @app.task(soft_time_limit=3, time_limit=9)
    def work() -> None: ...

    assert work.limits == (3, 9)
    assert work.options(soft_time_limit=2).call_options.limits == (2, 9)
    with pytest.raises(ConfigError, match="soft_time_limit"):
        work.options(soft_time_limit=2, timeout=2)


@pytest.mark.parametrize("kind", ["timeout", "hard_timeout", "soft_time_limit", "time_limit"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "5", True])
def test_a_limit_that_is_none_is_refused_at_the_call(app: TaskQ, kind: str, value: Any) -> None:
    @app.task
    def work() -> None: ...

    with pytest.raises((ValueError, TypeError), match="timeout"):
        work.options(**{kind: value})
    with pytest.raises((ValueError, TypeError), match="timeout"):
        app.task(name="other", **{kind: value})(lambda: None)


def test_a_hard_limit_must_leave_time_after_the_soft_one(app: TaskQ) -> None:
    @app.task(timeout=5)
    def work() -> None: ...

    with pytest.raises(ConfigError, match=r"hard_timeout \(5 s\) must be longer than timeout"):
        work.options(hard_timeout=5)


@pytest.mark.parametrize("value", [0, -1, 101, True, 2.5, "3"])
def test_a_crash_budget_that_is_none_is_refused(app: TaskQ, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="max_crashes"):
        app.task(name="other", max_crashes=value)(lambda: None)


def test_a_task_knows_its_deadline(app: TaskQ) -> None:
    @app.task(bind=True, timeout=60, hard_timeout=90)
    def limited(ctx: Context) -> float:
        assert ctx.deadline is not None
        return (ctx.deadline - dt.datetime.now(dt.UTC)).total_seconds()

    @app.task(bind=True, hard_timeout=90)
    async def hard_alone(ctx: Context) -> float:
        assert ctx.deadline is not None
        return (ctx.deadline - dt.datetime.now(dt.UTC)).total_seconds()

    @app.task
    def endless() -> bool:
        return taskq.current().deadline is None

    with running_worker(app):
        assert 58 < limited.delay().get(timeout=5) <= 60
        assert 88 < hard_alone.delay().get(timeout=5) <= 90
        assert endless.delay().get(timeout=5)


def test_no_thread_keeps_time_where_nothing_is_limited(app: TaskQ) -> None:
    @app.task
    def work() -> int:
        return 1

    with running_worker(app):
        assert work.delay().get(timeout=5) == 1
        assert "taskq-alarms" not in {thread.name for thread in threading.enumerate()}


def test_a_thread_that_was_interrupted_gives_its_place_to_a_new_one(app: TaskQ) -> None:
    @app.task(timeout=0.1)
    def busy() -> int:
        try:
            spin()
        except SoftTimeLimitExceeded:
            return threading.get_native_id()
        return 0

    @app.task
    def where() -> int:
        return threading.get_native_id()

    with running_worker(app, threads=1, coroutines=0):
        interrupted = busy.delay().get(timeout=5)
        assert where.delay().get(timeout=5) not in (interrupted, 0)


def test_a_broken_off_request_leaves_no_reply_to_the_next(new_redis_app: Any) -> None:
    """The exception may arrive between a request of the client library and its reply."""
    app = new_redis_app()

    @app.task
    def noted(number: int) -> int:
        return number

    @app.task(timeout=0.15)
    def produce() -> int:
        sent = 0
        try:
            while True:
                noted.delay(sent)
                sent += 1
        except SoftTimeLimitExceeded:
            return sent

    with running_worker(app, threads=3):
        for _ in range(4):
            produce.delay().get(timeout=10)
        answers = [noted.delay(number).get(timeout=5) for number in range(40)]
    assert answers == list(range(40))


@pytest.fixture(autouse=True)
def _no_alarm_is_left() -> Iterator[None]:
    yield
    until(lambda: "taskq-alarms" not in {thread.name for thread in threading.enumerate()})


@pytest.fixture
def _restless() -> Iterator[None]:
    """Let threads change places as often as Python can."""
    # A destructor swallows what is raised in it: what other tests have left must not be
    # collected in a slot's thread.
    gc.collect()
    gc.disable()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)
    gc.enable()


class Stop(BaseException):
    """What an interrupt raises here."""


@pytest.mark.slow
@pytest.mark.usefixtures("_restless")
def test_interrupts_at_any_moment_lose_no_message_and_no_slot(new_redis_app: Any) -> None:
    """They come before, in, after and between the tasks, which take a part of a millisecond."""
    app = new_redis_app()

    @app.task
    def brief(number: int) -> int:
        spin(0.0002)
        return number

    with running_worker(app, threads=3) as engine:
        pool, told = engine._threads, 0
        results = brief.map(range(1500))
        waiting = threading.Thread(
            target=taskq.gather, args=(results,), kwargs={"return_exceptions": True}
        )
        waiting.start()
        while waiting.is_alive():
            for slot in list(pool._slots):
                current = slot.current
                told += current is not None and pool.interrupt(current.key, Stop)
        outcomes = taskq.gather(results, return_exceptions=True, timeout=10)
        stopped = [one for one in outcomes if isinstance(one, RemoteError)]
        assert 0 < len(stopped) <= told
        assert all("Stop" in str(error) for error in stopped)
        rest = [one for one in outcomes if not isinstance(one, RemoteError)]
        assert set(rest) <= set(range(1500))
        assert len(rest) + len(stopped) == len(results)
        assert brief.delay(7).get(timeout=5) == 7
        until(lambda: all(slot.thread.is_alive() for slot in pool._slots))
        assert len(pool._slots) == 4  # one more than run, to listen


def test_a_message_that_is_not_running_is_not_interrupted(app: TaskQ) -> None:
    @app.task
    async def work() -> int:
        return 1

    with running_worker(app) as engine:
        assert work.delay().get(timeout=5) == 1
        key = ("default", b"0" * 42)
        assert not engine._threads.interrupt(key, Stop)
        assert not engine._coroutines.interrupt(key, Stop)


def test_whoever_is_interrupted_while_waiting_for_a_connection_takes_none_away(
    new_redis_app: Any,
) -> None:
    app = new_redis_app()
    broker = app.broker
    taken = [broker._places.get() for _ in range(MOST_LINES)]
    ended: list[BaseException] = []

    def ask() -> None:
        try:
            broker.call("PING")
        except SoftTimeLimitExceeded as error:
            ended.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: "_line" in stack_of(thread))
    _raise_in_thread(thread.ident or 0, SoftTimeLimitExceeded)
    for place in taken:
        broker._places.put(place)
    thread.join(5)
    assert len(ended) == 1
    assert broker._places.qsize() == MOST_LINES


def stack_of(thread: threading.Thread) -> list[str]:
    """Return the names of the functions that a thread is in."""
    frame, names = sys._current_frames().get(thread.ident or 0), []
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names
