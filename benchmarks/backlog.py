"""Whether a long queue slows a worker, and what a queued message takes of Redis."""

from __future__ import annotations

import math
import statistics
from collections import Counter
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
        last_claims = []
        for _ in range(lots):
            results = noted.starmap((number, 1) for number in range(LOT))
            workers.wait_until_empty(lookout.left, process)
            claims = Counter(one.seq for one in lookout.records(results) if one)
            last_claims.append(claims[max(claims)])
        [instants] = probe.processes()
    lots_of_instants = (instants[at : at + LOT] for at in range(0, len(instants), LOT))
    # From claim to claim: what the last one brought is not followed by another.
    rates = [
        _rate(lot[: LOT - size + 1])
        for lot, size in zip(lots_of_instants, last_claims, strict=True)
    ]
    noted.delay(LOT, 1)
    with looking(bench.url, noted) as lookout:
        fair = FACTOR * len(lookout.message()) + BESIDE
    # The first of them it took while it learnt how quick they are.
    return statistics.median(rates[1:]), fair


def _rate(instants: Sequence[float]) -> float:
    """Return tasks a second; NaN: too few to tell."""
    elapsed = instants[-1] - instants[0]
    return (len(instants) - 1) / elapsed if elapsed else math.nan
