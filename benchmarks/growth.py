"""Whether a worker holds more and more memory."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import servers, workers
from benchmarks.case import Bench
from benchmarks.lookout import QUEUE, Lookout, looking
from benchmarks.tasks import add, app
from taskq.broker import keys

MEGABYTE = 1_000_000


def memory(bench: Bench) -> Sequence[float]:
    """Let one worker run many messages, in lots; what it holds must not grow."""
    lots, lot = 10, bench.count(20_000)
    with looking(bench.url, add) as lookout, workers.taskq_worker() as process:
        workers.warm(process)
        _run_lot(bench, lookout, process, bench.count(2000))
        before = sum(process.family().values())
        for _ in range(lots):
            _run_lot(bench, lookout, process, lot)
        after = sum(process.family().values())
    return (before / MEGABYTE, after / MEGABYTE)


def _run_lot(bench: Bench, lookout: Lookout, process: workers.Process, size: int) -> None:
    results = add.starmap((number, number) for number in range(size))
    workers.wait_until_empty(lookout.left, process)
    lookout.check(results)
    # The results only: the worker is alive, and its lease is among the other keys.
    servers.remove(bench.url, keys.record(app.name, QUEUE, ""))
