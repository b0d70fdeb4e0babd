"""How much of the bandwidth to Redis is left for arguments of some size."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from benchmarks import servers, workers
from benchmarks.case import Bench
from benchmarks.lookout import looking
from benchmarks.tasks import LARGEST, weigh

SIZES = (100, 1 << 10, 10 << 10, 100 << 10, LARGEST)
# Of each size, about as many bytes; of small ones, fewer.
BYTES, MOST = 128 << 20, 10_000
MEGABYTE = 1_000_000


def _count(bench: Bench, size: int) -> int:
    return min(bench.count(BYTES // size), bench.count(MOST))


def passed_on(bench: Bench, sizes: Sequence[int] = SIZES) -> Sequence[float]:
    """Return MB a second from the caller through Redis into the task, by size."""
    return [_passed_on(bench, size) for size in sizes]


def _passed_on(bench: Bench, size: int) -> float:
    bench.clean()
    n, data = _count(bench, size), os.urandom(size)
    begun = time.perf_counter()
    results = weigh.map(data for _ in range(n))
    elapsed = time.perf_counter() - begun
    with looking(bench.url, weigh) as lookout, workers.taskq_worker() as process:
        elapsed += n / workers.rate_of_drain(lookout.left, n, process)
        lookout.check(results)
    return n * size / elapsed / MEGABYTE


def set_and_got(bench: Bench, sizes: Sequence[int] = SIZES) -> Sequence[float]:
    """Do as much by SET and GET, one after the other, on one connection."""
    return [_set_and_got(bench, size) for size in sizes]


def _set_and_got(bench: Bench, size: int) -> float:
    n, data, key = _count(bench, size), os.urandom(size), bench.place.base + "payload"
    with servers.connect(bench.url) as client:
        begun = time.perf_counter()
        for _ in range(n):
            client.set(key, data)
            client.get(key)
        return n * size / (time.perf_counter() - begun) / MEGABYTE


def largest(bench: Bench) -> Sequence[float]:
    return passed_on(bench, SIZES[-1:])


def largest_set_and_got(bench: Bench) -> Sequence[float]:
    return set_and_got(bench, SIZES[-1:])
