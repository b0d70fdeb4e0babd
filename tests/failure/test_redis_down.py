"""Redis is away, full, frozen, or has forgotten: everybody goes on when it is back."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from typing import Any

import pytest

import taskq
from taskq import BrokerFull, MessageLost, State
from tests.eventually import let_pass, until
from tests.failure.books import check_after
from tests.failure.scene import LEASE, Scene


class Away:
    """Stops Redis for the length of a block, and notes it as a fault of all."""

    def __init__(self, scene: Scene, end: str) -> None:
        self._scene, self._end, self._began = scene, end, 0.0

    def __enter__(self) -> None:
        self._began = time.monotonic()
        getattr(self._scene.topology.primary, self._end)()

    def __exit__(self, *_: object) -> None:
        server = self._scene.topology.primary
        server.resume() if self._end == "pause" else server.start()
        # Outcomes of what ran meanwhile are told only now.
        self._scene.note(self._end, began=self._began)


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("end", ["kill", "stop", "pause"])
@pytest.mark.alone
def test_after_ten_seconds_away_the_first_message_ends_within_three(scene: Scene, end: str) -> None:
    """F13: what ended meanwhile is told, what waited is run, futures resolve."""
    scene.worker("-p", "2", "-t", "2")
    held = {scene.send("hold", str(scene.folder)): [1, 1] for _ in range(2)}
    until(lambda: len(scene.started()) == 2)
    waiting = {scene.send("note", at, countdown=5.0): at for at in range(20)}
    got: list[Any] = []
    future = threading.Thread(target=lambda: got.extend(taskq.gather(list(held), timeout=30)))
    future.start()

    async def wait() -> Any:
        try:
            return await taskq.agather(list(waiting), timeout=30)
        finally:
            await scene.app.abroker().close()

    afuture = threading.Thread(target=lambda: got.extend(asyncio.run(wait())))
    afuture.start()
    with Away(scene, end):
        let_pass(2)
        scene.go()  # they end while nobody can be told
        let_pass(8)
    back = time.monotonic()
    next(iter(taskq.as_completed(list(held), timeout=30)))
    took = time.monotonic() - back
    print(f"first end {took:.2f} s after Redis was back")
    assert took <= 3
    expected = held | waiting | {scene.send("note", at): at for at in range(20)}
    check_after(scene, expected)
    future.join(10)
    afuture.join(10)
    assert sorted(got, key=str) == sorted([*held.values(), *waiting.values()], key=str)


def test_a_producer_waits_for_redis_within_its_deadline(scene: Scene) -> None:
    scene.worker()
    sent: list[Any] = []
    with Away(scene, "kill"):
        producer = threading.Thread(target=lambda: sent.append(scene.send("note", 1)))
        producer.start()
        let_pass(2)
    producer.join(10)
    check_after(scene, {sent[0]: 1})


def test_a_full_redis_drains_and_takes_messages_again(scene: Scene) -> None:
    """F16: producers are told, the backlog runs to its end, results are stored.

    Leases are renewed: what takes long is not taken from a worker that has nothing to say.
    """
    busy = scene.worker("-p", "1", "-t", "1", TASKQ_COROUTINES="0")
    held = scene.send("hold", str(scene.folder))
    until(scene.started)
    expected = {one: at for at, one in enumerate(scene.send_many("note", _numbers(1000)))}
    expected |= {scene.send("flaky", at): at for at in range(5)}
    expected |= {scene.send("note", at, countdown=0.5): at for at in range(20)}
    with scene.client() as client:
        client.config_set("maxmemory", 1)
        with pytest.raises(BrokerFull):
            scene.send("note", 1)
        with pytest.raises(BrokerFull):
            scene.send("note", 1, countdown=1)
        with pytest.raises(BrokerFull) as raised:
            scene.send_many("note", _numbers(10))
        assert not getattr(raised.value, "sent", ())
        scene.worker("-p", "2", "-t", "2")
        until(lambda: len(scene.runs()) > 10)
        (held_run,) = scene.runs()[held.id]
        others = {run.pid for runs in scene.runs().values() for run in runs} - {held_run.pid}
        scene.kill(others.pop())
        assert taskq.gather(list(expected), timeout=30) == list(expected.values())
        let_pass(2 * LEASE)
        scene.go()
        assert held.get(timeout=30) == [1, 1]
        assert "lost" not in busy.log
        client.config_set("maxmemory", 0)
    expected |= {held: [1, 1], scene.send("note", "again"): "again"}
    check_after(scene, expected)


def fill(scene: Scene, client: Any, **options: Any) -> list[Any]:
    """Send messages of 2 KB until Redis is at its limit; return what it took."""
    client.config_set("maxmemory", client.info("memory")["used_memory"] + (2 << 20))
    taken: list[Any] = []
    while len(taken) < 5_000:
        try:
            taken += scene.send_many("note", [("x" * 2000,)] * 100, **options)
        except BrokerFull as error:
            return [*taken, *error.sent]
    pytest.fail("it took all there was")


def drain(scene: Scene, count: int) -> None:
    scene.worker("-p", "1", "-t", "2")
    until(lambda: len(scene.runs()) == count, 20)
    queue = scene.queue()
    until(lambda: all(one[:1] == b"s" for one, _ in queue.records().values()))


def test_a_full_redis_whose_results_are_ignored_takes_messages_once_it_is_drained(
    scene: Scene,
) -> None:
    """F16: an outcome is smaller than these messages were."""
    with scene.client() as client:
        taken = fill(scene, client, ignore_result=True)
        assert len(taken) > 300
        drain(scene, len(taken))
        again = scene.send("note", "again", ignore_result=True)
        until(lambda: again.status is State.SUCCEEDED)
    assert {len(runs) for runs in scene.runs().values()} == {1}


def test_a_full_redis_whose_results_are_kept_takes_messages_when_their_time_is_over(
    scene: Scene,
) -> None:
    """F16: to lose results that were promised would be worse than to refuse messages."""
    with scene.client() as client:
        taken = fill(scene, client)
        drain(scene, len(taken))
        with pytest.raises(BrokerFull):
            scene.send("note", "again")
        assert set(taskq.gather(taken, timeout=20)) == {"x" * 2000}
        for id in scene.queue().records():
            assert client.pexpire(f"{scene.queue().base}m:{id}", 1)
        until(lambda: _is_taken(scene))
    assert {len(runs) for runs in scene.runs().values()} == {1}


def _is_taken(scene: Scene) -> bool:
    try:
        scene.send("note", "again")
    except BrokerFull:
        return False
    return True


def test_a_redis_that_comes_back_empty_is_served(scene: Scene) -> None:
    """F15: the futures of what it forgot raise, soon."""
    scene.worker("-p", "2")
    lost = [scene.send("note", 1, countdown=60), scene.send("hold", str(scene.folder))]
    until(scene.started)
    server = scene.topology.primary
    with scene.client() as client:
        client.flushall()
    server.kill()
    server.start()
    scene.note("forgot")
    back = time.monotonic()
    told = taskq.gather(lost, timeout=15, return_exceptions=True)
    assert [type(one) for one in told] == [MessageLost, MessageLost]
    assert time.monotonic() - back < 10
    scene.go()
    check_after(scene, {scene.send("note", at): at for at in range(20)})


def test_scripts_that_vanish_are_loaded_again_by_all(scene: Scene) -> None:
    """F10: a hundred times under load, single and in streams of many."""
    scene.worker("-p", "2")
    expected: dict[Any, Any] = {}
    with scene.client() as client:
        for at in range(100):
            client.script_flush()
            if at % 10 == 0:
                many = scene.send_many("note", [(at,)] * 20)
                expected |= dict.fromkeys(many, at)
            expected[scene.send("note", at)] = at
    books = check_after(scene, expected)
    assert {len(one.runs) for one in books.accounts} == {1}


def test_connections_that_are_killed_all_the_time_lose_nothing(scene: Scene) -> None:
    """F12: those that ask and those that listen, every 100 ms."""
    scene.worker("-p", "2", "-t", "2")
    held = scene.send("hold", str(scene.folder))
    got: list[Any] = []
    future = threading.Thread(target=lambda: got.append(held.get(timeout=30)))
    future.start()
    expected: dict[Any, Any] = {held: [1, 1]}
    with scene.client() as client:
        for at in range(80):
            kind = ("normal", "pubsub")[at % 2]
            client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            expected[scene.send("work", at, 0.05)] = at
            let_pass(0.05)
    scene.go()
    future.join(10)
    assert got == [[1, 1]]
    books = check_after(scene, expected)
    assert {len(one.runs) for one in books.accounts} == {1}


def test_an_outage_longer_than_a_lease_is_not_a_death(scene: Scene) -> None:
    """I8: what ran on meanwhile is not taken back, though its supervisor comes back late."""
    lease = 3.0
    words = ("-p", "1", "-t", "2")
    late = scene.worker(*words, TASKQ_COROUTINES="0", TASKQ_LEASE=str(lease))
    expected = {scene.send("hold", str(scene.folder)): [1, 1] for _ in range(2)}
    until(lambda: len(scene.started()) == 2)
    other = scene.worker(*words, TASKQ_LEASE=str(lease))
    queue = scene.queue()
    until(lambda: queue.call("EXISTS", "tick"))
    with Away(scene, "kill"):
        late.send(signal.SIGSTOP)
        let_pass(2 * lease)
    until(lambda: queue.call("EXISTS", "hold"))  # the other one has looked for the dead
    late.send(signal.SIGCONT)
    let_pass(2 * lease)
    scene.go()
    books = check_after(scene, expected)
    assert {len(one.runs) for one in books.accounts} == {1}
    assert "took back" not in other.log


def _numbers(count: int) -> list[tuple[int]]:
    return [(at,) for at in range(count)]


@pytest.mark.parametrize("timeout", [0, 1])
@pytest.mark.parametrize("way", ["get", "gather", "aget"])
@pytest.mark.alone
def test_a_wait_is_over_in_time_though_redis_says_nothing(
    scene: Scene, way: str, timeout: float
) -> None:
    result = scene.app.send_task("note", (1,), countdown=500)
    ask = {
        "get": lambda: result.get(timeout=timeout),
        "gather": lambda: taskq.gather([result], timeout=timeout),
        "aget": lambda: asyncio.run(_aget(scene, result, timeout)),
    }[way]
    with pytest.raises(taskq.ResultTimeout):
        ask()
    with Away(scene, "pause"):
        began = time.monotonic()
        with pytest.raises(taskq.ResultTimeout):
            ask()
        assert time.monotonic() - began < timeout + 2


async def _aget(scene: Scene, result: Any, timeout: float) -> Any:
    try:
        return await result.aget(timeout=timeout)
    finally:
        await scene.app.leave_loop()
