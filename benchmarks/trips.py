"""How long a call and its answer take, with a worker that has nothing else to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from benchmarks import workers
from benchmarks.case import Bench
from benchmarks.prototype import Producer
from benchmarks.tasks import add, add_async, app

CALL = ("add", (1, 2), {})
WARM = 20


def round_trip(bench: Bench) -> Sequence[float]:
    """Return p50, p99 and how many times the one the other is; blocking, then awaited."""
    n = bench.count(2000)
    with workers.taskq_worker() as process:
        workers.warm(process)
        blocking = timed(lambda: add.delay(1, 2).get(timeout=30), n)
        awaited = asyncio.run(_awaited(n))
    return *spread(blocking), *spread(awaited)


async def _awaited(n: int) -> list[float]:
    times = []
    async with app:
        for _ in range(n + WARM):
            begun = time.perf_counter()
            await (await add_async.adelay(1, 2)).aget(timeout=30)
            times.append((time.perf_counter() - begun) * 1000)
    return times[WARM:]


def bare_round_trip(bench: Bench) -> Sequence[float]:
    """Do as much by the prototype, blocking: the same figures are held against both."""
    producer = Producer(bench.place)
    with workers.bare_worker(bench.url, bench.place.base, "answer"):
        producer.round_trip(CALL)
        figures = spread(timed(lambda: producer.round_trip(CALL), bench.count(2000)))
    producer.close()
    return *figures, *figures


def alone(bench: Bench) -> Sequence[float]:
    return round_trip(bench)[:2]


def echo(bench: Bench) -> Sequence[float]:
    """Two lists and nothing else: no script, no record of what runs, nothing published."""
    producer = Producer(bench.place)
    with workers.bare_worker(bench.url, bench.place.base, "echo"):
        producer.echo_by_lists(CALL)
        figures = spread(timed(lambda: producer.echo_by_lists(CALL), bench.count(2000)))
    producer.close()
    return figures[:2]


def timed(call: Callable[[], object], n: int) -> list[float]:
    """Return how many milliseconds each of so many calls took."""
    times = []
    for _ in range(n):
        begun = time.perf_counter()
        call()
        times.append((time.perf_counter() - begun) * 1000)
    return times


def spread(times: list[float]) -> tuple[float, float, float]:
    """Return the 50th and the 99th percentile, and the second by the first."""
    p50, p99 = percentile(times, 50), percentile(times, 99)
    return p50, p99, p99 / p50


def percentile(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
