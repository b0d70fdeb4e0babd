"""Whether a long queue slows a worker, and what a queued message takes of Redis."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks import servers, workers
from benchmarks.case import Bench
from benchmarks.lookout import looking
from benchmarks.peers.probe import Reader
from benchmarks.tasks import noted

LOT = 1000
LOTS = 30
PAGE = 50_000
# Beside the bytes in the list: the record, and the keys of both.
FACTOR, BESIDE = 1.3, 120


def deep(bench: Bench) -> Sequence[float]:
    """Queue half a million; return the rate of the first fifth, and bytes of Redis for each."""
    n = bench.count(500_000, 2 * LOT)
    with looking(bench.url, noted) as lookout, Reader(n) as probe:
        before = servers.used_memory(lookout.client)
        for at in range(0, n, PAGE):
            noted.starmap((number, 1) for number in range(at, min(n, at + PAGE)))
        size = (servers.used_memory(lookout.client) - before) / n
        with workers.taskq_worker(variables=probe.variables()) as process:
            # The first of them it takes while it learns how quick they are.
            workers.wait_for(lambda: probe.count() >= n // 5, process)
            [instants] = probe.processes()
    return _rate(instants[n // 50 : n // 5]), size


def shallow(bench: Bench) -> Sequence[float]:
    """Give a worker that knows them a thousand at a time; and how many bytes would be fair."""
    lots = bench.count(LOTS, 2)
    with (
        looking(bench.url, noted) as lookout,
        Reader(lots * LOT) as probe,
        workers.taskq_worker(variables=probe.variables()) as process,
    ):
        for lot in range(1, lots + 1):
            noted.starmap((number, 1) for number in range(LOT))
            workers.wait_for(lambda lot=lot: probe.count() == lot * LOT, process)
        [instants] = probe.processes()
        workers.wait_until_empty(lookout.left, process)
    rates = [_rate(instants[at : at + LOT]) for at in range(LOT, len(instants), LOT)]
    noted.delay(LOT, 1)
    with looking(bench.url, noted) as lookout:
        fair = FACTOR * len(lookout.message()) + BESIDE
    return statistics.median(rates), fair


def _rate(instants: Sequence[float]) -> float:
    return (len(instants) - 1) / (instants[-1] - instants[0])
