"""What workers cost that have nothing to do: commands, processor time, memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from benchmarks import processors, workers
from benchmarks.case import Bench
from benchmarks.lookout import Traffic, looking
from benchmarks.tasks import add

MEGABYTE = 1_000_000
# Until the last of what a start entails is over.
SETTLE_SECONDS = 3.0
# Until ten more processes are there, all starting at once.
START_SECONDS = 30.0
# Renewals are told apart by leases so long that there are none meanwhile.
LONG_LEASE = {"TASKQ_LEASE": "3600"}


def ten(bench: Bench) -> Sequence[float]:
    """Ten workers of one child each."""
    return _idle(bench, bench.count(10, 1), 1)


def hundred(bench: Bench) -> Sequence[float]:
    """A hundred children, under ten supervisors."""
    return _idle(bench, bench.count(10, 1), bench.count(10, 1))


def _idle(bench: Bench, supervisors: int, children: int) -> Sequence[float]:
    """Return, for one child: commands a second, percent of a core, and MB of memory.

    A core's share includes that of the supervisor; the memory is that of the largest child.
    """
    count = supervisors * children
    with contextlib.ExitStack() as stack:
        lookout = stack.enter_context(looking(bench.url, add))
        started = [
            stack.enter_context(workers.taskq_worker(8, children, LONG_LEASE))
            for _ in range(supervisors)
        ]
        here = START_SECONDS * (1 + count / 10)
        workers.wait_for(lambda: len(lookout.members()) == count, started[0], here)
        time.sleep(bench.seconds(SETTLE_SECONDS, 0.5))
        families = [process.family() for process in started]
        pids = [pid for family in families for pid in family]
        traffic, before, begun = (
            Traffic(lookout.client),
            processors.seconds(pids),
            time.monotonic(),
        )
        time.sleep(bench.seconds(15.0, 2.2))
        elapsed = time.monotonic() - begun
        sent, used = traffic.reads(), processors.seconds(pids) - before
    largest = max(
        size
        for process, family in zip(started, families, strict=True)
        for pid, size in family.items()
        if pid != process.popen.pid
    )
    return sent / elapsed / count, 100 * used / elapsed / count, largest / MEGABYTE
