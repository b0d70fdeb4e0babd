"""`durability="replicas:2"`: a call returns when so many replicas have the message, or says so."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from taskq import (
    BrokerUnavailable,
    ConfigError,
    DeadLetterError,
    DuplicateMessage,
    EnqueueUncertain,
    State,
    TaskQ,
)
from taskq.broker import commands, keys
from taskq.broker.line import MOST_LASTING, MOST_LINES, MOST_STREAMS
from taskq.model import clock
from taskq.model.message import Envelope, Message, encode, new_id
from taskq.model.signing import Domain
from taskq.testing import running_worker
from tests.eventually import let_pass, until
from tests.features.conftest import SECRET, Awaited
from tests.fleets import Cluster, Followed, SentinelSet, calls_of
from tests.servers import Server

pytestmark = pytest.mark.slow

SHORT, PATIENT = 0.5, 60


class Place:
    """A queue's master and replicas, whoever watches over them."""

    def __init__(self, fleet: Any, app: TaskQ) -> None:
        self.fleet, self.base = fleet, keys.base(app.name, "default")

    @property
    def master(self) -> Server:
        if isinstance(self.fleet, Cluster):
            return self.fleet.owner(self.base)
        master: Server = (
            self.fleet.master if isinstance(self.fleet, Followed) else self.fleet.primary
        )
        return master

    @property
    def replicas(self) -> Sequence[Server]:
        if isinstance(self.fleet, Cluster):
            return [one for one in self.fleet.nodes if self.fleet.master_of(one) is self.master]
        others: Sequence[Server] = (
            self.fleet.replicas
            if isinstance(self.fleet, Followed)
            else [one for one in self.fleet.servers if one is not self.master]
        )
        return others

    def lack(self, ids: Iterable[str]) -> list[str]:
        """Return those of some messages that a replica has not."""
        lacking: list[str] = []
        for replica in self.replicas:
            with replica.client() as client:
                if isinstance(self.fleet, Cluster):
                    client.execute_command("READONLY")
                lacking += [id for id in ids if not client.exists(f"{self.base}m:{id}")]
        return lacking

    @contextlib.contextmanager
    def frozen(self, count: int | None = None) -> Iterator[None]:
        """Stop so many replicas, or all; their connections stay open."""
        some = list(self.replicas)[:count]
        for one in some:
            one.pause()
        try:
            yield
        finally:
            for one in some:
                one.resume()

    def queued(self) -> int:
        with self.master.client() as client:
            return int(client.llen(f"{self.base}ready:add"))


FLEETS: dict[str, Callable[[], Any]] = {
    "alone": Followed,
    "sentinels": lambda: SentinelSet(down_after_ms=60_000),
    "cluster": lambda: Cluster(replicas=1),
}


@pytest.fixture(scope="module", params=list(FLEETS))
def fleet(request: pytest.FixtureRequest) -> Iterator[Any]:
    with FLEETS[request.param]() as running:
        yield running


@pytest.fixture
def followed() -> Iterator[Followed]:
    with Followed() as running:
        yield running


def new_app(url: str, name: str, **settings: Any) -> TaskQ:
    app = TaskQ(name, url=url, secret=SECRET, **settings)

    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="other")
    def other() -> None: ...

    @app.task(name="fail")
    def fail() -> None:
        raise ValueError

    return app


def add(app: TaskQ, **options: Any) -> Any:
    return app.tasks["add"].options(**options) if options else app.tasks["add"]


def uncertain(call: Callable[[], Any], count: str) -> EnqueueUncertain:
    with pytest.raises(EnqueueUncertain, match=f"stands on the master; .*{count} replicas") as told:
        call()
    assert repr(told.value.id) in str(told.value)
    return told.value


def test_too_few_replicas_are_told_and_the_message_is_there_once(
    fleet: Any, namespace: str, awaited: Awaited
) -> None:
    asked: dict[str, Any] = {"durability": "replicas:1"}
    with (
        new_app(fleet.url, namespace, enqueue_deadline=SHORT, **asked) as app,
        new_app(fleet.url, namespace, enqueue_deadline=PATIENT, **asked) as patient,
    ):
        place, task = Place(fleet, app), add(app)
        add(patient).delay(1, 1)
        awaited(add(patient).adelay(1, 1), patient)
        with place.frozen():
            error = uncertain(lambda: task.delay(1, 2), "0 of 1")
            uncertain(lambda: awaited(task.adelay(1, 2), app), "0 of 1")
            uncertain(lambda: add(app, countdown=60).delay(1, 2), "0 of 1")
            uncertain(lambda: awaited(add(app, countdown=60).adelay(1, 2), app), "0 of 1")
            assert place.queued() == 4
            # What is known already writes nothing: that proves nothing either.
            again = add(app, id=error.id)
            uncertain(lambda: again.delay(1, 2), "0 of 1")
            uncertain(lambda: awaited(again.adelay(1, 2), app), "0 of 1")
            assert add(app, durability="replicas:0").delay(1, 3)
        assert add(patient, id=error.id).delay(1, 2).id == error.id
        assert place.queued() == 5


def test_replicas_have_what_a_call_returned_for(fleet: Any, namespace: str) -> None:
    with new_app(fleet.url, namespace, enqueue_deadline=PATIENT) as app:
        place = Place(fleet, app)
        task = add(app, durability=f"replicas:{len(place.replicas)}")
        ids = [task.delay(1, 2).wire_id, *(one.wire_id for one in task.starmap([(1, 2)] * 3))]
        assert not place.lack(ids)


Verbs = dict[str, Callable[[], Any]]


def letters(app: TaskQ, count: int) -> list[str]:
    """Let so many messages die; return where their letters are."""
    with running_worker(app):
        some = app.tasks["fail"].starmap([()] * count)
        for one in some:
            assert isinstance(one.exception(timeout=30), ValueError)
    return [one.id for one in some]


def verbs_beside(app: TaskQ, dead: Sequence[str], awaited: Awaited, **options: Any) -> Verbs:
    """Return what else puts messages into a queue, each and its twin once."""
    schedules, now = app.schedules, datetime.now(UTC)
    schedules.add("daily", add(app, **options).s(1, 2), cron="0 3 * * *")
    days = [now - timedelta(days=count) for count in (20, 10, 0)]
    return {
        "retry": lambda: app.dead.retry(dead[0]),
        "aretry": lambda: awaited(app.dead.aretry(dead[1]), app),
        "run_now": lambda: schedules.run_now("daily"),
        "arun_now": lambda: awaited(schedules.arun_now("daily"), app),
        "backfill": lambda: schedules.backfill("daily", *days[:2]),
        "abackfill": lambda: awaited(schedules.abackfill("daily", *days[1:]), app),
    }


def test_replicas_have_what_letters_and_schedules_send(
    fleet: Any, namespace: str, awaited: Awaited
) -> None:
    with new_app(fleet.url, namespace, enqueue_deadline=PATIENT) as app:
        place, dead = Place(fleet, app), letters(app, 2)
    asked = f"replicas:{len(place.replicas)}"
    with new_app(fleet.url, namespace, enqueue_deadline=PATIENT, durability=asked) as app:
        for verb in verbs_beside(app, dead, awaited).values():
            done = verb()
            results = done if isinstance(done, list) else [done]
            assert not place.lack(one.wire_id for one in results)


def test_letters_and_schedules_tell_that_too_few_replicas_have_what_they_send(
    fleet: Any, namespace: str, awaited: Awaited
) -> None:
    with new_app(fleet.url, namespace, enqueue_deadline=PATIENT) as patient:
        place, dead = Place(fleet, patient), letters(patient, 2)
        with new_app(fleet.url, namespace, enqueue_deadline=2, durability="replicas:1") as app:
            verbs = verbs_beside(app, dead, awaited)
            with place.frozen():
                for name, verb in verbs.items():
                    error = uncertain(verb, "0 of 1")
                    assert patient.result(error.id).status is State.QUEUED, name
                    if "retry" not in name:
                        continue
                    # What was done on the master is found done, and is not done again.
                    with pytest.raises(DeadLetterError):
                        verb()
                span = verbs["backfill"]
                uncertain(span, "0 of 1")
            assert [one.status for one in span()] == [State.QUEUED] * 10
        assert place.queued() == 2 + 10 + 10


def test_what_is_known_already_of_a_span_is_waited_for_as_well(
    followed: Followed, namespace: str, awaited: Awaited
) -> None:
    with new_app(followed.url, namespace, enqueue_deadline=2, durability="replicas:1") as app:
        place, schedules = Place(followed, app), app.schedules
        schedules.add("often", add(app).s(1, 2), every=60)
        end = datetime.now(UTC)
        start = end - timedelta(minutes=1_500)
        first = schedules.backfill("often", start, start + timedelta(minutes=1_000))
        with place.frozen():
            for fill in (
                lambda: schedules.backfill("often", start, end),
                lambda: awaited(schedules.abackfill("often", start, end), app),
            ):
                error = uncertain(fill, "0 of 1")
                assert error.sent == []
                assert error.id == first[0].id
            assert place.queued() == 1_000
        assert len(schedules.backfill("often", start, end)) == place.queued() == 1_500


def test_what_a_task_asks_for_counts_for_its_letters_and_schedules(
    redis_url: str, namespace: str
) -> None:
    with new_app(redis_url, namespace, enqueue_deadline=PATIENT, durability="replicas:1") as app:

        @app.task(name="light", durability="replicas:0")
        def light() -> None: ...

        app.schedules.add("daily", light.s(), cron="0 3 * * *")
        assert app.schedules.run_now("daily").status is State.QUEUED


@pytest.mark.parametrize("kind", ["blocking", "awaited"])
def test_what_did_nothing_is_not_waited_for(
    redis_url: str, namespace: str, awaited: Awaited, kind: str
) -> None:
    with new_app(redis_url, namespace, enqueue_deadline=PATIENT) as app:
        base = keys.base(app.name, "default")
        seal = app.seal(Domain.MESSAGE, "default")
        raw = encode(Message(new_id(0), 0, Envelope("add", 0, "json", b"[[],{}]")), seal)
        one = commands.revive(base, b"0" * 32, b"1", "add", raw).lasting(1)
        if kind == "blocking":
            assert app.broker.run(one) == "no"
        else:

            async def run() -> str:
                return await app.abroker().run(one)

            assert awaited(run(), app) == "no"


def test_many_at_once_stop_at_the_page_that_too_few_have(
    fleet: Any, namespace: str, awaited: Awaited
) -> None:
    with (
        new_app(fleet.url, namespace, enqueue_deadline=SHORT) as app,
        new_app(fleet.url, namespace, enqueue_deadline=PATIENT) as patient,
    ):
        place = Place(fleet, app)
        calls = [add(app, durability="replicas:1").s(x, 1) for x in range(1_500)]
        with place.frozen():
            for send in (app.enqueue_many, lambda some: awaited(app.aenqueue_many(some), app)):
                error = uncertain(lambda send=send: send(calls), "0 of 1")
                assert (len(error.sent), len(error.unsent)) == (0, 1_500)
            assert len(app.enqueue_many(add(app).s(x, 1) for x in range(1_500))) == 1_500
        again = [
            add(patient, id=one.options.id, durability="replicas:1").s(*one.args)
            for one in error.unsent
        ]
        assert len(patient.enqueue_many(again)) == 1_500
        assert place.queued() == 2 * 1_000 + 1_500 + 500


def test_who_asks_for_more_makes_nobody_else_wait(followed: Followed, namespace: str) -> None:
    """Those sent meanwhile share calls with those alone who ask for as many."""
    with (
        new_app(followed.url, namespace, enqueue_deadline=PATIENT) as app,
        ThreadPoolExecutor(20) as pool,
    ):
        place, modest, strict = Place(followed, app), "replicas:1", "replicas:2"
        with place.frozen(1):
            waiting = [pool.submit(add(app, durability=strict).delay, 1, x) for x in range(8)]
            until(lambda: place.queued() >= 2)
            served: list[Future[Any]] = [
                pool.submit(add(app, durability=asked).delay, 1, 2) for asked in (None, modest) * 4
            ]
            assert len([one.result(30) for one in served]) == 8
            assert not any(one.done() for one in waiting)
        assert len([one.result(30) for one in waiting]) == 8
        assert place.queued() == 16


def waits(server: Server) -> int:
    with server.client() as client:
        return _waits(client)


@pytest.mark.parametrize("kind", ["later", "many"])
def test_who_asks_for_none_finds_a_line_however_many_wait(
    fleet: Any, namespace: str, kind: str
) -> None:
    with (
        new_app(fleet.url, namespace, enqueue_deadline=PATIENT) as app,
        ThreadPoolExecutor(MOST_LINES + 5) as pool,
    ):
        place, asked = Place(fleet, app), add(app, durability="replicas:1", countdown=60)
        sends = {"later": lambda: asked.delay(1, 2), "many": lambda: asked.starmap([(1, 2)] * 2)}
        # With a cluster who sends many keeps his line from page to page.
        held = kind == "many" and isinstance(fleet, Cluster)
        most = MOST_STREAMS if held else MOST_LASTING
        with place.frozen():
            waiting: list[Future[Any]] = [pool.submit(sends[kind]) for _ in range(MOST_LINES + 4)]
            until(lambda: waits(place.master) >= most)
            let_pass(0.5)
            assert pool.submit(add(app).delay, 1, 2).result(20)
            assert waits(place.master) == most
            assert not any(one.done() for one in waiting)
        for one in waiting:
            assert one.result(30)


def test_nor_is_a_coroutine_kept_from_one(followed: Followed, namespace: str) -> None:
    async def story(app: TaskQ) -> None:
        asked = add(app, durability="replicas:1", countdown=60)
        sends = [
            asked.adelay(1, 2) if n % 2 else app.aenqueue_many([asked.s(1, 2)]) for n in range(20)
        ]
        with Place(followed, app).frozen():
            waiting = [asyncio.create_task(one) for one in sends]
            await asyncio.to_thread(until, lambda: waits(followed.master) >= MOST_LASTING)
            await asyncio.to_thread(let_pass, 0.5)
            await asyncio.wait_for(add(app).adelay(1, 2), 20)
            assert waits(followed.master) == MOST_LASTING
            assert not any(one.done() for one in waiting)
        await asyncio.wait_for(asyncio.gather(*waiting), 30)
        await app.aclose()

    asyncio.run(story(new_app(followed.url, namespace, enqueue_deadline=PATIENT)))


def test_a_line_that_breaks_while_replicas_are_waited_for_is_no_excuse(
    followed: Followed, namespace: str
) -> None:
    with (
        new_app(followed.url, namespace, enqueue_deadline=PATIENT) as app,
        ThreadPoolExecutor(1) as pool,
    ):
        place = Place(followed, app)
        with place.frozen():
            waiting = pool.submit(add(app, durability="replicas:1").delay, 1, 2)
            with followed.master.client() as client:
                for _ in range(3):
                    until(lambda: _waits(client))
                    client.client_kill_filter(_type="normal", skipme=True)
                    until(lambda: _waits(client), 20)
            assert not waiting.done()
        waiting.result(30)
        assert place.queued() == 1


def _waits(client: Any) -> int:
    return sum(one["cmd"] == "wait" for one in client.client_list())


def test_a_master_that_is_demoted_while_replicas_are_waited_for_proves_nothing(
    followed: Followed, namespace: str
) -> None:
    with new_app(followed.url, namespace, enqueue_deadline=6) as app, ThreadPoolExecutor(1) as pool:
        place = Place(followed, app)
        with place.frozen():
            waiting = pool.submit(add(app, durability="replicas:1").delay, 1, 2)
            with followed.master.client() as client:
                until(lambda: _waits(client))
                client.replicaof("127.0.0.1", str(followed.replicas[0].port))
            assert isinstance(waiting.exception(30), EnqueueUncertain)
        with followed.master.client() as client:
            client.replicaof("NO", "ONE")


def test_one_redis_without_replicas_says_so_at_the_call(redis_url: str, namespace: str) -> None:
    with new_app(redis_url, namespace, durability="replicas:1", enqueue_deadline=SHORT) as app:
        with pytest.raises(EnqueueUncertain, match="stands on the master"):
            add(app).delay(1, 2)
        with pytest.raises(EnqueueUncertain):
            app.enqueue_many([add(app).s(1, 2)])


def test_where_there_can_be_no_replicas_nothing_is_sent(namespace: str, awaited: Awaited) -> None:
    with new_app(f"memory://{namespace}", namespace, enqueue_deadline=PATIENT) as app:
        dead, asked = letters(app, 2), add(app, durability="replicas:1")
        sends: Verbs = {
            "delay": lambda: asked.delay(1, 2),
            "adelay": lambda: awaited(asked.adelay(1, 2), app),
            "later": lambda: add(app, durability="replicas:1", countdown=9).delay(1, 2),
            "many": lambda: app.enqueue_many([add(app).s(1, 2), asked.s(1, 2)]),
        }
        others = f"memory://{namespace}"
        with new_app(others, namespace, durability="replicas:1") as strict:
            for send in (*sends.values(), *verbs_beside(strict, dead, awaited).values()):
                with pytest.raises(ConfigError, match="memory:// has no replicas"):
                    send()
        assert app.broker.call("LLEN", keys.ready(namespace, "default", "add")) == 0
        assert len(app.dead.list()) == 2


def test_each_is_told_how_many_replicas_have_it_when_its_own_time_is_up(
    redis_url: str, namespace: str, awaited: Awaited
) -> None:
    seconds = 3.0

    def told(call: Callable[[], Any]) -> float:
        began = clock.monotonic()
        uncertain(call, "0 of 1")
        return clock.monotonic() - began

    async def atold() -> float:
        began = clock.monotonic()
        with pytest.raises(EnqueueUncertain, match="0 of 1 replicas"):
            await add(app).adelay(1, 2)
        return clock.monotonic() - began

    async def at_two_times() -> list[float]:
        first = [asyncio.create_task(atold()) for _ in range(4)]
        await asyncio.to_thread(let_pass, 1.0)
        return await asyncio.gather(*first, atold())

    with (
        new_app(redis_url, namespace, durability="replicas:1", enqueue_deadline=seconds) as app,
        ThreadPoolExecutor(8) as pool,
    ):
        first = [pool.submit(told, lambda: add(app).delay(1, 2)) for _ in range(4)]
        let_pass(1.0)
        last = pool.submit(told, lambda: add(app).delay(1, 2))
        took = [one.result(60) for one in (*first, last)] + awaited(at_two_times(), app)
    assert min(took) > seconds - 0.5
    assert max(took) < 2 * seconds - 1


def test_an_id_of_another_task_is_a_duplicate_whatever_replicas_say(
    redis_url: str, namespace: str
) -> None:
    with new_app(redis_url, namespace, enqueue_deadline=SHORT) as app:
        app.tasks["other"].options(id="one").delay()
        with pytest.raises(DuplicateMessage):
            add(app, id="one", durability="replicas:1").delay(1, 2)


def test_a_setting_that_cannot_be_meant_is_told_at_the_first_call(redis_url: str) -> None:
    app = TaskQ("shop", url=redis_url, secret=SECRET, durability="many")
    with pytest.raises(ConfigError, match=r"durability must be 'replicas:<count>'"):
        app.send_task("add", (1, 2))


def test_a_master_that_may_not_write_alone_is_waited_for(namespace: str) -> None:
    """NOREPLICAS."""
    options: dict[str, str | int] = {"min-replicas-to-write": 1, "repl-diskless-sync-delay": 0}
    with Server(**options) as master, Server() as replica:
        with new_app(master.url, namespace, enqueue_deadline=SHORT) as app:
            with pytest.raises(BrokerUnavailable, match="NOREPLICAS") as told:
                add(app).delay(1, 2)
            assert not isinstance(told.value, EnqueueUncertain)
        with (
            new_app(master.url, namespace, enqueue_deadline=PATIENT) as app,
            ThreadPoolExecutor(1) as pool,
        ):
            sent = pool.submit(add(app).delay, 1, 2)
            began = calls_of(master)
            until(lambda: calls_of(master) > began + 2)
            with replica.client() as client:
                client.replicaof("127.0.0.1", str(master.port))
            sent.result(30)
