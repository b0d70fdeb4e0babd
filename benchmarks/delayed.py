"""Messages that wait for their time: how late they start, what a million of them cost."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Sequence
from typing import Any

import taskq
from benchmarks import servers, workers
from benchmarks.case import Bench
from benchmarks.tasks import add, app, now
from benchmarks.trips import percentile
from taskq import Result
from taskq.broker import claims, keys, queries, scripts
from taskq.broker.claims import Room

BASE = keys.base(app.name, "default")
# From the first call to the instant at which all are due, with 20,000 calls; and from one due
# time to the next.
AHEAD_SECONDS, APART_SECONDS = 4.0, 0.05
# How long the worker is left alone with what waits, before it is weighed; and how long its
# commands are counted then. With less work, less.
REST_SECONDS, LISTEN_SECONDS = 5.0, 20.0
LEAST_SECONDS = 2.5
LOT, CALLS = 50_000, 100
MEGABYTE = 1_000_000
# What one call takes out of the schedule at most.
PAGE = 500
FAR_SECONDS = 7200
# A child's lease, and the search for dead ones, have nothing to do with what waits.
UPKEEP = ("renew", "reclaim")


def due_at_once(bench: Bench) -> Sequence[float]:
    """Let many fall due at one instant; return how late they start, less what a drain takes.

    Each percentile is held against the same one of a drain of as many messages, which were
    queued before the worker began; its clock starts with the first of them.
    """
    calls: list[tuple[()]] = [()] * bench.count(20_000)
    results = now.starmap(calls)
    with workers.taskq_worker() as process:
        drained = _starts(process, results)
    bench.clean()
    with workers.taskq_worker() as process:
        workers.warm(process)
        due = time.time() + max(1.0, AHEAD_SECONDS * bench.scale)
        results = now.options(eta=_instant(due)).starmap(calls)
        if time.time() > due - 0.5:
            msg = "the first were due before the last were scheduled"
            raise workers.Failed(msg)
        late = _starts(process, results)
    return [
        1000 * (percentile(late, part) - due - percentile(drained, part) + drained[0])
        for part in (50, 99)
    ]


def due_alone(bench: Bench) -> Sequence[float]:
    """Let one after the other fall due on a worker that has nothing else to do."""
    with workers.taskq_worker() as process:
        workers.warm(process)
        first = time.time() + 1
        dues = [first + APART_SECONDS * number for number in range(bench.count(200))]
        results = app.enqueue_many(now.options(eta=_instant(due)).s() for due in dues)
        starts = _starts(process, results)
    # On an idle worker the order is that of the due times.
    late = sorted(start - due for start, due in zip(starts, dues, strict=True))
    return [1000 * percentile(late, part) for part in (50, 99)]


def a_million(bench: Bench) -> Sequence[float]:
    """Let a million wait; return what that costs Redis, and that it costs a worker nothing."""
    n = bench.count(1_000_000)
    with servers.connect(bench.url) as client:
        with workers.taskq_worker() as process:
            workers.warm(process)
            without = _memory(process)
            rate, bytes_each = _schedule(client, n)
            time.sleep(REST_SECONDS * min(1.0, bench.scale))
            with_all = _memory(process)
            per_second = _sent(client, max(LEAST_SECONDS, LISTEN_SECONDS * bench.scale))
        slowest = _promote(client, min(CALLS, n // PAGE))
    weights = without / MEGABYTE, with_all / MEGABYTE
    return rate, bytes_each, *weights, 1000 * slowest, per_second


def _schedule(client: Any, n: int) -> tuple[float, float]:
    """Schedule so many; return calls a second, and bytes of Redis beyond each message's own."""
    client.memory_purge()
    before, spent, size = client.info("memory")["used_memory"], 0.0, 0
    for first in range(0, n, LOT):
        later = add.options(countdown=FAR_SECONDS + first // LOT)
        calls = [(number, number) for number in range(first, min(first + LOT, n))]
        begun = time.perf_counter()
        results = later.starmap(calls)
        spent += time.perf_counter() - begun
        size = size or _bytes_of(client, results[-1])
    used = client.info("memory")["used_memory"] - before
    return n / spent, used / n - size


def _bytes_of(client: Any, result: Result[int]) -> int:
    """Return how many bytes the message has: those behind lane and history in its record."""
    record = client.get(keys.record(app.name, "default", result.wire_id))
    return len(record) - record.index(b"TQ1")


def _sent(client: Any, seconds: float) -> float:
    """Return how many commands a second the child sends, but for its upkeep."""
    upkeep = {scripts.load(name).sha.decode() for name in UPKEEP}
    sent, until = 0, time.monotonic() + seconds
    with client.monitor() as monitor:
        while (left := until - time.monotonic()) > 0:
            if monitor.connection.can_read(timeout=left):
                line = monitor.next_command()
                words = line["command"].split()
                ours = line["client_type"] != "lua" and BASE in line["command"]
                sent += ours and upkeep.isdisjoint(words)
    return sent / seconds


def _promote(client: Any, calls: int) -> float:
    """Return the longest of some calls that move as many as one may out of all, seconds."""
    for first in range(0, calls * PAGE, PAGE):
        ids = client.zrange(BASE + "scheduled", first, first + PAGE - 1)
        client.zadd(BASE + "scheduled", dict.fromkeys(ids, 1))
    worker, slowest = b"f" * 32, 0.0
    app.broker.run(claims.enrol(BASE, worker, 60_000, "bench", "none", {}))
    for number in range(1, calls + 1):
        seq = b"%010d" % number
        # Of a worker that has room for all of them, and knows none of their tasks.
        room = Room(threads=PAGE)
        command = claims.exchange(BASE, worker, seq, "none", 60_000, (), room)
        begun = time.perf_counter()
        app.broker.run(command)
        slowest = max(slowest, time.perf_counter() - begun)
    return slowest


def _starts(process: workers.Process, results: Sequence[Result[float]]) -> list[float]:
    """Wait for messages that say when they started; return that, in seconds, in its order."""
    # Seldom: who asks is in the way.
    workers.wait_until_empty(_left, process, every=0.05)
    return sorted(taskq.gather(results, timeout=60))


def _left() -> int:
    task = app.broker.run(queries.survey(BASE, "default")).tasks.get(now.name)
    return task.queued + task.scheduled + task.running if task else 0


def _instant(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


def _memory(process: workers.Process) -> int:
    return sum(process.family().values())
