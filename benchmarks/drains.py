"""How fast a worker empties a queue of tasks that do nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from benchmarks import servers, workers
from benchmarks.case import Bench
from benchmarks.lookout import check, looking
from benchmarks.peers.probe import Reader
from benchmarks.processors import Left
from benchmarks.prototype import Producer
from benchmarks.tasks import add, add_async, add_only, app, noted
from benchmarks.workers import Failed
from taskq import gather

MESSAGES = 30_000
# Enough to see that nothing is queued twice.
NAMED = 500


def _drain(bench: Bench, task: Any, threads: int) -> float:
    """Queue everything, then start a worker; every outcome must be there at the end."""
    results = task.starmap((number, number) for number in range(bench.count(MESSAGES)))
    with looking(bench.url, task) as lookout, workers.taskq_worker(threads) as process:
        rate = workers.rate_of_drain(lookout.left, len(results), process)
        lookout.check(results)
    return rate


def one_thread(bench: Bench) -> Sequence[float]:
    return (_drain(bench, add, 1),)


def eight_threads(bench: Bench) -> Sequence[float]:
    return (_drain(bench, add, 8),)


def coroutines(bench: Bench) -> Sequence[float]:
    return (_drain(bench, add_async, 8),)


def bare_one(bench: Bench) -> Sequence[float]:
    return (_bare(bench, 1),)


def bare_eight(bench: Bench) -> Sequence[float]:
    return (_bare(bench, 8),)


def _bare(bench: Bench, threads: int) -> float:
    place = bench.place
    producer = Producer(place)
    ids = producer.enqueue(("add", (number, number), {}) for number in range(bench.count(MESSAGES)))

    def left() -> int:
        with client.pipeline() as pipe:
            ready, running = pipe.llen(place.ready).hlen(place.running).execute()
        return int(ready + running)

    with (
        servers.connect(bench.url) as client,
        workers.bare_worker(bench.url, place.base, str(threads)) as process,
    ):
        rate = workers.rate_of_drain(left, len(ids), process)
        check(producer.outcomes(ids), len(ids), left())
    producer.close()
    return rate


def without_results(bench: Bench) -> Sequence[float]:
    """Drain where no result is kept; then see that messages are known by their ids as ever."""
    rate = _drain(bench, add_only, 8)
    bench.clean()
    n = bench.count(NAMED)
    calls = [add_only.options(id=f"named-{number}").s(number, 1) for number in range(n)]
    results = app.enqueue_many(calls)
    with looking(bench.url, add_only) as lookout:
        with workers.taskq_worker() as process:
            workers.wait_until_empty(lookout.left, process)
        app.enqueue_many(calls)
        if again := lookout.queued():
            msg = f"{again} of {n} messages were queued a second time"
            raise Failed(msg)
        lookout.check(results)
    return (rate,)


def two_processes(bench: Bench) -> Sequence[float]:
    """Return the rate while both are at work, and what was left of the processors, in percent."""
    return _by_processes(bench, 2)


def one_process(bench: Bench) -> Sequence[float]:
    return _by_processes(bench, 1)


def _by_processes(bench: Bench, count: int) -> tuple[float, float]:
    n = bench.count(MESSAGES) * count
    results = noted.starmap((number, 1) for number in range(n))
    with (
        Reader(n) as probe,
        looking(bench.url, noted) as lookout,
        workers.taskq_worker(8, count, probe.variables()) as process,
    ):
        workers.wait_for(lambda: probe.count() == n or probe.at_work() == count, process)
        left = Left(process.family(), lambda: servers.processor_seconds(lookout.client))
        workers.wait_for(lambda: probe.count() == n, process)
        percent = left.percent()
        workers.wait_until_empty(lookout.left, process)
        lookout.check(results)
        return probe.rate(count), percent


def together(bench: Bench) -> Sequence[float]:
    """Produce, run and gather in one program, beside one worker process."""
    n = bench.count(50_000)
    with workers.taskq_worker() as process:
        workers.warm(process)
        begun = time.perf_counter()
        values = gather(add.starmap((number, 1) for number in range(n)), timeout=120)
        elapsed = time.perf_counter() - begun
    if values != list(range(1, n + 1)):
        msg = f"{len(values)} results of {n} came, or not those that the tasks returned"
        raise Failed(msg)
    return (n / elapsed,)
