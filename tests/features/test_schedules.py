"""`@app.periodic` and `app.schedules`: what is called again and again, and when."""

from __future__ import annotations

import asyncio
import enum
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from taskq import (
    BrokerError,
    BrokerFull,
    Cancelled,
    ConfigError,
    Context,
    EnqueueUncertain,
    Interrupted,
    Schedule,
    ScheduleError,
    State,
    TaskQ,
)
from taskq.broker import keys
from taskq.model import clock
from taskq.testing import running_worker
from taskq.worker.ear import Ear
from tests.eventually import let_pass, until

SECOND = timedelta(seconds=1)
NEVER = "0 0 1 1 *"


class Name(str, enum.Enum):  # noqa: UP042 - its text is not its value
    NIGHTLY = "nightly"


class Shop:
    """An app whose tasks say for which tick they ran."""

    def __init__(self, app: TaskQ) -> None:
        self.app = app
        self.ran: list[tuple[str, str]] = []
        self.most_at_once = 0
        self._running = 0
        self._lock = threading.Lock()
        self.go = threading.Event()

        @app.task(name="note", bind=True)
        def note(ctx: Context, *_: Any) -> str:
            self.ran.append((ctx.headers["taskq-schedule"], ctx.headers["taskq-tick"]))
            return ctx.id

        @app.task(name="hold", bind=True)
        def hold(ctx: Context) -> None:
            """Run until the test says otherwise."""
            with self._lock:
                self._running += 1
                self.most_at_once = max(self.most_at_once, self._running)
            self.ran.append((ctx.headers["taskq-schedule"], ctx.headers["taskq-tick"]))
            while not self.go.wait(0.01):
                pass
            with self._lock:
                self._running -= 1

        @app.task(name="linger", bind=True)
        async def linger(ctx: Context) -> None:
            self.ran.append((ctx.headers["taskq-schedule"], ctx.headers["taskq-tick"]))
            await asyncio.Event().wait()

        self.note, self.hold, self.linger = note, hold, linger

    def ticks(self, name: str) -> list[str]:
        """Return the ticks of a schedule for which messages ran, in their order."""
        return [tick for schedule, tick in self.ran if schedule == name]

    def rewind(self, name: str, seconds: float) -> None:
        """Do as if nobody had fired a schedule for so long."""
        base = keys.base(self.app.name, "default")
        state = self.app.broker.call("HGET", f"{base}fires", name)
        tick = int(state[16:29]) - round(seconds * 1000)
        self.app.broker.call(
            "HSET", f"{base}fires", name, b"%b%013d%b" % (state[:16], tick, state[29:])
        )
        self.app.broker.call("ZADD", f"{base}ticks", tick, name)


@pytest.fixture
def shop(new_redis_app: Any) -> Iterator[Shop]:
    """On the real server alone, where tests take time."""
    shop = Shop(new_redis_app(queues=["mail"], lease=0.5))
    yield shop
    shop.go.set()


@pytest.fixture
def any_shop(new_app: Any) -> Iterator[Shop]:
    """On a real server, and on `memory://`."""
    shop = Shop(new_app(queues=["mail"], lease=0.5))
    yield shop
    shop.go.set()


def consecutive(ticks: list[str]) -> bool:
    """Whether each tick is a second after the one before."""
    times = [datetime.fromisoformat(tick) for tick in ticks]
    return all(later - earlier == SECOND for earlier, later in pairwise(times))


def test_a_declared_schedule_is_fired_once_each_tick(any_shop: Shop) -> None:
    app = any_shop.app
    app.periodic(every=SECOND)(any_shop.note)
    with running_worker(app):
        ticks = until(lambda: found if len(found := any_shop.ticks("note")) >= 3 else None)
        [one] = app.schedules.list()
    assert consecutive(ticks)
    assert (one.name, one.task, one.rule, one.queue) == ("note", "note", "every 1 s", "default")
    assert one.declared_by == any_shop.note.origin[0]
    assert one.fired >= 3
    assert one.next_at is not None
    assert one.last_at is not None
    assert one.next_at - one.last_at == SECOND
    assert one.last_id == f"note:{one.last_at.isoformat().removesuffix('+00:00')}Z"
    assert app.result(one.last_id).status in (State.SUCCEEDED, State.QUEUED)


def test_a_message_is_found_by_its_schedule_and_tick(shop: Shop) -> None:
    shop.app.periodic(every=1, name="often")(shop.note)
    with running_worker(shop.app):
        tick = until(lambda: shop.ticks("often"))[0]
        assert shop.app.result(f"often:{tick}").get(timeout=5) == f"often:{tick}"


def test_a_cron_expression_is_read_on_the_clock_of_its_zone(shop: Shop) -> None:
    schedules = shop.app.schedules
    berlin = ZoneInfo("Europe/Berlin")
    made = schedules.add("report", shop.note.s(42), cron="30 7 * * mon", timezone="Europe/Berlin")
    ticks = schedules.next("report", n=3)
    assert made.next_at == ticks[0]
    assert (made.rule, made.declared_by) == ("30 7 * * mon Europe/Berlin", None)
    assert [(tick.isoweekday(), tick.hour, tick.minute) for tick in ticks] == [(1, 7, 30)] * 3
    assert {tick.tzinfo for tick in ticks} == {berlin}
    assert len(schedules.next("report")) == 5


def test_one_that_is_made_while_a_worker_sleeps_is_fired_in_time(any_shop: Shop) -> None:
    with running_worker(any_shop.app):
        let_pass(0.3)  # it has looked, and sleeps
        any_shop.app.schedules.add("quick", any_shop.note.s(), every=1)
        until(lambda: any_shop.ticks("quick"), 2.5)


def test_a_defect_in_listening_makes_no_worker_deaf(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    take = Ear._take

    def fails(ear: Ear, kind: bytes, channel: bytes) -> None:
        if kind == b"message":
            monkeypatch.setattr(Ear, "_take", take)
            msg = "a defect"
            raise RuntimeError(msg)
        take(ear, kind, channel)

    monkeypatch.setattr(Ear, "_take", fails)
    with running_worker(shop.app):
        let_pass(0.3)  # it has looked, and sleeps
        for name in ("first", "second"):
            shop.app.schedules.add(name, shop.note.s(), every=1)
            until(lambda: "a defect" in caplog.text)
        until(lambda: shop.ticks("first") and shop.ticks("second"), 8)


def test_arguments_and_options_of_the_call_are_its_own(shop: Shop) -> None:
    seen: list[Any] = []

    @shop.app.task(name="told", bind=True)
    def told(ctx: Context, x: int, *, y: str) -> None:
        seen.append((x, y, ctx.queue, ctx.headers["who"]))

    call = told.options(queue="mail", headers={"who": "me"}, priority=9).s(1, y="z")
    made = shop.app.schedules.add("told", call, every=1)
    assert made.queue == "mail"
    with running_worker(shop.app):
        until(lambda: seen)
    assert seen[0] == (1, "z", "mail", "me")
    assert shop.app.schedules.list("default") == []


def test_each_tick_has_a_deadline_and_an_expiry_of_its_own(shop: Shop) -> None:
    seen: list[Any] = []

    @shop.app.task(name="urgent", bind=True, deadline=30, expires=60)
    def urgent(ctx: Context) -> None:
        seen.append(ctx.deadline)

    shop.app.schedules.add("urgent", urgent.s(), every=1)
    with running_worker(shop.app):
        until(lambda: len(seen) == 2)
    first, second = seen
    assert abs(first - datetime.now(UTC)) < timedelta(seconds=40)
    assert timedelta(milliseconds=800) < second - first < timedelta(seconds=3)


def test_skip_leaves_out_the_ticks_of_a_message_that_is_not_over(shop: Shop) -> None:
    schedules = shop.app.schedules
    schedules.add("held", shop.hold.s(), every=1, overlap="skip")
    with running_worker(shop.app):
        until(lambda: schedules.get("held").skipped >= 2)
        assert len(shop.ticks("held")) == 1
        shop.go.set()
        until(lambda: len(shop.ticks("held")) >= 2)
    assert shop.most_at_once == 1


@pytest.mark.slow
def test_queue_runs_each_tick_after_the_one_before(shop: Shop) -> None:
    schedules = shop.app.schedules
    schedules.add("held", shop.hold.s(), every=1, overlap="queue")
    with running_worker(shop.app):
        until(lambda: shop.ticks("held"))
        let_pass(2.2)
        assert len(shop.ticks("held")) == 1
        shop.go.set()
        ticks = until(lambda: found if len(found := shop.ticks("held")) >= 4 else None, 8)
    assert consecutive(ticks)
    assert shop.most_at_once == 1


@pytest.mark.slow
@pytest.mark.alone
def test_what_waits_is_fired_as_soon_as_the_message_before_is_over(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is heard: no look is due meanwhile."""
    schedules = shop.app.schedules
    schedules.add("held", shop.hold.s(), every=1, overlap="queue")
    with running_worker(shop.app):
        until(lambda: shop.ticks("held"))
        let_pass(3.5)
        began = time.monotonic()
        shop.go.set()
        until(lambda: len(shop.ticks("held")) >= 3)
        assert time.monotonic() - began < 1


def test_cancel_running_stops_the_message_before(shop: Shop) -> None:
    schedules = shop.app.schedules
    schedules.add("lingers", shop.linger.s(), every=1, overlap="cancel_running")
    with running_worker(shop.app):
        ticks = until(lambda: found if len(found := shop.ticks("lingers")) >= 2 else None)
        first = shop.app.result(f"lingers:{ticks[0]}")
        assert isinstance(error := first.exception(timeout=5), Cancelled)
        assert "next tick" in error.reason
        schedules.remove("lingers")
        shop.app.result(f"lingers:{shop.ticks('lingers')[-1]}").cancel()


def test_allow_runs_them_side_by_side(shop: Shop) -> None:
    shop.app.schedules.add("held", shop.hold.s(), every=1)
    with running_worker(shop.app, threads=3):
        until(lambda: shop.most_at_once >= 2)
        shop.go.set()


@pytest.mark.parametrize(
    ("catch_up", "fired"), [("none", 0), ("last", 1), ("all", 4)], ids=["none", "last", "all"]
)
def test_of_what_nobody_was_there_to_fire_the_policy_decides(
    shop: Shop, catch_up: Any, fired: int
) -> None:
    schedules = shop.app.schedules
    schedules.add("hourly", shop.note.s(), every=timedelta(hours=1), catch_up=catch_up)
    # A tick of its own comes within the test only once in a thousand times.
    shop.rewind("hourly", 4 * 3600)
    began = schedules.get("hourly").missed
    with running_worker(shop.app):
        until(lambda: schedules.get("hourly").next_at > datetime.now(UTC))  # type: ignore[operator]
        until(lambda: len(shop.ticks("hourly")) == fired)
        let_pass(0.2)
    one = schedules.get("hourly")
    assert (one.fired, one.missed - began, len(shop.ticks("hourly"))) == (fired, 4 - fired, fired)


def test_what_is_older_than_the_window_is_not_caught_up(shop: Shop) -> None:
    schedules = shop.app.schedules
    window = timedelta(hours=2)
    schedules.add("hourly", shop.note.s(), every=timedelta(hours=1), catch_up="all", window=window)
    shop.rewind("hourly", 4 * 3600)
    with running_worker(shop.app):
        until(lambda: schedules.get("hourly").missed == 2)
    assert schedules.get("hourly").fired == 2


def test_a_weekly_tick_is_fired_though_nobody_was_there(any_shop: Shop) -> None:
    """The last fire is in Redis: workers that start anew each day do not begin anew."""
    any_shop.app.schedules.add("weekly", any_shop.note.s(), cron="0 3 * * sun")
    any_shop.rewind("weekly", 7 * 86_400)
    for _ in range(2):
        with running_worker(any_shop.app):
            until(lambda: len(any_shop.ticks("weekly")) == 1)
    assert any_shop.app.schedules.get("weekly").fired == 1


def test_paused_it_waits_with_a_note_and_resumed_it_goes_on_from_now(shop: Shop) -> None:
    schedules = shop.app.schedules
    schedules.add("often", shop.note.s(), every=1, catch_up="all")
    with running_worker(shop.app):
        until(lambda: shop.ticks("often"))
        schedules.pause("often", note="the bank is closed")
        one = schedules.get("often")
        assert (one.paused, one.note, one.next_at) == (True, "the bank is closed", None)
        assert len(schedules.next("often")) == 5
        until(lambda: len(shop.ticks("often")) == one.fired)
        let_pass(2.1)
        assert len(shop.ticks("often")) == one.fired
        schedules.resume("often")
        assert schedules.get("often").note is None
        until(lambda: len(shop.ticks("often")) > one.fired)
    # What it did not fire while it was paused is not made up for.
    assert not consecutive(shop.ticks("often"))


def test_removed_it_is_gone(any_shop: Shop) -> None:
    schedules = any_shop.app.schedules
    schedules.add("report", any_shop.note.s(), cron=NEVER)
    schedules.remove("report")
    assert schedules.list() == []
    for method in (schedules.get, schedules.pause, schedules.resume, schedules.remove,
                   schedules.run_now, schedules.next):  # fmt: skip
        with pytest.raises(ScheduleError, match="there is no schedule 'report'"):
            method("report")


def test_an_unknown_name_is_told_with_the_nearest(shop: Shop) -> None:
    shop.app.schedules.add("report-42", shop.note.s(), cron=NEVER)
    with pytest.raises(ScheduleError, match="did you mean 'report-42'"):
        shop.app.schedules.pause("report-43")


def test_changing_it_keeps_what_it_fired(shop: Shop) -> None:
    schedules = shop.app.schedules
    schedules.add("often", shop.note.s(), every=1)
    with running_worker(shop.app):
        until(lambda: shop.ticks("often"))
    before = schedules.get("often")
    changed = schedules.add("often", shop.note.s(), cron=NEVER, overlap="skip")
    assert (changed.last_at, changed.last_id) == (before.last_at, before.last_id)
    assert (changed.fired, changed.rule, changed.overlap) == (before.fired, NEVER, "skip")
    assert changed.next_at == schedules.next("often", 1)[0]


def test_new_arguments_do_not_move_a_tick_that_was_missed(shop: Shop) -> None:
    schedules = shop.app.schedules
    schedules.add("daily", shop.note.s(1), cron="0 3 * * *")
    shop.rewind("daily", 86_400)
    missed = schedules.get("daily").next_at
    assert schedules.add("daily", shop.note.s(2), cron="0 3 * * *").next_at == missed
    other = schedules.add("daily", shop.note.s(2), cron="0 4 * * *")
    assert other.next_at is not None
    assert other.next_at > datetime.now(UTC)


def test_run_now_enqueues_its_call_paused_or_not(any_shop: Shop) -> None:
    schedules = any_shop.app.schedules
    schedules.add("report", any_shop.note.s(), cron=NEVER)
    schedules.pause("report")
    with running_worker(any_shop.app):
        result = schedules.run_now("report")
        assert result.get(timeout=5) == result.id
    one = schedules.get("report")
    assert result.id.startswith("report:now:1")
    assert (one.fired, one.last_id, one.last_at, one.paused) == (1, result.id, None, True)


def test_each_call_of_run_now_is_a_message_of_its_own(any_shop: Shop) -> None:
    schedules = any_shop.app.schedules
    schedules.add("report", any_shop.note.s(), cron=NEVER)
    results = [schedules.run_now("report") for _ in range(30)]
    assert len({one.id for one in results}) == schedules.get("report").fired == 30
    assert schedules.get("report").last_id == results[-1].id


def test_backfill_fires_what_was_not_fired_and_nothing_twice(shop: Shop) -> None:
    schedules = shop.app.schedules
    schedules.add("often", shop.note.s(), every=1)
    with running_worker(shop.app):
        until(lambda: len(shop.ticks("often")) >= 2)
        schedules.pause("often")
        until(lambda: len(shop.ticks("often")) == schedules.get("often").fired)
        fired = shop.ticks("often")
        end = datetime.fromisoformat(fired[-1])
        for _ in range(2):
            results = schedules.backfill("often", end - 9 * SECOND, end + timedelta(milliseconds=1))
            assert [one.get(timeout=5) for one in results] == [one.id for one in results]
        assert len(results) == 10
    assert sorted(shop.ticks("often")) == sorted({*shop.ticks("often")})
    assert len(shop.ticks("often")) == 10


@pytest.mark.parametrize("kind", [Interrupted, BrokerFull])
def test_a_span_that_is_filled_half_way_tells_what_was_accepted(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, kind: type[BrokerError]
) -> None:
    schedules, run = shop.app.schedules, shop.app.broker.run
    schedules.add("often", shop.note.s(), every=60)
    end = datetime.now(UTC)
    span = (end - timedelta(minutes=1_500), end)
    calls: list[Any] = []

    def fail_at_second(command: Any) -> Any:
        if command.script.name == "enqueue":
            calls.append(command)
            if len(calls) == 2:
                raise kind
        return run(command)

    monkeypatch.setattr(shop.app.broker, "run", fail_at_second)
    with pytest.raises(EnqueueUncertain if kind is Interrupted else kind) as raised:
        schedules.backfill("often", *span)
    every = schedules.backfill("often", *span)
    assert len(every) == 1_500
    assert raised.value.sent == every[:1_000]
    if isinstance(raised.value, EnqueueUncertain):
        assert raised.value.id == every[1_000].id
        assert "to backfill the span again is safe" in str(raised.value)


def test_every_method_has_an_awaited_twin(any_shop: Shop, awaited: Any) -> None:
    shop, schedules = any_shop, any_shop.app.schedules

    async def whole() -> None:
        made = await schedules.aadd("report", shop.note.s(), every=60)
        assert [made] == await schedules.alist() == [await schedules.aget("report")]
        assert len(await schedules.anext("report", 3)) == 3
        await schedules.apause("report", "a note")
        assert (await schedules.aget("report")).note == "a note"
        await schedules.aresume("report")
        result = await schedules.arun_now("report")
        assert await result.aget(5) == result.id
        now = datetime.now(UTC)
        results = await schedules.abackfill("report", now - timedelta(minutes=10), now)
        assert len(results) == 10
        await schedules.aremove("report")
        with pytest.raises(ScheduleError):
            await schedules.aget("report")

    with running_worker(shop.app):
        awaited(whole(), shop.app)


def test_a_name_on_two_queues_needs_its_queue(shop: Shop) -> None:
    schedules = shop.app.schedules
    schedules.add("report", shop.note.s(), cron=NEVER)
    on_mail = shop.note.options(queue="mail").s()
    with pytest.raises(ScheduleError, match="on the queue 'default': remove it first"):
        schedules.add("report", on_mail, cron=NEVER)
    schedules.remove("report@default")
    assert schedules.add("report", on_mail, cron=NEVER).queue == "mail"
    assert schedules.get("report") == schedules.get("report@mail")
    with pytest.raises(ScheduleError):
        schedules.get("report@default")


class Code:
    """An app as one version of its code makes it."""

    def __init__(self, name: str, url: str, module: str = "shop.jobs") -> None:
        self.app = TaskQ(name, url=url, secret="a secret that all these versions share", lease=0.5)
        self.ran: list[int] = []

        def job(version: int) -> None:
            self.ran.append(version)

        job.__module__ = module
        self.job = self.app.task(name="job")(job)


@pytest.mark.slow
def test_a_declaration_belongs_to_its_module(namespace: str, redis_url: str) -> None:
    """It goes when the module does not declare it any more, and none that did so lives."""
    first, second, other = (
        Code(namespace, redis_url),
        Code(namespace, redis_url),
        Code(namespace, redis_url, "shop.mail"),
    )
    schedules = other.app.schedules
    first.app.periodic(cron=NEVER, name="old", args=(1,))(first.job)
    with running_worker(first.app):
        until(schedules.list)
        schedules.add("at-run-time", other.job.s(1), cron=NEVER)
        with pytest.raises(ScheduleError, match=r"declared in shop\.jobs, by workers that live"):
            schedules.remove("old")
        with pytest.raises(ScheduleError, match=r"declared in shop\.jobs: change it there"):
            schedules.add("old", other.job.s(1), every=60)
        with running_worker(second.app):
            # It is vouched for by the first.
            let_pass(2.5)
            assert [one.name for one in schedules.list()] == ["at-run-time", "old"]
    with running_worker(other.app):
        # Nobody vouches for it now; but this worker does not know the module.
        let_pass(3)
        assert [one.name for one in schedules.list()] == ["at-run-time", "old"]
        with running_worker(second.app):
            until(lambda: [one.name for one in schedules.list()] == ["at-run-time"])
    first.app.close()
    second.app.close()
    other.app.close()


@pytest.mark.slow
def test_one_that_moves_to_another_queue_is_fired_on_both_until_the_old_one_is_removed(
    namespace: str, redis_url: str
) -> None:
    old, new = Code(namespace, redis_url), Code(namespace, redis_url)
    schedules = new.app.schedules
    old.app.periodic(every=1, args=(1,))(old.job)
    moved = new.app.task(name="job", queue="mail")(new.job.fn)
    new.app.periodic(every=1, args=(2,))(moved)

    def fired() -> dict[str, int]:
        return {one.queue: one.fired for one in schedules.list()}

    with running_worker(new.app):
        with running_worker(old.app):
            until(lambda: len(fired()) == 2, 60)
            before = fired()
            # Neither gives way: a worker that lives vouches for it.
            until(lambda: all(count > before[queue] for queue, count in fired().items()), 60)
        until(lambda: list(fired()) == ["mail"], 60)
        count = fired()["mail"]
        until(lambda: fired()["mail"] > count)
    assert {1, 2} <= {*old.ran, *new.ran}
    old.app.close()
    new.app.close()


def test_the_worker_that_started_last_says_what_a_schedule_is(
    namespace: str, redis_url: str
) -> None:
    old, new = Code(namespace, redis_url), Code(namespace, redis_url)
    old.app.periodic(every=1, args=(1,))(old.job)
    new.app.periodic(every=1, args=(2,))(new.job)
    with running_worker(old.app, threads=0):
        fired = until(lambda: [one for one in old.app.schedules.list() if one.fired])[0].fired
        with running_worker(new.app):
            until(lambda: 2 in new.ran)
            # The old one vouches for it, and does not bring its own back.
            let_pass(1.2)
            assert new.app.schedules.get("job").fired > fired
            assert set(new.ran[new.ran.index(2) :]) == {2}
    old.app.close()
    new.app.close()


def test_a_declared_schedule_that_redis_lost_is_brought_back(shop: Shop) -> None:
    shop.app.periodic(cron=NEVER)(shop.note)
    with running_worker(shop.app):
        until(shop.app.schedules.list)
        base = keys.base(shop.app.name, "default")
        shop.app.broker.call("DEL", *(base + key for key in ("schedules", "fires", "ticks")))
        until(shop.app.schedules.list)


def test_a_declaration_does_not_take_the_name_of_one_made_at_run_time(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    shop.app.schedules.add("note", shop.note.s("mine"), cron=NEVER)
    shop.app.periodic(every=1)(shop.note)
    with running_worker(shop.app):
        until(lambda: "one of that name was made at run time" in caplog.text)
        let_pass(1.2)
    assert shop.app.schedules.get("note").rule == NEVER
    assert shop.ran == []


def test_tasks_of_one_app_are_declared_there(shop: Shop, new_app: Any) -> None:
    other = new_app()
    with pytest.raises(ConfigError, match="is of the app"):
        other.periodic(every=1)(shop.note)
    with pytest.raises(ConfigError, match="is of the app"):
        other.schedules.add("note", shop.note.s(), every=1)


def test_two_declarations_of_one_name_are_refused(shop: Shop) -> None:
    shop.app.periodic(every=1)(shop.note)
    with pytest.raises(ConfigError, match="two schedules under one name 'note'"):
        shop.app.periodic(every=2)(shop.note)
    shop.app.periodic(every=2, name="other")(shop.note)
    with pytest.raises(ConfigError, match="of note and hold: give one of them another name="):
        shop.app.periodic(every=2, name="other")(shop.hold)


TOO_FAR = datetime.now(UTC) + timedelta(days=3700)
WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "neither": ({}, ConfigError, "cron= or every="),
    "both": ({"cron": NEVER, "every": 1}, ConfigError, "not both"),
    "no expression": ({"cron": "every day"}, ConfigError, "cron"),
    "never": ({"cron": "0 0 30 2 *"}, ConfigError, "day-of-month"),
    "no zone": ({"cron": NEVER, "timezone": "Europe/Berln"}, ConfigError, "Europe/Berlin"),
    "a zone for a period": ({"every": 1, "timezone": "UTC"}, ConfigError, "timezone"),
    "too often": ({"every": 0.5}, ConfigError, "1 second to ten years"),
    "too seldom": ({"every": timedelta(days=3700)}, ConfigError, "ten years"),
    "nan": ({"every": float("nan")}, ValueError, "finite"),
    "text": ({"every": "5"}, TypeError, "every must be seconds"),
    "a naive start": ({"every": 1, "start": datetime(2026, 1, 1)}, ValueError, "aware"),  # noqa: DTZ001
    "a start too far": ({"every": 1, "start": TOO_FAR}, ConfigError, "ten years"),
    "an end before the start": (
        {"every": 1, "start": TOO_FAR - 99 * SECOND * 86_400, "end": datetime.now(UTC)},
        ConfigError,
        "end must be after start",
    ),
    "too much jitter": ({"every": 5, "jitter": 6}, ConfigError, "jitter"),
    "no overlap": ({"every": 1, "overlap": "skp"}, ConfigError, "did you mean 'skip'"),
    "overlap of a kind": ({"every": 1, "overlap": 1}, TypeError, "overlap must be a str"),
    "no catch_up": ({"every": 1, "catch_up": "some"}, ConfigError, "none, last, all"),
    "a window for none": ({"every": 1, "catch_up": "none", "window": 60}, ConfigError, "window"),
    "unknown": ({"evry": 1}, TypeError, "did you mean 'every'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_work_is_told_at_the_call(shop: Shop, case: str) -> None:
    options, kind, text = WRONG[case]
    with pytest.raises(kind, match=text):
        shop.app.schedules.add("report", shop.note.s(), **options)
    with pytest.raises(kind, match=text):
        shop.app.periodic(**options)(shop.note)
    assert shop.app.schedules.list() == []
    assert shop.app.periodic_calls == {}


def test_a_call_that_cannot_be_made_periodically_is_told(shop: Shop) -> None:
    add, note = shop.app.schedules.add, shop.note
    for options in ({"id": "x"}, {"countdown": 5}, {"eta": datetime.now(UTC)}):
        with pytest.raises(ConfigError, match="does not go with a schedule"):
            add("report", note.options(**options).s(), every=1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expires of a schedule's call"):
        add("report", note.options(expires=datetime.now(UTC) + SECOND).s(), every=1)
    with pytest.raises(ConfigError, match="deadline of a schedule's call"):
        add("report", note.options(deadline=datetime.now(UTC) + SECOND).s(), every=1)
    with pytest.raises(ConfigError, match="may have 65,536"):
        add("report", note.s("x" * 70_000), every=1)
    with pytest.raises(TypeError, match="a schedule is of a call"):
        add("report", note, every=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"stands above @app\.task"):
        shop.app.periodic(every=1)(lambda: None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="missing a required argument"):
        shop.app.periodic(every=1)(shop.app.task(name="needs")(lambda x: x))


@pytest.mark.parametrize("name", ["", "a b", "x" * 101, "a:b", "é", 5])
def test_a_name_is_checked(shop: Shop, name: Any) -> None:
    with pytest.raises((ConfigError, TypeError), match="schedule name"):
        shop.app.schedules.add(name, shop.note.s(), every=1)
    with pytest.raises((ConfigError, TypeError), match="schedule name"):
        shop.app.schedules.pause(name)


def test_spans_and_counts_are_checked(shop: Shop) -> None:
    schedules = shop.app.schedules
    schedules.add("often", shop.note.s(), every=1)
    now = datetime.now(UTC)
    for start, end, text in (
        (now, now, "must be after start"),
        (now, now + timedelta(hours=1), "in the future"),
        (now - timedelta(days=1), now, "more than 10,000 ticks"),
        (datetime(2026, 1, 1), now, "aware"),  # noqa: DTZ001
    ):
        with pytest.raises(ValueError, match=text):
            schedules.backfill("often", start, end)
    for count, kind in ((0, ValueError), (10**6, ValueError), ("5", TypeError), (True, TypeError)):
        with pytest.raises(kind, match="n must be"):
            schedules.next("often", count)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="501 characters"):
        schedules.pause("often", "x" * 501)
    with pytest.raises(TypeError, match="note must be a str"):
        schedules.pause("often", 5)  # type: ignore[arg-type]


def test_a_schedule_ends(shop: Shop) -> None:
    now = clock.instant(clock.now_ms())
    schedules = shop.app.schedules
    schedules.add("short", shop.note.s(), every=1, start=now + SECOND, end=now + 2.5 * SECOND)
    with running_worker(shop.app):
        until(lambda: schedules.get("short").next_at is None)
        until(lambda: len(shop.ticks("short")) == 2)
    one: Schedule = schedules.get("short")
    assert (one.fired, one.paused, one.obstacle) == (2, False, None)
    assert schedules.next("short") == []


def test_a_name_may_be_that_of_an_enum(shop: Shop) -> None:
    """Jitter goes by the name: all who compute when a tick is due must go by the same."""
    schedules, ticks = shop.app.schedules, keys.base(shop.app.name, "default") + "ticks"
    dues = []
    for name in (Name.NIGHTLY, "nightly"):
        schedules.add(name, shop.note.s(), every=86_400, jitter=40_000)
        dues.append(shop.app.broker.call("ZSCORE", ticks, "nightly"))
        schedules.remove("nightly")
    assert dues[0] == dues[1]
