"""The connection breaks at the worst moment: nothing is sent twice, lost, or run twice."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import taskq
from taskq import BrokerUnavailable, EnqueueUncertain
from tests.eventually import let_pass, until
from tests.failure.books import check_after
from tests.failure.proxy import Act, Request
from tests.failure.scene import Scene

Send = Callable[[Scene, str, Any], Any]


def sync_send(scene: Scene, id: str, value: Any, **options: Any) -> Any:
    return scene.send("note", value, id=id, **options)


def async_send(scene: Scene, id: str, value: Any, **options: Any) -> Any:
    async def run() -> Any:
        try:
            return await scene.app.asend_task("proj.note", (value,), id=id, **options)
        finally:
            await scene.app.abroker().close()

    return asyncio.run(run())


DRIVERS: dict[str, Any] = {"sync": sync_send, "aio": async_send}


@pytest.mark.parametrize("driver", list(DRIVERS))
@pytest.mark.parametrize(("call", "options"), [("enqueue", {}), ("schedule", {"countdown": 0.1})])
@pytest.mark.parametrize("act", list(Act)[:2], ids=["request", "reply"])
def test_a_send_whose_line_is_cut_once_is_sent_once(
    new_scene: Any, driver: str, call: str, options: Any, act: Act
) -> None:
    """G10, F9."""
    scene = new_scene(proxied=True)
    scene.arm()
    rules = [scene.proxy.on(call, act) for _ in range(5)]
    expected = {}
    for at, _ in enumerate(rules):
        expected[DRIVERS[driver](scene, f"order-{at}", at, **options)] = at
    assert [rule.fired for rule in rules] == [1] * 5
    scene.proxy.calm()
    scene.queue().audit()  # each is there once
    scene.worker()
    books = check_after(scene, expected)
    assert [len(one.runs) for one in books.accounts] == [1] * 5


@pytest.mark.parametrize("driver", list(DRIVERS))
def test_a_send_whose_line_is_always_cut_is_uncertain_and_safe_to_repeat(
    new_scene: Any, driver: str
) -> None:
    """G10: it raises, says under which id, and the same id again is one message."""
    scene = new_scene(proxied=True)
    scene.arm()
    scene.app = scene.shell.app(enqueue_deadline=0.5)
    rule = scene.proxy.on("enqueue", Act.CUT_REPLY, times=float("inf"))
    with pytest.raises(EnqueueUncertain) as raised:
        DRIVERS[driver](scene, "order-1", 1)
    assert rule.fired > 1, "it was tried again meanwhile"
    assert raised.value.id == "order-1"
    scene.proxy.calm()
    again = DRIVERS[driver](scene, "order-1", 1)
    scene.queue().audit()  # it is there once
    scene.worker()
    books = check_after(scene, {again: 1})
    assert [len(one.runs) for one in books.accounts] == [1]


@pytest.mark.parametrize("driver", list(DRIVERS))
@pytest.mark.parametrize("act", list(Act)[:2], ids=["request", "reply"])
def test_a_stream_of_many_whose_line_is_cut_is_sent_once(
    new_scene: Any, driver: str, act: Act
) -> None:
    """G10, for five round trips of a thousand, of which two are cut."""
    scene = new_scene(proxied=True)
    scene.arm()
    calls = [scene.app._unchecked("proj.note", (at,), None, {}) for at in range(5000)]
    rules = [scene.proxy.on("enqueue", act, times=1) for _ in range(2)]

    async def send() -> Any:
        try:
            return await scene.app.aenqueue_many(calls)
        finally:
            await scene.app.abroker().close()

    results = scene.app.enqueue_many(calls) if driver == "sync" else asyncio.run(send())
    assert [rule.fired for rule in rules] == [1, 1]
    queue = scene.queue()
    queue.audit()
    assert queue.ready("proj.note") == [one.wire_id for one in results]


@pytest.mark.parametrize("driver", list(DRIVERS))
def test_a_send_that_never_reached_redis_is_no_uncertain_one(new_scene: Any, driver: str) -> None:
    scene = new_scene(proxied=True)
    scene.app = scene.shell.app(enqueue_deadline=0.5)
    scene.proxy.close()
    with pytest.raises(BrokerUnavailable) as raised:
        DRIVERS[driver](scene, "order-1", 1)
    assert not isinstance(raised.value, EnqueueUncertain)
    assert scene.queue().records() == {}


def test_replies_that_are_lost_at_random_double_nothing(new_scene: Any, seed: int) -> None:
    """F9, for producers, claims and ends at once."""
    chance = random.Random(seed)
    scene = new_scene(proxied=True)
    scene.arm()
    calls = {"exchange": 0.3, "enqueue": 0.3, "schedule": 0.3, "renew": 0.3, "enrol": 0.5}
    acts = [Act.CUT_REPLY, Act.CUT_REPLY, Act.LOSE_REQUEST]
    worker = scene.worker("-p", "2", "-t", "4")
    rules = [
        scene.proxy.each(lambda one, act=act: chance.random() < calls.get(one.name, 0) / 3, act)
        for act in acts
    ]
    expected: dict[Any, Any] = {}
    # Slow ones share their calls, so that so many messages may be too few.
    for at in range(3000):
        if at >= 300 and sum(rule.fired for rule in rules) >= 200:
            break
        task = chance.choice(["note", "anote", "flaky"])
        later = chance.choice([None, None, 0.1])
        expected[scene.send(task, at, countdown=later)] = at
    assert sum(rule.fired for rule in rules) >= 200
    scene.proxy.calm()
    # No process died and no lease ran out: each attempt ran once.
    books = check_after(scene, expected)
    assert max(len(one.runs) - one.record.attempts for one in books.accounts) == 0
    assert "lost its lease" not in worker.log


@pytest.mark.parametrize("call", ["exchange", "renew", "reclaim", "enrol", "blpop"])
def test_a_worker_whose_calls_are_cut_goes_on(new_scene: Any, call: str) -> None:
    scene = new_scene(proxied=True)
    scene.arm()
    rules = [scene.proxy.on(call, act, times=3) for act in (Act.CUT_REPLY, Act.LOSE_REQUEST)]
    expected = {scene.send("note", at): at for at in range(20)}
    scene.worker("-p", "1")
    until(lambda: all(rule.fired == 3 for rule in rules), 20)
    expected |= {scene.send("note", at): at for at in range(20)}
    books = check_after(scene, expected)
    assert {len(one.runs) for one in books.accounts} == {1}


def test_a_call_that_is_never_answered_is_given_up_and_made_again(new_scene: Any) -> None:
    """F11, one reply of it: the socket's own patience ends it after 5 s."""
    scene = new_scene(proxied=True)
    scene.arm()
    scene.worker("-p", "1", "-t", "2", TASKQ_LEASE="15")
    scene.send("note", 0).get(timeout=30)
    rule = scene.proxy.on("exchange", Act.SWALLOW_REPLY, ends=True)
    since = time.monotonic()
    expected = {scene.send("note", at): at for at in range(5)}
    books = check_after(scene, expected)
    assert rule.fired == 1
    assert 4 < time.monotonic() - since < 12
    assert {len(one.runs) for one in books.accounts} == {1}


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("patient")
def test_a_network_that_swallows_everything_is_survived(new_scene: Any) -> None:
    """F11: longer than the socket's patience, without a reset, on every line."""
    scene = new_scene(proxied=True)
    scene.worker("-p", "2", "-t", "2", TASKQ_LEASE="3")
    held = scene.send("hold", str(scene.folder))
    until(scene.started)
    began = time.monotonic()
    scene.proxy.flow.clear()
    let_pass(0.5)
    scene.go()
    let_pass(8)
    scene.proxy.flow.set()
    healed = time.monotonic()
    scene.note("blackhole", began=began)
    expected = {held: [1, 1], scene.send("note", 1): 1}
    taskq.gather(list(expected), timeout=30)
    assert time.monotonic() - healed < 8
    scene.proxy.reset()
    check_after(scene, expected)


def test_a_slow_network_only_makes_it_slower(new_scene: Any) -> None:
    scene = new_scene(proxied=True)
    scene.proxy.delay = 0.05
    scene.worker("-p", "1", "-t", "4")
    expected = {
        one: at for at, one in enumerate(scene.send_many("note", [(n,) for n in range(200)]))
    }
    books = check_after(scene, expected)
    assert {len(one.runs) for one in books.accounts} == {1}


@pytest.mark.parametrize("driver", list(DRIVERS))
@pytest.mark.alone
def test_a_future_resolves_though_its_line_dies_before_each_publish(
    new_scene: Any, driver: str
) -> None:
    """G9, F22: 100 of 100, each within 6 s."""
    scene = new_scene(proxied=True)
    scene.worker("-p", "1", "-t", "2")
    cut: list[int] = []
    scene.proxy.watch = lambda one: one.ends and cut.append(scene.proxy.reset(subscribed=True))

    async def wait(at: int) -> Any:
        return await (await scene.app.asend_task("proj.work", (at, 0.12))).aget(timeout=6)

    async def all_of_them() -> list[Any]:
        try:
            return [await wait(at) for at in range(100)]
        finally:
            await scene.app.abroker().close()

    if driver == "sync":
        # Long enough that the line is there again when the next one ends.
        told = [scene.send("work", at, 0.12).get(timeout=6) for at in range(100)]
    else:
        told = asyncio.run(all_of_them())
    assert told == list(range(100))
    assert sum(cut) >= 80, "the line was there to be cut"


def test_futures_resolve_though_what_is_published_is_never_heard(new_scene: Any) -> None:
    """G9: the line stays open and brings nothing; the waits read again."""
    scene = new_scene(proxied=True)
    scene.worker("-p", "1", "-t", "2")
    with scene.client() as client:
        results = [scene.send("work", at, 1.0) for at in range(2)]
        client.execute_command("CONFIG", "SET", "client-output-buffer-limit", "pubsub 1 1 1")
        since = time.monotonic()
        assert taskq.gather(results, timeout=8) == [0, 1]
        assert time.monotonic() - since < 7


@pytest.mark.alone
def test_what_is_published_while_a_line_is_made_anew_is_read_at_once(new_scene: Any) -> None:
    """G9: the outcome comes after the read that follows the break, before the new line listens."""
    scene = new_scene(proxied=True)
    scene.worker("-p", "1", "-t", "1")
    results = [scene.send("hold", str(scene.folder))]
    got: list[Any] = []
    future = threading.Thread(target=lambda: got.append(results[0].get(timeout=30)))
    future.start()
    until(scene.started)
    with scene.client() as client:
        until(client.pubsub_channels)
        reread = threading.Event()
        # The new line is held up until the outcome has been published and nobody heard it.
        scene.proxy.watch = lambda one: _hold_up(one, reread, scene, client)
        scene.proxy.reset(subscribed=True)
        assert reread.wait(5)
        published = time.monotonic()
        future.join(8)
        assert got == [[1, 1]]
        assert time.monotonic() - published < 2


def _hold_up(request: Request, reread: threading.Event, scene: Scene, client: Any) -> None:
    if request.name == "subscribe" and not reread.is_set():
        scene.go()
        until(lambda: scene.witness.heard)
        reread.set()


@pytest.mark.parametrize("driver", list(DRIVERS))
@pytest.mark.alone
def test_a_line_that_is_closed_under_its_reader_is_made_anew(scene: Scene, driver: str) -> None:
    """redis-py closes a broken connection in whatever thread sends on it."""
    scene.worker("-p", "1", "-t", "1")
    result = scene.send("hold", str(scene.folder))
    got: list[Any] = []

    async def awaited() -> Any:
        try:
            return await result.aget(timeout=30)
        finally:
            await scene.app.leave_loop()

    def wait() -> None:
        got.append(result.get(timeout=30) if driver == "sync" else asyncio.run(awaited()))

    future = threading.Thread(target=wait)
    future.start()
    until(scene.started)
    for _ in range(3):
        connection = until(lambda: scene.app.waiter._connection)
        connection._parser._sock, sock = None, connection._parser._sock
        sock.close()
        until(lambda old=connection: scene.app.waiter._connection is not old)
    until(lambda: scene.app.waiter._connection)
    began = time.monotonic()
    scene.go()
    future.join(8)
    assert got == [[1, 1]]
    assert time.monotonic() - began < 3
