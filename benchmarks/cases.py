"""What is measured: each case once on taskq and once on the bare prototype."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import servers, workers
from benchmarks.prototype import Place, Producer
from benchmarks.tasks import RUN, add, app
from taskq import Result
from taskq.broker import keys

# What the single enqueue is held against: as many bytes in as many arguments, one write.
PUSH = "redis.call('LPUSH', KEYS[1], ARGV[4]) return 'o'"
MEGABYTE = 1 << 20
CALL = ("add", (1, 2), {})


@dataclasses.dataclass(frozen=True)
class Bench:
    """One run: where, and how much of everything."""

    url: str
    scale: float = 1.0

    def count(self, full: int, least: int = 20) -> int:
        return max(least, round(full * self.scale))

    @property
    def place(self) -> Place:
        """Where the prototype works."""
        return Place(self.url, f"bare:{{{RUN}}}:", os.environ["TASKQ_SECRET"])

    def clean(self) -> None:
        """Delete what this run left on the server."""
        servers.remove(self.url, self.place.base)
        servers.remove(self.url, keys.base(app.name, "default"))


Measure = Callable[[Bench], Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to measure, and the rows of the table that it fills."""

    rows: Sequence[str]
    unit: str
    ours: Measure
    # None: there is nothing to compare with.
    bare: Measure | None = None
    # The ratio we want, in words; of the first row.
    bar: str = ""
    # What we want of each row, where it is no ratio.
    bars: Sequence[str] = ()
    # Too long for every round.
    once: bool = False


def enqueue_single(bench: Bench) -> Sequence[float]:
    n = bench.count(4000)
    add.delay(0, 0)
    begun = time.perf_counter()
    for number in range(n):
        add.delay(number, number)
    return (n / (time.perf_counter() - begun),)


def bare_single(bench: Bench) -> Sequence[float]:
    """Call a script that pushes bytes made beforehand, with redis-py's own client."""
    n, base = bench.count(4000), bench.place.base
    add.delay(1000, 1000)
    with servers.connect(bench.url) as client:
        raw = client.lindex(keys.ready(app.name, "default", add.name), 0)
        sha = client.script_load(PUSH)
        begun = time.perf_counter()
        for _ in range(n):
            client.evalsha(sha, 1, base + "single", add.name, 1, b"", raw)
        return (n / (time.perf_counter() - begun),)


def enqueue_bulk(bench: Bench) -> Sequence[float]:
    calls = [(number, number) for number in range(bench.count(50_000))]
    begun = time.perf_counter()
    add.starmap(calls)
    return (len(calls) / (time.perf_counter() - begun),)


def bare_bulk(bench: Bench) -> Sequence[float]:
    numbers = range(bench.count(50_000))
    calls: list[object] = [("add", (number, number), {}) for number in numbers]
    producer = Producer(bench.place)
    begun = time.perf_counter()
    producer.enqueue(calls)
    elapsed = time.perf_counter() - begun
    producer.close()
    return (len(calls) / elapsed,)


def drain(bench: Bench, threads: int) -> Sequence[float]:
    """Queue everything, then start a worker; every outcome must be there at the end."""
    results = add.starmap((number, number) for number in range(bench.count(50_000)))
    with servers.connect(bench.url) as client, workers.taskq_worker(threads) as process:
        rate = workers.rate_of_drain(lambda: _left(client), len(results), process)
        _check(_succeeded(client, results), len(results), _left(client))
    return (rate,)


def bare_drain(bench: Bench, threads: int) -> Sequence[float]:
    place = bench.place
    producer = Producer(place)
    ids = producer.enqueue(("add", (number, number), {}) for number in range(bench.count(50_000)))

    def left() -> int:
        with client.pipeline() as pipe:
            ready, running = pipe.llen(place.ready).hlen(place.running).execute()
        return int(ready + running)

    with (
        servers.connect(bench.url) as client,
        workers.bare_worker(bench.url, place.base, str(threads)) as process,
    ):
        rate = workers.rate_of_drain(left, len(ids), process)
        _check(producer.outcomes(ids), len(ids), left())
    producer.close()
    return (rate,)


def round_trip(bench: Bench) -> Sequence[float]:
    """Call and wait, one call at a time, with a worker that has nothing else to do."""
    with workers.taskq_worker() as process:
        warm(process)
        return _percentiles(lambda: add.delay(1, 2).get(timeout=30), bench.count(2000))


def bare_round_trip(bench: Bench) -> Sequence[float]:
    producer = Producer(bench.place)
    with workers.bare_worker(bench.url, bench.place.base, "answer"):
        producer.round_trip(CALL)
        times = _percentiles(lambda: producer.round_trip(CALL), bench.count(2000))
    producer.close()
    return times


def echo(bench: Bench) -> Sequence[float]:
    """Two lists and nothing else: no script, no record of what runs, nothing published."""
    producer = Producer(bench.place)
    with workers.bare_worker(bench.url, bench.place.base, "echo"):
        producer.echo_by_lists(CALL)
        times = _percentiles(lambda: producer.echo_by_lists(CALL), bench.count(2000))
    producer.close()
    return times


def memory(bench: Bench) -> Sequence[float]:
    """Let one worker run many messages, in lots; what it holds must not grow."""
    lots, lot = 10, bench.count(20_000)
    with servers.connect(bench.url) as client, workers.taskq_worker() as process:
        warm(process)
        _run_lot(bench, client, process, bench.count(2000))
        before = process.memory()
        for _ in range(lots):
            _run_lot(bench, client, process, lot)
        after = process.memory()
    return (before / MEGABYTE, after / MEGABYTE)


def _run_lot(bench: Bench, client: Any, process: workers.Process, size: int) -> None:
    results = add.starmap((number, number) for number in range(size))
    workers.wait_until_empty(lambda: _left(client), process)
    _check(_succeeded(client, results), size, _left(client))
    # The results only: the worker is alive, and its lease is among the other keys.
    servers.remove(bench.url, keys.record(app.name, "default", ""))


def warm(process: workers.Process) -> None:
    """Wait until the worker has answered a few calls."""
    for number in range(20):
        result = add.delay(number, number)
        while not result.ready():
            process.check()
            time.sleep(workers.POLL_SECONDS)


def _left(client: Any) -> int:
    """Return how many of the app's messages wait or run; cheap, whatever their number."""
    base = keys.base(app.name, "default")
    with client.pipeline() as pipe:
        pipe.llen(keys.ready(app.name, "default", add.name))
        for worker in client.zrange(base + "workers", 0, -1):
            pipe.hlen(f"{base}running:{worker.decode()}")
        return int(sum(pipe.execute()))


def _succeeded(client: Any, results: Sequence[Result[int]]) -> int:
    """Return how many have the recorded outcome of a task that returned."""
    found = 0
    for at in range(0, len(results), 1000):
        page = results[at : at + 1000]
        names = [keys.record(app.name, "default", one.wire_id) for one in page]
        found += sum(bool(raw) and raw[:1] == b"s" for raw in client.mget(names))
    return found


def _check(outcomes: int, total: int, left: int) -> None:
    if outcomes != total or left:
        msg = f"{outcomes} of {total} outcomes are there, and {left} messages still run"
        raise workers.Failed(msg)


def _percentiles(call: Callable[[], object], n: int) -> Sequence[float]:
    """Return the 50th and the 99th percentile of `n` calls, in milliseconds."""
    times = []
    for _ in range(n):
        begun = time.perf_counter()
        call()
        times.append((time.perf_counter() - begun) * 1000)
    times.sort()
    return percentile(times, 50), percentile(times, 99)


def percentile(ordered: Sequence[float], part: int) -> float:
    """Return the value that so many in a hundred do not exceed."""
    return ordered[min(len(ordered) - 1, len(ordered) * part // 100)]


def _drain_case(threads: int, bar: str) -> Case:
    return Case(
        (f"drain, {threads} thread{'s' * (threads > 1)}",),
        "tasks/s",
        functools.partial(drain, threads=threads),
        functools.partial(bare_drain, threads=threads),
        bar,
    )


CASES = (
    Case(("enqueue, one by one",), "calls/s", enqueue_single, bare_single, ">= 0.6"),
    Case(("enqueue, in bulk",), "calls/s", enqueue_bulk, bare_bulk, ">= 0.4"),
    _drain_case(1, ""),
    _drain_case(8, ">= 0.4"),
    Case(("round trip, p50", "round trip, p99"), "ms", round_trip, bare_round_trip, "<= 2.5"),
    Case(("two lists, p50", "two lists, p99"), "ms", round_trip, echo),
    Case(("memory, before", "memory, after"), "MiB", memory, once=True),
)
