"""A queue with several partitions: one to those who use it, several to those who serve it."""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import taskq
from taskq import (
    BrokerError,
    BrokerUnavailable,
    Cancellation,
    Cancelled,
    ConfigError,
    EnqueueUncertain,
    Interrupted,
    Queue,
    Rescheduling,
    ResultTimeout,
    State,
    TaskQ,
)
from taskq.broker import keys
from taskq.client import watch
from taskq.client.unread import SHORT_SECONDS, Unread
from taskq.model import queues
from taskq.testing import running_worker
from tests.eventually import until
from tests.features.conftest import SECRET
from tests.fleets import Cluster

COUNT = 4


def declare(app: TaskQ) -> Any:
    """Give an app some tasks on its queue."""
    works = threading.Event()

    @app.task(name="square", queue="mail")
    def square(x: int) -> int:
        return x * x

    @app.task(name="where", queue="mail", bind=True)
    def where(ctx: Any) -> list[str]:
        return [ctx.id, ctx.queue]

    @app.task(name="twice", queue="mail", bind=True, max_retries=1, default_retry_delay=0.01)
    def twice(ctx: Any) -> int:
        if ctx.attempt == 1:
            raise taskq.Retry
        return int(ctx.attempt)

    @app.task(name="break", queue="mail")
    def breaks() -> str:
        if not works.is_set():
            msg = "not yet"
            raise ValueError(msg)
        return "whole"

    @app.task(name="chain", queue="mail")
    async def chain(x: int) -> list[Any]:
        sent = [await square.adelay(number) for number in range(x)]
        return [[one.id for one in sent], await taskq.agather(sent)]

    return SimpleNamespace(
        app=app, square=square, where=where, twice=twice, breaks=breaks, chain=chain, works=works
    )


@pytest.fixture(scope="module")
def shop(new_app: Any) -> Iterator[Any]:
    found = declare(new_app(queues=[Queue("mail", partitions=COUNT), "other"]))
    with running_worker(found.app):
        yield found


@pytest.fixture
def idle(new_app: Any) -> Any:
    """The same without a worker."""
    return declare(new_app(queues=[Queue("mail", partitions=COUNT)]))


def twin_of(app: TaskQ, *declared: Queue | str, **settings: Any) -> TaskQ:
    """Return another program's view of the same app."""
    secret = ",".join(app.config.secret)
    return TaskQ(app.name, url=app.config.url, secret=secret, queues=declared, **settings)


def waiting(app: TaskQ) -> int:
    """Return how many calls of `square` are queued, in all partitions."""
    places = app.partitions.known("mail")
    return sum(app.broker.call("LLEN", keys.ready(app.name, one, "square")) for one in places)


def partition_of(address: str) -> int:
    return int(address.partition("@mail")[2].removeprefix("/") or 0)


def test_that_there_is_no_worker_is_told_once_for_all_partitions(
    idle: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch, "PATIENCE_SECONDS", 0.1)
    results = idle.square.map(range(2 * COUNT))
    with caplog.at_level(logging.WARNING), pytest.raises(ResultTimeout):
        taskq.gather(results, timeout=3)
    (text,) = (record.getMessage() for record in caplog.records)
    assert "no live worker serves the queue 'mail'" in text


class TestChoice:
    def test_calls_go_round_the_partitions(self, idle: Any) -> None:
        sent = [idle.square.delay(1) for _ in range(3 * COUNT)]
        assert Counter(partition_of(one.id) for one in sent) == dict.fromkeys(range(COUNT), 3)

    def test_many_calls_are_spread_evenly(self, idle: Any) -> None:
        sent = idle.square.map(range(10 * COUNT))
        assert Counter(partition_of(one.id) for one in sent) == dict.fromkeys(range(COUNT), 10)

    def test_calls_with_options_of_their_own_go_round_as_well(self, idle: Any) -> None:
        sent = [idle.square.options(countdown=60 + n).delay(1) for n in range(3 * COUNT)]
        assert Counter(partition_of(one.id) for one in sent) == dict.fromkeys(range(COUNT), 3)

    def test_a_key_leads_to_one_partition(self, idle: Any) -> None:
        keyed = idle.square.options(partition_key="customer-42")
        sent = [keyed.delay(1), *keyed.map(range(3)), idle.app.send_task(
            "square", (1,), queue="mail", partition_key="customer-42"
        )]  # fmt: skip
        assert {partition_of(one.id) for one in sent} == {queues.of_key("customer-42", COUNT)}

    def test_calls_with_one_key_start_in_order(self, new_app: Any) -> None:
        app = new_app(queues=[Queue("mail", partitions=COUNT)])
        seen: list[int] = []
        note = app.task(name="note", queue="mail")(seen.append)
        sent = [note.options(partition_key="k").delay(number) for number in range(50)]
        with running_worker(app, threads=1):
            taskq.gather(sent, timeout=10)
        assert seen == list(range(50))

    def test_an_id_says_its_partition_again_and_again(self, idle: Any) -> None:
        # So many that one of the partitions is left out by chance once in a billion.
        named = [idle.square.options(id=f"order-{n}").delay(1) for n in range(80)]
        assert len({partition_of(one.id) for one in named}) == COUNT
        again = [idle.square.options(id=f"order-{n}").delay(1) for n in range(80)]
        assert [one.id for one in again] == [one.id for one in named]

    @pytest.mark.parametrize("options", [{}, {"partition_key": "k"}])
    def test_what_is_sent_again_under_its_id_is_not_there_twice(
        self, idle: Any, options: Any
    ) -> None:
        """Whatever chose the partition of the first one."""
        for _ in range(8):
            first = idle.square.options(**options).delay(1)
            again = idle.square.options(id=first.wire_id).delay(1)
            assert again == first
        assert waiting(idle.app) == 8

    def test_what_an_error_gives_back_unsent_goes_where_it_was_sent_first(
        self, idle: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        idle.square.delay(1)
        real = idle.app.broker.run_each

        def deaf(calls: Any) -> Iterator[str]:
            """Send all, and lose the replies."""
            yield from (reply for reply in real(calls) if not reply)
            told = "the line was cut"
            raise Interrupted(told)

        monkeypatch.setattr(idle.app.broker, "run_each", deaf)
        calls = [idle.square.options(partition_key=f"k{n}").s(n) for n in range(20)]
        with pytest.raises(EnqueueUncertain) as raised:
            idle.app.enqueue_many(calls)
        monkeypatch.undo()
        assert raised.value.sent == []
        idle.app.enqueue_many(raised.value.unsent)
        assert waiting(idle.app) == 21

    def test_that_nothing_was_sent_is_not_uncertain(
        self, idle: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def cut(_: str) -> None:
            told = "the line was cut"
            raise Interrupted(told)

        monkeypatch.setattr(idle.app.partitions, "open", cut)
        with pytest.raises(BrokerUnavailable, match="cut") as raised:
            idle.square.map(range(3))
        assert not isinstance(raised.value, EnqueueUncertain)
        assert len(raised.value.unsent) == 3

    def test_an_id_and_a_key_exclude_each_other(self, idle: Any) -> None:
        with pytest.raises(ConfigError, match="id= says the partition as well"):
            idle.square.options(id="a", partition_key="b")
        with pytest.raises(ConfigError, match="id= says the partition as well"):
            idle.square.options(id="a").options(partition_key="b")

    @pytest.mark.parametrize("key", [True, 1.5, ["a"]])
    def test_a_key_that_is_none_is_told_at_the_call(self, idle: Any, key: Any) -> None:
        with pytest.raises(TypeError, match="partition_key must be a str or an int"):
            idle.square.options(partition_key=key)

    def test_where_there_is_one_partition_a_key_changes_nothing(self, new_app: Any) -> None:
        app = new_app()
        sent = app.send_task("square", (1,), partition_key="k")
        assert "@" not in sent.id


@pytest.mark.slow
class TestOnACluster:
    def test_partitions_are_on_all_nodes(self, cluster: Cluster) -> None:
        name = f"t{secrets.token_hex(6)}"
        places = keys.places("mail", 8)
        assert len({cluster.owner(keys.base(name, place)).port for place in places}) == 3

    def test_of_many_calls_only_those_are_unsent_whose_partition_refuses(
        self, cluster: Cluster
    ) -> None:
        queue = Queue("mail", partitions=COUNT)
        app = TaskQ(f"t{secrets.token_hex(6)}", url=cluster.url, secret=SECRET, queues=[queue])
        shop = declare(app)
        shop.square.delay(0)
        broken = app.partitions.places("mail")[2]
        app.broker.call("DEL", keys.ready(app.name, broken, "square"))
        app.broker.call("SET", keys.ready(app.name, broken, "square"), "no list")
        with pytest.raises(BrokerError, match="WRONGTYPE") as raised:
            shop.square.map(range(10 * COUNT))
        sent, unsent = raised.value.sent, raised.value.unsent
        assert {one.place for one in sent} == set(app.partitions.places("mail")) - {broken}
        assert (len(sent), len(unsent)) == (10 * (COUNT - 1), 10)
        app.broker.call("DEL", keys.ready(app.name, broken, "square"))
        again = app.enqueue_many(unsent)
        assert {one.place for one in again} == {broken}
        with running_worker(app):
            assert sum(taskq.gather([*sent, *again], timeout=20)) == sum(
                number**2 for number in range(10 * COUNT)
            )
        app.close()

    @pytest.mark.parametrize("awaits", [False, True])
    def test_that_a_call_may_have_been_accepted_is_told_whatever_befell_another_first(
        self, cluster: Cluster, awaited: Any, *, awaits: bool
    ) -> None:
        queue, name = Queue("mail", partitions=COUNT), f"t{secrets.token_hex(6)}"
        app = TaskQ(name, url=cluster.url, secret=SECRET, queues=[queue], enqueue_deadline=2)
        shop = declare(app)
        shop.square.map(range(COUNT))
        nodes = [cluster.owner(keys.base(name, one)) for one in app.partitions.places("mail")]
        refuses, stands = 0, next(n for n, node in enumerate(nodes) if node is not nodes[0])
        app.broker.call("DEL", keys.ready(name, "mail", "square"))
        app.broker.call("SET", keys.ready(name, "mail", "square"), "no list")
        by_partition = {queues.of_key(f"k{n}", COUNT): f"k{n}" for n in range(100)}
        calls = [
            shop.square.options(partition_key=by_partition[number]).s(number)
            for number in (refuses, stands)
        ]
        with nodes[stands].client() as slow:
            slow.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
            try:
                with pytest.raises(EnqueueUncertain) as raised:
                    awaited(app.aenqueue_many(calls), app) if awaits else app.enqueue_many(calls)
            finally:
                slow.execute_command("CLIENT", "UNPAUSE")
        assert [one.args for one in raised.value.unsent] == [(refuses,), (stands,)]
        assert raised.value.id == raised.value.unsent[1].options.id
        app.close()


@pytest.mark.slow
class TestOnANodeThatIsAway:
    @pytest.mark.parametrize("awaits", [False, True])
    @pytest.mark.parametrize(("falls", "rises"), [("kill", "start"), ("pause", "resume")])
    def test_outcomes_hold_back_none_of_the_other_nodes(
        self, monkeypatch: pytest.MonkeyPatch, falls: str, rises: str, *, awaits: bool
    ) -> None:
        monkeypatch.setattr(watch, "REREAD_SECONDS", 0.2)
        name, queue = f"t{secrets.token_hex(6)}", Queue("mail", partitions=12)
        with Cluster() as cluster:
            app = TaskQ(name, url=cluster.url, secret=SECRET, queues=[queue])
            sent = declare(app).square.map(range(24))
            nodes = {one.place: cluster.owner(keys.base(name, one.place)) for one in sent}
            away = max(nodes.values(), key=list(nodes.values()).count)
            there = [one for one in sent if nodes[one.place] is not away]
            getattr(away, falls)()
            try:
                for one in there[::2]:
                    one.cancel()
                told = Told(twin_of(app, queue), sent, awaits=awaits)
                until(lambda: len(told.ids) == len(there[::2]), 30)
                for one in there[1::2]:
                    one.cancel()
                    until(functools.partial(told.has, one), 30)
            finally:
                getattr(away, rises)()
            cluster.settle()
            for one in sent:
                until(one.cancel, 60)
            told.thread.join(60)
            assert sorted(told.ids) == sorted(one.id for one in sent)
            app.close()

    @pytest.mark.parametrize("awaits", [False, True])
    def test_a_timeout_holds(self, *, awaits: bool) -> None:
        name, queue = f"t{secrets.token_hex(6)}", Queue("mail", partitions=60)
        with Cluster() as cluster:
            app = TaskQ(name, url=cluster.url, secret=SECRET, queues=[queue])
            sent = declare(app).square.map(range(60))
            cluster.owner(keys.base(name, sent[0].place)).kill()
            began = time.monotonic()
            told = Told(app, sent, awaits=awaits, timeout=5)
            told.thread.join(60)
            assert isinstance(told.error, ResultTimeout)
            # A second for each partition of that node would be more.
            assert time.monotonic() - began < 12
            app.close()


class Told:
    """What a thread is told of results that it waits for, as they end."""

    def __init__(self, app: TaskQ, sent: list[Any], *, awaits: bool, timeout: float = 120) -> None:
        self.ids: list[str] = []
        self.error: Exception | None = None
        self._app = app
        self._results = taskq.as_completed([app.result(one.id) for one in sent], timeout=timeout)
        self.thread = threading.Thread(target=self._wait, args=[awaits], daemon=True)
        self.thread.start()

    def has(self, result: Any) -> bool:
        return result.id in self.ids

    def _wait(self, awaits: bool) -> None:  # noqa: FBT001
        try:
            if awaits:
                asyncio.run(self._await())
            else:
                self.ids.extend(one.id for one in self._results)
        except Exception as error:  # noqa: BLE001
            self.error = error
        self._app.close()

    async def _await(self) -> None:
        try:
            async for one in self._results:
                self.ids.append(one.id)
        finally:
            await self._app.abroker().close()


class TestUnread:
    BASES = ("tq:{app:a}:", "tq:{app:b}:", "tq:{app:c}:", "tq:{app:d}:")
    CHANNELS = tuple(f"{base}done:1".encode() for base in BASES)

    @pytest.fixture
    def unread(self) -> Unread:
        """Return what is to be read of four queues, on two nodes."""
        unread = Unread({base: base in self.BASES[2:] for base in self.BASES}.__getitem__)
        unread.begin_round(self.CHANNELS)
        return unread

    def asked(self, unread: Unread, *away: str) -> str:
        """Ask until nothing is left; return which queues were asked."""
        order = ""
        while unread:
            base, channels = unread.take()
            assert channels == [f"{base}done:1".encode()]
            unread.note(base, answered=base[8] not in away)
            order += base[8]
        return order

    def test_each_queue_is_asked_in_turn(self, unread: Unread) -> None:
        assert self.asked(unread) == "abcd"

    def test_a_node_that_does_not_answer_is_asked_once_and_last_in_the_next_round(
        self, unread: Unread
    ) -> None:
        for order in ("acd", "cdb", "cda", "cdb"):
            assert self.asked(unread, "a", "b") == order
            unread.begin_round(self.CHANNELS)
        assert self.asked(unread) == "cdab"

    def test_what_is_new_is_left_to_the_next_round_where_nobody_answered(
        self, unread: Unread
    ) -> None:
        self.asked(unread, "a", "b")
        unread.add_new(self.CHANNELS)
        assert self.asked(unread) == "cd"
        unread.begin_round(self.CHANNELS)
        assert self.asked(unread) == "cdba"

    def test_who_was_not_asked_in_one_round_comes_first_in_the_next(self, unread: Unread) -> None:
        self.asked(unread, "a", "b")
        for order in ("cd", "ba", "cd"):
            unread.begin_round(self.CHANNELS)
            assert "".join(unread.take()[0][8] for _ in range(2)) == order

    def test_who_is_on_the_only_node_may_take_its_time(self, unread: Unread) -> None:
        assert unread.within == SHORT_SECONDS
        together = Unread(lambda _: None)
        assert together.within == float("inf")
        together.begin_round(self.CHANNELS)
        assert together.within == float("inf")


class TestAddress:
    def test_it_is_all_that_a_handle_needs(self, shop: Any) -> None:
        sent = [shop.square.delay(number) for number in range(3 * COUNT)]
        again = [shop.app.result(one.id) for one in sent]
        assert taskq.gather(again, timeout=10) == [number**2 for number in range(3 * COUNT)]
        assert [one.queue for one in again] == ["mail"] * len(again)
        for one in again:
            shown = one.snapshot()
            assert (shown.id, shown.queue, shown.status) == (one.id, "mail", State.SUCCEEDED)
            assert one.forget()
            assert shop.app.result(one.id).status is State.UNKNOWN

    def test_the_first_partition_may_be_named_and_is_not(self, shop: Any) -> None:
        sent = [shop.square.delay(1) for _ in range(COUNT)]
        (first,) = (one for one in sent if one.place == "mail")
        assert first.id.endswith("@mail")
        assert shop.app.result(first.id + "/0") == first

    def test_messages_are_cancelled_by_it(self, idle: Any) -> None:
        for one in [idle.square.delay(1) for _ in range(COUNT)]:
            assert idle.app.result(one.id).cancel("why") is Cancellation.CANCELLED
            with pytest.raises(Cancelled, match="why"):
                one.get(timeout=5)

    def test_messages_are_rescheduled_by_it(self, shop: Any) -> None:
        sent = [shop.square.options(countdown=600).delay(n) for n in range(COUNT)]
        for one in sent:
            assert shop.app.result(one.id).reschedule(countdown=0) is Rescheduling.MOVED
        assert taskq.gather(sent, timeout=10) == [n**2 for n in range(COUNT)]

    @pytest.mark.parametrize("rest", ["x", "01", "-1", "256", "1/2", ""])
    def test_one_that_names_no_partition_is_told(self, idle: Any, rest: str) -> None:
        with pytest.raises(ConfigError, match="a partition is a number below 256"):
            idle.app.result(f"order-42@mail/{rest}")

    def test_an_id_may_have_a_slash_of_its_own(self, idle: Any) -> None:
        sent = idle.square.options(id="orders/42").delay(1)
        assert idle.app.result(sent.id) == sent
        assert idle.app.result(sent.id).status is State.QUEUED


class TestAllOfIt:
    def test_outcomes_come_as_they_end(self, shop: Any) -> None:
        sent = shop.square.map(range(200))
        done = [one.get() for one in taskq.as_completed(sent, timeout=10)]
        assert sorted(done) == [number**2 for number in range(200)]

    def test_delayed_calls_run_in_their_time(self, shop: Any) -> None:
        sent = [shop.square.options(countdown=0.2).delay(n) for n in range(2 * COUNT)]
        assert taskq.gather(sent, timeout=10) == [n**2 for n in range(2 * COUNT)]

    def test_retries_stay_where_they_are(self, shop: Any) -> None:
        sent = [shop.twice.delay() for _ in range(COUNT)]
        assert taskq.gather(sent, timeout=15) == [2] * COUNT

    def test_the_task_sees_the_queue_and_not_the_partition(self, shop: Any) -> None:
        sent = [shop.where.delay() for _ in range(COUNT)]
        assert taskq.gather(sent, timeout=10) == [[one.wire_id, "mail"] for one in sent]

    def test_what_a_task_enqueues_is_spread_as_well(self, shop: Any) -> None:
        ids, values = shop.chain.delay(2 * COUNT).get(timeout=10)
        assert values == [n**2 for n in range(2 * COUNT)]
        assert {partition_of(one) for one in ids} == set(range(COUNT))

    def test_the_awaited_twins_do_the_same(self, shop: Any, awaited: Any) -> None:
        async def go() -> None:
            sent = [await shop.square.adelay(n) for n in range(COUNT)]
            sent += await shop.square.amap(range(COUNT))
            assert Counter(partition_of(one.id) for one in sent) == dict.fromkeys(range(COUNT), 2)
            assert await taskq.agather(sent, timeout=10) == [n**2 for n in range(COUNT)] * 2

        awaited(go(), shop.app)

    def test_a_schedule_is_in_the_first_partition(self, shop: Any) -> None:
        shop.app.schedules.add("often", shop.where.s(), every=1)
        try:
            last = until(lambda: shop.app.schedules.get("often").last_id, 10)
            assert last.endswith("@mail")
            assert shop.app.result(last).get(timeout=10) == [last.partition("@")[0], "mail"]
        finally:
            shop.app.schedules.remove("often")

    def test_a_schedule_has_no_partition_key(self, shop: Any) -> None:
        with pytest.raises(ConfigError, match="partition_key"):
            shop.app.schedules.add("x", shop.where.options(partition_key="k").s(), every=60)


class TestDeadLetters:
    def test_those_of_all_partitions_are_listed_retried_and_purged(
        self, new_app: Any, awaited: Any
    ) -> None:
        shop = declare(new_app(queues=[Queue("mail", partitions=COUNT)]))
        dead = shop.app.dead
        with running_worker(shop.app):
            sent = [shop.breaks.delay() for _ in range(2 * COUNT)]
            for one in sent:
                assert isinstance(one.exception(timeout=10), ValueError)
            until(lambda: len(dead.list("mail")) == 2 * COUNT)
            assert {one.id for one in dead.list()} == {one.id for one in sent}
            assert {one.queue for one in dead.list(limit=3)} == {"mail"}
            assert dead.get(sent[0].id).kind == "failed"
            shop.works.set()
            again = [dead.retry(one.id) for one in sent[:COUNT]]
            assert taskq.gather(again, timeout=10) == ["whole"] * COUNT
            assert [one.place for one in again] == [one.place for one in sent[:COUNT]]
            assert dead.purge(sent[COUNT].id) == 1

            async def rest() -> int:
                assert len(await dead.alist("mail")) == COUNT - 1
                return await dead.apurge()

            assert awaited(rest(), shop.app) == COUNT - 1
            assert dead.list() == []

    def test_partitions_that_only_redis_knows_are_looked_into(self, new_app: Any) -> None:
        shop = declare(new_app(queues=[Queue("mail", partitions=COUNT)]))
        with running_worker(shop.app):
            sent = [shop.breaks.delay() for _ in range(COUNT)]
            for one in sent:
                assert isinstance(one.exception(timeout=10), ValueError)
        with twin_of(shop.app, "mail") as other:
            assert {one.id for one in other.dead.list("mail")} == {one.id for one in sent}


class TestNumber:
    def test_who_says_less_is_told_before_anything_is_sent(self, idle: Any, awaited: Any) -> None:
        idle.square.delay(1)
        told = f"queue mail of the app {idle.app.name} has {COUNT} partitions, not "
        for declared, count in ((Queue("mail", partitions=2), 2), ("mail", 1)):
            with twin_of(idle.app, declared) as other:
                with pytest.raises(ConfigError, match=f"{told}{count}: say"):
                    other.send_task("square", (1,), queue="mail")
                with pytest.raises(ConfigError, match=f"{told}{count}: say") as raised:
                    other.enqueue_many([other.task(name="s", queue="mail")(abs).s(1)])
                assert isinstance(raised.value, ConfigError)
                with pytest.raises(ConfigError, match=f"{told}{count}: say"):
                    awaited(other.asend_task("square", (1,), queue="mail"), other)
                with pytest.raises(ConfigError, match=told), running_worker(other):
                    pass

    def test_who_says_more_raises_it(self, idle: Any) -> None:
        idle.square.delay(1)
        with twin_of(idle.app, Queue("mail", partitions=COUNT + 3)) as other:
            sent = [other.send_task("square", (1,), queue="mail") for _ in range(COUNT + 3)]
            assert {partition_of(one.id) for one in sent} == set(range(COUNT + 3))
        idle.app.partitions.forget()
        with pytest.raises(ConfigError, match=f"has {COUNT + 3} partitions, not {COUNT}"):
            idle.square.options(priority=1).delay(1)

    def test_a_queue_with_one_partition_writes_nothing_down(self, new_app: Any) -> None:
        app = new_app()
        app.send_task("square", (1,))
        assert app.broker.call("EXISTS", keys.partitions(app.name, "default")) == 0

    def test_it_comes_from_the_environment(
        self, new_app: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TASKQ_QUEUES", "low:3,mail")
        app = new_app(queues=["mail"])
        assert app.queues == ("default", "mail", "low")
        assert [app.partitions.count(one) for one in app.queues] == [1, 1, 3]

    def test_the_greatest_number_that_is_said_counts(
        self, new_app: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TASKQ_QUEUES", "low:3,mail:9")
        app = new_app(queues=[Queue("mail", partitions=4), Queue("low", partitions=5)])
        assert [app.partitions.count(one) for one in ("low", "mail")] == [5, 9]

    def test_an_environment_that_cannot_be_read_is_told(
        self, new_app: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TASKQ_QUEUES", "mail:many")
        with pytest.raises(ConfigError, match="TASKQ_QUEUES 'mail:many'"):
            new_app().send_task("square", queue="mail")

    def test_a_queue_declared_twice_has_one_number(self) -> None:
        with pytest.raises(ConfigError, match="declared with 2 partitions and 3"):
            TaskQ("x", queues=[Queue("mail", partitions=2), Queue("mail", partitions=3)])

    @pytest.mark.parametrize("garbage", ["x", "-5", "1e9", "999", "0"])
    def test_what_cannot_be_a_number_of_them_counts_as_one(self, idle: Any, garbage: str) -> None:
        key = keys.partitions(idle.app.name, "mail")
        idle.app.broker.call("SET", key, garbage)
        sent = [idle.square.delay(1) for _ in range(COUNT)]
        assert len({one.place for one in sent}) == COUNT
        assert idle.app.broker.call("GET", key) == str(COUNT).encode()
