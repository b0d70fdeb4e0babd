"""What one call may set apart from its task: where, when, how urgent, under which id."""

from __future__ import annotations

import datetime as dt
import enum
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

import taskq
from taskq import ConfigError, Context, DuplicateMessage, Expired, ResultNotStored, State, TaskQ
from taskq.testing import running_worker
from tests.eventually import let_pass, until


def in_seconds(seconds: float) -> dt.datetime:
    return dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)


@pytest.fixture
def app(new_app: Any) -> TaskQ:
    """An app without a worker."""
    made: TaskQ = new_app(queues=["mail", "low"])
    return made


@pytest.fixture
def shop(app: TaskQ) -> Any:
    order: list[Any] = []

    @app.task(name="note")
    def note(what: Any) -> Any:
        order.append(what)
        return what

    @app.task(name="other")
    def other() -> None: ...

    @app.task(name="at", bind=True)
    def at(ctx: Context) -> float:
        return time.time()

    @app.task(name="headers", bind=True)
    def headers(ctx: Context) -> dict[str, Any]:
        return ctx.headers

    return SimpleNamespace(app=app, order=order, note=note, other=other, at=at, headers=headers)


def test_a_queue_that_nobody_declared_is_told_with_the_nearest(shop: Any) -> None:
    with pytest.raises(ConfigError, match=r"'mial'.*did you mean 'mail'"):
        shop.note.options(queue="mial")
    with pytest.raises(ConfigError, match="mial"):
        shop.note.apply_async((1,), queue="mial")


class Name(str, enum.Enum):  # noqa: UP042 - older than StrEnum: its text is not its value
    QUEUE = "mail"
    TASK = "note"
    ORDER = "order-42"


@pytest.mark.parametrize("size", [1, 1 << 17])
def test_the_names_may_be_those_of_an_enum(shop: Any, size: int) -> None:
    app, what = shop.app, b"x" * size
    named = app.send_task(Name.TASK, (what,), queue=Name.QUEUE, id=Name.ORDER)
    bulk = shop.note.options(queue=Name.QUEUE).map([what] * 2)
    assert named.id == "order-42@mail"
    assert {app.result(Name.ORDER + "@" + Name.QUEUE).status, bulk[0].status} == {State.QUEUED}
    with running_worker(app):
        assert taskq.gather([named, *bulk], timeout=20) == [what] * 3


def test_options_do_not_change_the_task_they_come_from(shop: Any) -> None:
    chosen = shop.note.options(queue="mail")
    assert chosen.delay(1).id.endswith("@mail")
    assert shop.note.delay(2).id.isalnum()
    assert chosen.options(queue="low").delay(3).id.endswith("@low")


def test_a_task_has_a_queue_of_its_own(app: TaskQ) -> None:
    @app.task(queue="own")
    def there() -> int:
        return 1

    result = there.delay()
    assert result.id.endswith("@own")
    assert "own" in app.queues
    with running_worker(app):
        assert result.get(timeout=5) == 1


def test_the_higher_priority_is_served_first(shop: Any) -> None:
    for priority in (0, 5, 9, 1, 5, 7):
        shop.note.options(priority=priority).delay(priority)
    with running_worker(shop.app, threads=1, coroutines=0):
        until(lambda: len(shop.order) == 6)
    assert shop.order == [9, 7, 5, 5, 1, 0]


def test_one_priority_is_served_in_order(shop: Any) -> None:
    shop.note.map(range(50))
    with running_worker(shop.app, threads=1, coroutines=0):
        until(lambda: len(shop.order) == 50)
    assert shop.order == list(range(50))


@pytest.mark.parametrize("how", ["countdown", "timedelta", "eta"])
@pytest.mark.alone
def test_a_message_can_wait_for_its_time(shop: Any, how: str) -> None:
    asked = time.time()
    given: dict[str, Any] = {
        "countdown": {"countdown": 0.8},
        "timedelta": {"countdown": dt.timedelta(seconds=0.8)},
        "eta": {"eta": in_seconds(0.8)},
    }[how]
    result = shop.at.options(**given).delay()
    assert result.status is State.SCHEDULED
    with running_worker(shop.app):
        ran_after = result.get(timeout=5) - asked
    assert 0.79 <= ran_after < 1.6


def test_an_eta_that_is_past_runs_at_once(shop: Any) -> None:
    with running_worker(shop.app):
        assert shop.note.options(eta=in_seconds(-3600)).delay(1).get(timeout=5) == 1
        long_ago = dt.datetime(1, 1, 1, tzinfo=dt.UTC)
        assert shop.note.options(eta=long_ago).delay(2).get(timeout=5) == 2


def test_an_eta_in_another_zone_is_the_same_instant(shop: Any) -> None:
    zone = dt.timezone(dt.timedelta(hours=-9))
    result = shop.at.options(eta=in_seconds(0.3).astimezone(zone)).delay()
    due = result.snapshot().due_at
    assert abs((due - in_seconds(0.3)).total_seconds()) < 0.5
    with running_worker(shop.app):
        assert result.get(timeout=5)


def test_what_is_due_sooner_overtakes_what_was_sent_before(shop: Any) -> None:
    with running_worker(shop.app):
        late = shop.note.options(countdown=0.6).delay("late")
        soon = shop.note.options(countdown=0.1).delay("soon")
        assert taskq.gather([late, soon], timeout=5) == ["late", "soon"]
    assert shop.order == ["soon", "late"]


@pytest.mark.alone
def test_a_retry_is_not_late_because_another_worker_watches_for_a_later_time(app: TaskQ) -> None:
    """One worker watches for the next due time; a nearer one must reach it, or another."""
    runs: list[float] = []

    @app.task(name="far")
    def far() -> None: ...

    @app.task(name="again", bind=True)
    def again(ctx: Context) -> None:
        runs.append(time.monotonic())
        if ctx.attempt == 1:
            ctx.retry(countdown=0.1)

    with running_worker(app, threads=1), running_worker(app, threads=1):
        far.options(countdown=100).delay()
        let_pass(0.3)
        for _ in range(4):
            again.delay().get(timeout=15)
    waits = [late - soon for soon, late in zip(runs[::2], runs[1::2], strict=True)]
    assert max(waits) < 0.8, waits


def test_an_expired_message_resolves_though_no_worker_lives(shop: Any) -> None:
    result = shop.note.options(expires=1).delay(1)
    assert result.status is State.QUEUED
    started = time.monotonic()
    with pytest.raises(Expired):
        result.get(timeout=5)
    assert time.monotonic() - started < 4
    assert result.status is State.EXPIRED
    assert result.failed()


def test_a_scheduled_message_can_expire_before_it_is_due(shop: Any) -> None:
    result = shop.note.options(countdown=60, expires=0.2).delay(1)
    with pytest.raises(Expired):
        result.get(timeout=5)


def test_a_worker_drops_what_has_expired(shop: Any) -> None:
    gone = shop.note.options(expires=in_seconds(-1)).delay("gone")
    fresh = shop.note.options(expires=60).delay("fresh")
    with running_worker(shop.app, threads=1):
        assert fresh.get(timeout=5) == "fresh"
        assert isinstance(gone.exception(timeout=5), Expired)
    assert shop.order == ["fresh"]


def test_an_expiry_does_not_end_what_has_started(app: TaskQ) -> None:
    started, gate = threading.Event(), threading.Event()

    @app.task(expires=0.3)
    def slow() -> str:
        started.set()
        gate.wait(10)
        return "done"

    with running_worker(app):
        result = slow.delay()
        assert started.wait(5)
        let_pass(0.4)
        gate.set()
        assert result.get(timeout=5) == "done"


def test_a_second_call_with_an_id_gets_the_first_ones_handle(shop: Any) -> None:
    first = shop.note.options(id="order-42").delay("first")
    second = shop.note.options(id="order-42").delay("second")
    assert first == second
    assert first.id == "order-42"
    with running_worker(shop.app):
        assert second.get(timeout=5) == "first"
        third = shop.note.options(id="order-42").delay("third")
        assert third.get(timeout=5) == "first"
    assert shop.order == ["first"]


def test_an_id_serves_also_where_the_message_waits_for_its_time(shop: Any) -> None:
    first = shop.note.options(id="later", countdown=0.2).delay("first")
    second = shop.note.options(id="later").delay("second")
    assert first == second
    with running_worker(shop.app):
        assert second.get(timeout=5) == "first"


@pytest.mark.parametrize("id", ["order-42", "0123456789abcdef0123456789abcdef"])
def test_an_id_in_use_by_another_task_is_an_error(shop: Any, id: str) -> None:
    shop.note.options(id=id).delay(1)
    with pytest.raises(DuplicateMessage, match=id):
        shop.other.options(id=id).delay()


def test_one_id_may_be_used_once_in_each_queue(shop: Any) -> None:
    first = shop.note.options(id="x", queue="mail").delay("mail")
    second = shop.note.options(id="x", queue="low").delay("low")
    with running_worker(shop.app):
        assert taskq.gather([first, second], timeout=5) == ["mail", "low"]


def test_a_duplicate_among_many_does_not_lose_the_handles_of_the_rest(shop: Any) -> None:
    shop.note.options(id="taken").delay(1)
    calls = [
        shop.other.options(id="one").s(),
        shop.other.options(id="taken").s(),
        shop.other.options(id="two").s(),
    ]
    with pytest.raises(DuplicateMessage, match="taken") as caught:
        shop.app.enqueue_many(calls)
    assert [result.id for result in caught.value.sent] == ["one", "two"]


def test_an_id_twice_in_one_batch_is_one_message(shop: Any) -> None:
    call = shop.note.options(id="twice").s("once")
    results = shop.app.enqueue_many([call, call])
    with running_worker(shop.app):
        assert taskq.gather(results, timeout=5) == ["once", "once"]
    assert shop.order == ["once"]


@pytest.mark.parametrize("id", ["", "a@b", "x" * 129, "new\nline", 5, 0])
def test_what_cannot_be_an_id_is_told(shop: Any, id: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="id"):
        shop.note.options(id=id).delay(1)


def test_a_uuid_of_ones_own_is_an_id_like_any_other(shop: Any) -> None:
    result = shop.note.options(id="f" * 32).delay("mine")
    assert result.snapshot().status is State.QUEUED
    with running_worker(shop.app):
        assert result.get(timeout=5) == "mine"
    assert result.snapshot().status is State.SUCCEEDED


def test_an_ended_message_is_known_for_a_day_by_the_id_it_was_given(
    shop: Any,
) -> None:
    """That is how long the same id cannot run twice; also where it looks like our own."""
    results = [shop.note.options(id=id).delay(1) for id in ("order-42", "f" * 32)]
    with running_worker(shop.app):
        taskq.gather(results, timeout=5)
    assert [ttl_of(result) > 86_000 for result in results] == [True, True]


def ttl_of(result: Any) -> float:
    key = f"tq:{{{result.app_name}:{result.queue}}}:m:{result.wire_id}"
    return float(result.app.broker.call("PTTL", key)) / 1000


@pytest.mark.parametrize(
    ("asked", "least", "most"), [(None, 3590, 3600), (500, 490, 500), (1, 50, 60)]
)
def test_an_outcome_is_kept_as_long_as_asked(
    shop: Any, asked: float | None, least: float, most: float
) -> None:
    result = shop.note.options(result_ttl=asked).delay(1)
    with running_worker(shop.app):
        result.get(timeout=5)
    assert least <= ttl_of(result) <= most


def test_headers_travel_with_the_message(shop: Any) -> None:
    with running_worker(shop.app):
        given = {"trace": "abc", "n": 1, "deep": {"list": [1, None, True]}}
        assert shop.headers.options(headers=given).delay().get(timeout=5) == given
        assert shop.headers.delay().get(timeout=5) == {}


def test_nobody_waits_for_what_is_not_stored(shop: Any) -> None:
    result = shop.note.options(ignore_result=True).delay("quiet")
    started = time.monotonic()
    with pytest.raises(ResultNotStored, match="note"):
        result.get(timeout=5)
    with pytest.raises(ResultNotStored):
        taskq.gather([result], timeout=5)
    assert time.monotonic() - started < 4
    with running_worker(shop.app):
        until(result.ready)
    assert shop.order == ["quiet"]
    assert result.status is State.SUCCEEDED
    assert isinstance(shop.app.result(result.id).exception(timeout=5), ResultNotStored)
    snapshot = result.snapshot()
    assert (snapshot.status, snapshot.attempt, snapshot.note) == (State.SUCCEEDED, 1, None)
    assert snapshot.finished_at is None


def test_a_call_may_ask_for_the_result_that_its_task_ignores(app: TaskQ) -> None:
    @app.task(ignore_result=True)
    def quiet() -> str:
        return "said"

    with running_worker(app):
        assert quiet.options(ignore_result=False).delay().get(timeout=5) == "said"
        with pytest.raises(ResultNotStored):
            quiet.delay().get(timeout=5)
        by_name = app.send_task(quiet.name)
        with pytest.raises(ResultNotStored):
            by_name.get(timeout=5)


def test_the_nearest_option_is_named(app: TaskQ) -> None:
    with pytest.raises(TypeError, match="did you mean 'priority'"):
        app.task(prioritty=3)(print)  # type: ignore[call-overload]
