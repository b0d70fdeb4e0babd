"""Failed attempts that are followed by others, and the waits between them."""

from __future__ import annotations

import datetime as dt
import itertools
import time
from typing import Any

import pytest
from tenacity import (
    retry_if_exception_message,
    retry_if_result,
    stop_after_attempt,
    stop_after_delay,
    wait_fixed,
    wait_none,
)

import taskq
from taskq import (
    ConfigError,
    Context,
    MaxRetriesExceeded,
    Rescheduling,
    Result,
    Retry,
    RetryPolicy,
    State,
    TaskQ,
)
from taskq.testing import running_worker
from tests.eventually import until

AT_ONCE = {"wait": wait_none()}


@pytest.fixture
def app(new_app: Any) -> TaskQ:
    made: TaskQ = new_app()
    return made


def test_nothing_is_retried_by_itself(app: TaskQ) -> None:
    runs = []

    @app.task
    def fail() -> None:
        runs.append(1)
        raise ValueError

    with running_worker(app), pytest.raises(ValueError):  # noqa: PT011 - it has no text
        fail.delay().get(timeout=5)
    assert len(runs) == 1


def test_a_policy_says_what_is_retried_and_how_often(app: TaskQ) -> None:
    runs: list[int] = []

    @app.task(
        bind=True, retry=RetryPolicy(on=(KeyError, OSError), stop=stop_after_attempt(3), **AT_ONCE)
    )
    def flaky(ctx: Context, kind: str, bad: int) -> int:
        runs.append(ctx.attempt)
        if ctx.attempt <= bad:
            raise {"key": KeyError, "value": ValueError}[kind](ctx.attempt)
        return ctx.attempt

    with running_worker(app):
        assert flaky.delay("key", 2).get(timeout=5) == 3
        with pytest.raises(KeyError, match="3"):
            flaky.delay("key", 3).get(timeout=5)
        with pytest.raises(ValueError, match="1"):
            flaky.delay("value", 1).get(timeout=5)
    assert runs == [1, 2, 3, 1, 2, 3, 1]


def test_async_tasks_are_retried_alike(app: TaskQ) -> None:
    @app.task(bind=True, retry=RetryPolicy(**AT_ONCE))
    async def flaky(ctx: Context) -> int:
        if ctx.attempt < 3:
            raise ValueError
        return ctx.attempt

    with running_worker(app):
        assert flaky.delay().get(timeout=5) == 3


def test_an_int_is_a_number_of_retries(app: TaskQ) -> None:
    @app.task(retry=0)
    def once() -> None:
        raise ValueError

    @app.task(retry=2)
    def thrice() -> None:
        raise ValueError

    assert once.retry_policy.stop.max_attempt_number == 1  # type: ignore[attr-defined]
    assert thrice.retry_policy.stop.max_attempt_number == 3  # type: ignore[attr-defined]
    with running_worker(app):
        assert isinstance(once.delay().exception(timeout=5), ValueError)
        result = thrice.delay()
        until(lambda: result.status is State.RETRYING)
        wait = result.snapshot().due_at
    assert wait is not None
    assert 0.5 < (wait - dt.datetime.now(dt.UTC)).total_seconds() < 3


def test_every_attempts_error_is_kept_newest_first(app: TaskQ) -> None:
    @app.task(bind=True, retry=RetryPolicy(stop=stop_after_attempt(4), **AT_ONCE))
    def fail(ctx: Context) -> None:
        msg = f"try {ctx.attempt}"
        raise [OSError, KeyError, ValueError, TypeError][ctx.attempt - 1](msg)

    with running_worker(app):
        result = fail.delay()
        error = result.exception(timeout=5)
    assert type(error) is TypeError
    errors = result.snapshot().errors
    assert [one.attempt for one in errors] == [4, 3, 2, 1]
    assert [one.type for one in errors] == ["TypeError", "ValueError", "KeyError", "OSError"]
    assert "try 4" in errors[0].text
    notes = "\n".join(getattr(error, "__notes__", []))
    assert notes.index("try 4") < notes.index("try 3") < notes.index("try 1")
    assert result.snapshot().attempt == 4
    assert result.snapshot().delivery == 4


def test_no_more_than_ten_errors_are_kept_and_each_is_short(app: TaskQ) -> None:
    @app.task(bind=True, retry=RetryPolicy(stop=stop_after_attempt(14), **AT_ONCE))
    def fail(ctx: Context) -> None:
        msg = f"{ctx.attempt} " + "é" * 5000
        raise ValueError(msg)

    with running_worker(app):
        result = fail.delay()
        result.exception(timeout=10)
    errors = result.snapshot().errors
    assert [one.attempt for one in errors] == list(range(14, 4, -1))
    assert all(len(one.text) <= 200 for one in errors)


def test_the_wait_is_in_redis_and_not_in_the_worker(app: TaskQ) -> None:
    """A retry of an hour holds no slot, and another worker may run it."""

    @app.task(bind=True, retry=RetryPolicy(wait=wait_fixed(0.5)))
    def flaky(ctx: Context) -> int:
        if ctx.attempt == 1:
            raise ValueError
        return ctx.attempt

    @app.task
    def other() -> str:
        return "ran"

    with running_worker(app, threads=1) as engine:
        result = flaky.delay()
        until(lambda: result.status is State.RETRYING)
        assert other.delay().get(timeout=5) == "ran"
        until(lambda: engine.exchange.holding == 0)
        snapshot = result.snapshot()
    assert snapshot.status is State.RETRYING
    assert snapshot.attempt == 1
    assert [one.type for one in snapshot.errors] == ["ValueError"]
    assert snapshot.due_at is not None
    with running_worker(app, threads=1):
        assert result.get(timeout=5) == 2


def test_attempts_wait_as_long_as_the_policy_says(app: TaskQ) -> None:
    @app.task(retry=RetryPolicy(stop=stop_after_attempt(3), wait=wait_fixed(1000)))
    def fail() -> None:
        raise ValueError

    with running_worker(app):
        result = fail.delay()
        for attempt in (1, 2):
            assert 900 < seconds_of_rest(result, attempt) <= 1000
            assert result.reschedule(countdown=0) is Rescheduling.MOVED
        assert isinstance(result.exception(timeout=10), ValueError)


def seconds_of_rest(result: Result[Any], attempt: int) -> float:
    """Return how long a message waits, once that attempt has ended."""

    def due() -> dt.datetime | None:
        told = result.snapshot()
        return told.due_at if told.status is State.RETRYING and told.attempt == attempt else None

    at = until(due)
    assert at is not None
    return (at - dt.datetime.now(dt.UTC)).total_seconds()


def test_the_wait_is_waited(app: TaskQ) -> None:
    times: list[float] = []

    @app.task(retry=RetryPolicy(stop=stop_after_attempt(3), wait=wait_fixed(0.25)))
    def fail() -> None:
        times.append(time.monotonic())
        raise ValueError

    with running_worker(app):
        fail.delay().exception(timeout=10)
    waits = [b - a for a, b in itertools.pairwise(times)]
    assert len(waits) == 2
    assert min(waits) > 0.24


def test_a_policy_may_stop_by_the_time_that_passed(app: TaskQ) -> None:
    began: list[float] = []

    @app.task(retry=RetryPolicy(stop=stop_after_delay(0.5), wait=wait_fixed(0.2)))
    def fail() -> None:
        began.append(time.monotonic())
        raise ValueError

    with running_worker(app):
        fail.delay().exception(timeout=10)
    ended = time.monotonic()
    # Whatever the machine was busy with between: it went on before, and not after.
    assert len(began) >= 2
    assert all(one - began[0] < 0.5 for one in began[:-1])
    assert ended - began[0] > 0.48


def test_predicates_of_tenacity_decide_by_error_or_result(app: TaskQ) -> None:
    @app.task(bind=True, retry=RetryPolicy(on=retry_if_exception_message(match="soft"), **AT_ONCE))
    def by_text(ctx: Context, text: str) -> int:
        if ctx.attempt < 3:
            raise ValueError(text)
        return ctx.attempt

    @app.task(bind=True, retry=RetryPolicy(on=retry_if_result(lambda x: x < 3), **AT_ONCE))
    def by_result(ctx: Context, most: int) -> int:
        return min(ctx.attempt, most)

    with running_worker(app):
        assert by_text.delay("soft").get(timeout=5) == 3
        assert isinstance(by_text.delay("hard").exception(timeout=5), ValueError)
        assert by_result.delay(5).get(timeout=5) == 3
        assert isinstance(by_result.delay(1).exception(timeout=5), MaxRetriesExceeded)


def test_a_task_asks_for_another_attempt_itself(app: TaskQ) -> None:
    @app.task(bind=True)
    def ask(ctx: Context, how: str) -> int:
        if ctx.attempt == 1:
            then = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1000)
            if how == "raise delay":
                raise Retry(delay=1000)
            if how == "raise eta":
                raise Retry(eta=then)
            if how == "ctx delay":
                ctx.retry(countdown=dt.timedelta(seconds=1000))
            ctx.retry(eta=then)
        return ctx.attempt

    with running_worker(app):
        for how in ("raise delay", "raise eta", "ctx delay", "ctx eta"):
            result = ask.delay(how)
            assert 900 < seconds_of_rest(result, 1) <= 1000
            assert result.reschedule(countdown=0) is Rescheduling.MOVED
            assert result.get(timeout=10) == 2


def test_a_request_ignores_on_and_obeys_stop(app: TaskQ) -> None:
    runs = []

    @app.task(retry=RetryPolicy(on=OSError, stop=stop_after_attempt(2), **AT_ONCE))
    def ask() -> None:
        runs.append(1)
        raise Retry(delay=0)

    with running_worker(app), pytest.raises(MaxRetriesExceeded):
        ask.delay().get(timeout=5)
    assert len(runs) == 2


def test_at_the_limit_the_given_exception_is_raised(app: TaskQ) -> None:
    @app.task(bind=True, max_retries=1)
    def with_exc(ctx: Context) -> None:
        ctx.retry(exc=KeyError("mine"), countdown=0)

    @app.task(bind=True, max_retries=1)
    def handling(ctx: Context) -> None:
        try:
            {}["there"]
        except KeyError as error:
            ctx.retry(exc=error, countdown=0)

    @app.task(bind=True, max_retries=1)
    def without(ctx: Context) -> None:
        ctx.retry(countdown=0)

    with running_worker(app):
        with pytest.raises(KeyError, match="mine"):
            with_exc.delay().get(timeout=5)
        with pytest.raises(KeyError, match="there"):
            handling.delay().get(timeout=5)
        with pytest.raises(MaxRetriesExceeded):
            without.delay().get(timeout=5)


def test_celerys_names_make_the_same_policy(app: TaskQ) -> None:
    runs: list[float] = []

    @app.task(autoretry_for=(KeyError,), max_retries=2, default_retry_delay=0.1)
    def fixed(kind: str) -> None:
        runs.append(time.monotonic())
        raise {"key": KeyError, "value": ValueError}[kind]

    @app.task(autoretry_for=[KeyError], retry_backoff=0.1, retry_jitter=False, max_retries=2)
    def backoff() -> None:
        runs.append(time.monotonic())
        raise KeyError

    with running_worker(app):
        fixed.delay("key").exception(timeout=5)
        assert len(runs) == 3
        assert 0.09 < runs[1] - runs[0] < 0.5
        runs.clear()
        fixed.delay("value").exception(timeout=5)
        assert len(runs) == 1
        runs.clear()
        backoff.delay().exception(timeout=5)
        assert len(runs) == 3
        assert 0.09 < runs[1] - runs[0] < 0.19
        assert 0.19 < runs[2] - runs[1] < 0.6


def test_the_two_families_do_not_mix(app: TaskQ) -> None:
    def fn() -> None: ...

    with pytest.raises(ConfigError, match="autoretry_for"):
        app.task(retry=3, autoretry_for=(OSError,))(fn)
    with pytest.raises(ConfigError, match="max_retries"):
        app.task(retry=RetryPolicy(), max_retries=3)(fn)
    for wrong in (-1, True, 1.5, "3"):
        with pytest.raises(ConfigError, match="retry"):
            app.task(retry=wrong)(fn)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="on"):
        RetryPolicy(on="ValueError")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="stop"):
        RetryPolicy(stop=3)  # type: ignore[arg-type]


def test_a_policy_that_fails_is_the_error_and_the_worker_lives(app: TaskQ) -> None:
    def broken(_state: Any) -> float:
        msg = "broken policy"
        raise ZeroDivisionError(msg)

    @app.task(retry=RetryPolicy(wait=broken))
    def fail() -> None:
        raise ValueError

    @app.task
    def naive() -> None:
        raise Retry(eta=dt.datetime(2030, 1, 1))  # noqa: DTZ001

    with running_worker(app):
        assert isinstance(fail.delay().exception(timeout=5), ZeroDivisionError)
        assert "aware" in str(naive.delay().exception(timeout=5))


def test_retrying_keeps_priority_headers_and_expiry(app: TaskQ) -> None:
    @app.task(bind=True)
    def look(ctx: Context) -> dict[str, Any]:
        if ctx.attempt == 1:
            ctx.retry(countdown=0.05)
        return ctx.headers

    with running_worker(app):
        chosen = look.options(headers={"a": 1}, priority=8, expires=60, id="kept")
        result = chosen.delay()
        assert result.get(timeout=5) == {"a": 1}
        assert result.snapshot().attempt == 2
        assert isinstance(look.options(id="kept").delay().get(timeout=1), dict)


def test_the_number_of_waiting_retries_is_right_afterwards(app: TaskQ) -> None:
    @app.task(bind=True, retry=RetryPolicy(**AT_ONCE))
    def flaky(ctx: Context) -> None:
        if ctx.attempt == 1:
            raise ValueError

    from taskq.broker import keys, queries

    with running_worker(app):
        taskq.gather([flaky.delay() for _ in range(50)], timeout=10)
        survey = app.broker.run(queries.survey(keys.base(app.name, "default"), "default"))
    assert {name: task.scheduled for name, task in survey.tasks.items() if task.scheduled} == {}
