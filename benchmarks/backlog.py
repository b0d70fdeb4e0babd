"""Whether a long queue slows a worker, and what a queued message takes of Redis."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks import servers, workers
from benchmarks.case import Bench
from benchmarks.lookout import looking
from benchmarks.peers.probe import Reader
from benchmarks.tasks import noted

# Rates are those of windows of so many tasks, some exchanges: their median is shown.
WINDOW = 1000
# What one exchange brings goes on while the next is on its way: a thousand messages are over
# before all that they cost has been seen.
LOT, LOTS = 10_000, 5
PAGE = 50_000
# Beside the bytes in the list: the record, and the keys of both.
FACTOR, BESIDE = 1.3, 120


def deep(bench: Bench) -> Sequence[float]:
    """Queue half a million; return the rate of the first fifth, and bytes of Redis for each."""
    n = bench.count(500_000, 15 * WINDOW)
    with looking(bench.url, noted) as lookout, Reader(n) as probe:
        before = servers.used_memory(lookout.client)
        for at in range(0, n, PAGE):
            noted.starmap((number, 1) for number in range(at, min(n, at + PAGE)))
        size = (servers.used_memory(lookout.client) - before) / n
        with workers.taskq_worker(variables=probe.variables()) as process:
            workers.wait_for(lambda: probe.count() >= n // 5, process)
            [instants] = probe.processes()
    return _rate(instants[: n // 5]), size


def shallow(bench: Bench) -> Sequence[float]:
    """Queue ten thousand, some times; and return how many bytes would be fair."""
    lot, lots = bench.count(LOT, 3 * WINDOW), bench.count(LOTS, 1)
    with (
        looking(bench.url, noted) as lookout,
        Reader(lots * lot) as probe,
        workers.taskq_worker(variables=probe.variables()) as process,
    ):
        for _ in range(lots):
            noted.starmap((number, 1) for number in range(lot))
            workers.wait_until_empty(lookout.left, process)
        [instants] = probe.processes()
    rates = [_rate(instants[at : at + lot]) for at in range(0, lots * lot, lot)]
    noted.delay(lot, 1)
    with looking(bench.url, noted) as lookout:
        fair = FACTOR * len(lookout.message()) + BESIDE
    return statistics.median(rates), fair


def _rate(instants: Sequence[float]) -> float:
    """Return tasks a second, without the first and the last."""
    starts = range(WINDOW, len(instants) - WINDOW, WINDOW)
    return statistics.median(WINDOW / (instants[at + WINDOW] - instants[at]) for at in starts)
