"""Whether slots are kept busy by tasks that take their time: sleeping, computing, mixed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from benchmarks import workers
from benchmarks.case import Bench
from benchmarks.lookout import QUEUE, looking
from benchmarks.peers.peer import BURNERS, SLEEPERS
from benchmarks.peers.probe import Reader
from benchmarks.peers.work import BURN_SECONDS, NAP_SECONDS
from benchmarks.tasks import app, burn, nap, nap_async, rest
from benchmarks.trips import percentile
from taskq.model import outcome
from taskq.model.signing import Domain

PROCESSES = 2
# The open loop: so many messages a second, and one in so many that sleeps so long.
EVERY = 1 / 200
LONG_ONE_IN, LONG_SECONDS = 100, 0.5


def _run(bench: Bench, task: Any, n: int, slots: int, processes: int = 1) -> tuple[float, float]:
    """Run `n` of a task that notes its instants; return seconds taken, and tasks a second."""
    results = task.starmap((number, 1) for number in range(n))
    with (
        Reader(n) as probe,
        looking(bench.url, task) as lookout,
        workers.taskq_worker(slots, processes, probe.variables()) as process,
    ):
        # Seldom: who asks is in the way. The tasks note their instants themselves.
        workers.wait_until_empty(lookout.left, process, every=0.05)
        lookout.check(results)
        return probe.elapsed(), probe.rate(processes)


def _sleeps(bench: Bench) -> int:
    return bench.count(2000) // SLEEPERS * SLEEPERS or SLEEPERS


def sleeping_threads(bench: Bench) -> Sequence[float]:
    """Return the seconds from the start of the first sleep to the end of the last."""
    return (_run(bench, nap, _sleeps(bench), SLEEPERS)[0] + NAP_SECONDS,)


def sleeping_coroutines(bench: Bench) -> Sequence[float]:
    return (_run(bench, nap_async, _sleeps(bench), 8)[0] + NAP_SECONDS,)


def ideal_sleep(bench: Bench) -> Sequence[float]:
    return (_sleeps(bench) / SLEEPERS * NAP_SECONDS,)


def computing(bench: Bench) -> Sequence[float]:
    """Return tasks a second, where each needs a processor for 5 ms; two processes."""
    return (_run(bench, burn, bench.count(600), BURNERS, PROCESSES)[1],)


def ideal_computing(_bench: Bench) -> Sequence[float]:
    return (PROCESSES / BURN_SECONDS,)


def mixed(bench: Bench) -> Sequence[float]:
    """Send at a fixed pace, whatever becomes of it; a few block their thread for long.

    Return, for the 99th of 100: milliseconds from claim to start, and from call to start;
    and how many claims a message took.
    """
    n = bench.count(1600)
    with workers.taskq_worker() as process, looking(bench.url, rest) as lookout:
        workers.warm(process)
        begun, results = time.perf_counter(), []
        for number in range(n):
            time.sleep(max(0.0, begun + number * EVERY - time.perf_counter()))
            results.append(rest.delay(0.0 if number % LONG_ONE_IN else LONG_SECONDS))
        workers.wait_until_empty(lookout.left, process)
        lookout.check(results)
        records = lookout.records(results)
    seal = app.seal(Domain.RESULT, QUEUE)
    claimed, called, claims = [], [], 0
    for result, record in zip(results, records, strict=True):
        assert record is not None  # it was checked
        bound_to = result.wire_id.encode() + record.worker + record.seq
        report = outcome.read_report(record.tail, seal, bound_to)
        # The fence of a claim is Redis's clock at that moment, in microseconds.
        claimed.append(report.started_ms - record.fence // 1000)
        called.append(report.started_ms - report.enqueued_ms)
        claims += record.claims
    return percentile(claimed, 99), percentile(called, 99), claims / n
