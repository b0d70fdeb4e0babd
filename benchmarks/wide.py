"""A cluster of three nodes, beside one server. Workers import this module."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import servers, trips, workers
from benchmarks.case import Bench
from benchmarks.peers import work
from benchmarks.peers.probe import Reader
from benchmarks.processors import Idle
from benchmarks.tasks import RUN
from benchmarks.workers import Failed
from taskq import Queue, TaskQ, gather
from taskq.broker import keys

PARTITIONS = 8
MESSAGES = 30_000
# How often it is looked how much is left: eight commands each time.
LOOK_SECONDS = 0.02
NAME, NOTED = "add", "noted"

# Which of them a worker serves, its variables say.
app = TaskQ(f"benchmarks-{RUN}-wide", queues=[Queue("default", int(os.environ.get("WIDE", "1")))])


@app.task(name=NAME)
def add(x: int, y: int) -> int:
    return x + y


# Notes the instant at which it ran.
noted = app.task(name=NOTED)(work.add)


def over_three_nodes(bench: Bench) -> Sequence[float]:
    """Drain eight partitions on three masters."""
    with servers.own_cluster() as url:
        return (_drain(bench, url, PARTITIONS),)


def on_one_server(bench: Bench) -> Sequence[float]:
    """Drain one queue, on the server of the run."""
    try:
        return (_drain(bench, bench.url, 1),)
    finally:
        servers.remove(bench.url, keys.base(app.name, "default"))


def two_processes(bench: Bench) -> Sequence[float]:
    """Return the rate on three masters while both are at work, and what was idle, in percent."""
    return _by_processes(bench, 2)


def one_process(bench: Bench) -> Sequence[float]:
    return _by_processes(bench, 1)


def trip_on_three_nodes(bench: Bench) -> Sequence[float]:
    """Call and wait, one at a time, over the node that has the queue."""
    with servers.own_cluster() as url:
        return _trip(bench, url)


def trip_on_one_server(bench: Bench) -> Sequence[float]:
    """Do the same on the server of the run."""
    try:
        return _trip(bench, bench.url)
    finally:
        servers.remove(bench.url, keys.base(app.name, "default"))


def _trip(bench: Bench, url: str) -> Sequence[float]:
    with (
        TaskQ(app.name, url=url) as producer,
        workers.taskq_worker(8, 1, {"TASKQ_URL": url}, "benchmarks.wide"),
    ):
        call: Any = producer.task(name=NAME)(add.fn)
        call.delay(1, 2).get(timeout=30)
        times = trips.timed(lambda: call.delay(1, 2).get(timeout=30), bench.count(2000))
        return trips.spread(times)[:2]


def _drain(bench: Bench, url: str, partitions: int) -> float:
    """Queue everything, then start a worker process; every outcome must be there at the end."""
    n, variables = bench.count(MESSAGES), {"TASKQ_URL": url, "WIDE": str(partitions)}
    queue = Queue("default", partitions=partitions)
    with TaskQ(app.name, url=url, queues=[queue]) as producer:
        call: Any = producer.task(name=NAME)(add.fn)
        results = call.starmap((number, 1) for number in range(n))
        names = [
            keys.ready(app.name, place, NAME) for place in producer.partitions.places("default")
        ]

        def left() -> int:
            time.sleep(LOOK_SECONDS)
            return sum(producer.broker.call("LLEN", name) for name in names)

        with workers.taskq_worker(8, 1, variables, "benchmarks.wide") as process:
            rate = workers.rate_of_drain(left, n, process)
            values = gather(results, timeout=120)
    _check(values, n)
    return rate


def _by_processes(bench: Bench, count: int) -> tuple[float, float]:
    n, queue = bench.count(MESSAGES) * count, Queue("default", partitions=PARTITIONS)
    with (
        servers.own_cluster() as url,
        TaskQ(app.name, url=url, queues=[queue]) as producer,
        Reader(n) as probe,
    ):
        call: Any = producer.task(name=NOTED)(noted.fn)
        results = call.starmap((number, 1) for number in range(n))
        variables = {"TASKQ_URL": url, "WIDE": str(PARTITIONS)} | probe.variables()
        with workers.taskq_worker(8, count, variables, "benchmarks.wide") as process:
            workers.wait_for(lambda: probe.count() == n or probe.at_work() == count, process)
            idle = Idle()
            workers.wait_for(lambda: probe.count() == n, process)
            percent = idle.percent()
            _check(gather(results, timeout=120), n)
        return probe.rate(count), percent


def _check(values: Sequence[object], n: int) -> None:
    if values != list(range(1, n + 1)):
        msg = f"{len(values)} results of {n} came, or not those that the tasks returned"
        raise Failed(msg)
