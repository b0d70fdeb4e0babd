"""A worker whose queues are on several nodes: each wakes it, and none keeps it from the others."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import taskq
from taskq import Queue, TaskQ
from taskq.broker import keys
from taskq.model.queues import of_key
from taskq.testing import running_worker
from tests.eventually import let_pass, until
from tests.fleets import Cluster, calls_of

SECRET = "a secret that all tests of nodes share"


@pytest.fixture
def queues(cluster: Cluster, namespace: str) -> list[str]:
    """Three queues, each on a node of its own."""
    found: dict[int, str] = {}
    for number in range(100):
        found.setdefault(cluster.owner(keys.base(namespace, f"q{number}")).port, f"q{number}")
    assert len(found) == 3
    return list(found.values())


@pytest.fixture
def app(cluster: Cluster, namespace: str, queues: list[str]) -> Iterator[TaskQ]:
    app = TaskQ(namespace, url=cluster.url, secret=SECRET, queues=queues, default_queue=queues[0])

    @app.task(name="echo")
    def echo(value: Any) -> Any:
        return value

    yield app
    app.close()


def send(app: TaskQ, value: Any, queue: str) -> Any:
    return app.send_task("echo", (value,), queue=queue)


def test_an_idle_worker_is_woken_by_each_node(app: TaskQ, queues: list[str]) -> None:
    with running_worker(app):
        send(app, 0, queues[0]).get(timeout=5)
        began = time.monotonic()
        for value in range(5):
            for queue in queues:
                assert send(app, value, queue).get(timeout=5) == value
    # Without bells each of the 15 would wait for up to two seconds.
    assert time.monotonic() - began < 10


def test_outcomes_of_several_nodes_are_waited_for_together(app: TaskQ, queues: list[str]) -> None:
    values = list(range(60))
    with running_worker(app):
        sent = [send(app, value, queues[value % 3]) for value in values]
        assert taskq.gather(sent, timeout=10) == values
        sent = [send(app, value, queues[value % 3]) for value in values]
        assert sorted(one.get() for one in taskq.as_completed(sent, timeout=10)) == values


def test_a_wait_goes_on_where_the_slot_has_gone(
    app: TaskQ, queues: list[str], cluster: Cluster
) -> None:
    go, began = threading.Event(), threading.Event()

    @app.task(name="wait")
    def wait() -> str:
        began.set()
        go.wait(10)
        return "over"

    told: list[Any] = []
    with running_worker(app):
        result = app.send_task("wait", queue=queues[0])
        thread = threading.Thread(target=lambda: told.append(result.get(timeout=20)))
        thread.start()
        assert began.wait(5)
        cluster.move(keys.base(app.name, queues[0]))
        go.set()
        # Sooner than a wait that heard nothing looks by itself.
        thread.join(2.5)
        assert told == ["over"]


@pytest.mark.slow
def test_an_idle_worker_asks_each_queue_once_in_two_seconds(
    app: TaskQ, queues: list[str], cluster: Cluster
) -> None:
    with running_worker(app):
        for queue in queues:
            send(app, 0, queue).get(timeout=5)
        before = [calls_of(node) for node in cluster.masters]
        let_pass(6)
        after = [calls_of(node) for node in cluster.masters]
    for some, more in zip(before, after, strict=True):
        # BLPOP and exchange each two seconds, and what maintenance does.
        assert more - some <= 6 * 2


def test_a_schedule_that_is_made_is_heard_of_at_its_queues_node(
    app: TaskQ, queues: list[str], cluster: Cluster
) -> None:
    ticks: dict[str, list[float]] = {queue: [] for queue in queues}

    @app.task(name="tick")
    def tick(queue: str) -> None:
        ticks[queue].append(time.monotonic())

    with running_worker(app):
        for queue in queues:
            with cluster.owner(keys.base(app.name, queue)).client() as client:
                channel = keys.agenda(app.name, queue)
                until(functools.partial(listeners, client, channel))
        began = time.monotonic()
        for queue in queues:
            app.schedules.add(f"often-{queue}", tick.options(queue=queue).s(queue), every=1)
        until(lambda: all(ticks.values()))
    # Without an ear each queue is looked at every five seconds.
    assert max(times[0] for times in ticks.values()) - began < 2.5


def listeners(client: Any, channel: str) -> int:
    """Return how many listen to a channel at this node."""
    return int(client.execute_command("PUBSUB", "SHARDNUMSUB", channel)[1])


@pytest.mark.slow
def test_a_node_that_is_silent_keeps_no_other_partition_waiting(namespace: str) -> None:
    """As after a host was lost: connections to it stay open, and nothing comes."""
    with Cluster() as cluster:
        queue = Queue("mail", partitions=8)
        app = TaskQ(namespace, url=cluster.url, secret=SECRET, queues=[queue])

        @app.task(name="echo", queue="mail")
        def echo(value: int) -> int:
            return value

        owners = [
            cluster.owner(keys.base(namespace, place)) for place in app.partitions.places("mail")
        ]
        silent = max(cluster.masters, key=owners.count)
        assert owners.count(silent) > 1
        with running_worker(app):
            assert taskq.gather(echo.map(range(80)), timeout=30) == list(range(80))
            silent.pause()
            try:
                for key in range(40):
                    if owners[of_key(str(key), 8)] is not silent:
                        one = echo.options(partition_key=key).delay(key)
                        assert one.get(timeout=15) == key
            finally:
                silent.resume()
            assert taskq.gather(echo.map(range(80)), timeout=60) == list(range(80))
        app.close()
