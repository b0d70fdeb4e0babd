"""Which cases there are, in the order of the table, each with the bars for its lines."""

from __future__ import annotations

from benchmarks import (
    backlog,
    delayed,
    drains,
    enqueueing,
    growth,
    idleness,
    payloads,
    slots,
    starts,
    trips,
    wide,
)
from benchmarks.case import Bar, Case, Line

PROTOTYPE = "the prototype"
LEFT = "two processes: processors left"
IDLE = "on 3 nodes: processors idle"
IDLE_BARS = (Bar(most=1, of="value"), Bar(most=0.3, of="value"), Bar(most=50, of="value"))


def _idle_lines(title: str) -> list[Line]:
    figures = ("commands for each, a second", "of a core for each", "memory of a child")
    lines = zip(figures, ("", "%", "MB"), IDLE_BARS, strict=True)
    return [Line(f"{title}: {name}", unit, bar) for name, unit, bar in lines]


ENQUEUEING = (
    Case(
        [Line("enqueue, one by one", "calls/s", Bar(least=1 / 1.6))],
        enqueueing.single,
        enqueueing.bare_single,
        "a bare EVALSHA",
    ),
    Case(
        [
            Line("enqueue, 8 threads at once", "calls/s"),
            Line("8 threads: commands", "a call"),
        ],
        enqueueing.threads,
        enqueueing.one_thread,
        "one thread",
    ),
    Case(
        [
            Line("enqueue, 100 coroutines at once", "calls/s"),
            Line("100 coroutines: commands", "a call"),
        ],
        enqueueing.coroutines,
        enqueueing.one_coroutine,
        "one coroutine",
    ),
    Case(
        [Line("enqueue, in bulk", "calls/s", Bar(least=0.6))],
        enqueueing.bulk,
        enqueueing.bare_bulk,
        PROTOTYPE,
    ),
)
DRAINS = (
    Case(
        [Line("drain, 1 thread", "tasks/s", Bar(least=0.65))],
        drains.one_thread,
        drains.bare_one,
        PROTOTYPE,
    ),
    Case(
        [Line("drain, 8 threads", "tasks/s", Bar(least=0.65))],
        drains.eight_threads,
        drains.bare_eight,
        PROTOTYPE,
    ),
    Case(
        [Line("drain, coroutines", "tasks/s")],
        drains.coroutines,
        drains.bare_one,
        "the prototype, no coroutines",
    ),
    Case(
        [
            Line("drain, two processes", "tasks/s", Bar(least=1.3, unless=LEFT)),
            Line(LEFT, "%", Bar(most=5, of="value", unless="drain, two processes")),
        ],
        drains.two_processes,
        drains.one_process,
        "one process",
    ),
    Case(
        [Line("drain, results off", "tasks/s", Bar(least=1.2))],
        drains.without_results,
        drains.eight_threads,
        "results on",
    ),
    Case(
        [Line("drain, 8 partitions on 3 nodes", "tasks/s", Bar(least=0.6))],
        wide.over_three_nodes,
        wide.on_one_server,
        "one server",
        extra=True,
    ),
    Case(
        [
            Line("on 3 nodes, two processes", "tasks/s", Bar(least=1.5, room=IDLE)),
            Line(IDLE, "%"),
        ],
        wide.two_processes,
        wide.one_process,
        "one process",
        extra=True,
    ),
    Case([Line("produce, run and gather", "tasks/s")], drains.together),
)
TRIPS = (
    Case(
        [
            Line("round trip, p50", "ms", Bar(most=1.5)),
            Line("round trip, p99", "ms"),
            Line("round trip, p99 / p50", "", Bar(most=5, of="value")),
            Line("round trip awaited, p50", "ms", Bar(most=2.2)),
            Line("round trip awaited, p99", "ms"),
            Line("round trip awaited, p99 / p50", "", Bar(most=5, of="value")),
        ],
        trips.round_trip,
        trips.bare_round_trip,
        "the prototype, blocking",
    ),
    Case(
        [Line("on 3 nodes, round trip p50", "ms", Bar(most=1.5)), Line("on 3 nodes, p99", "ms")],
        wide.trip_on_three_nodes,
        wide.trip_on_one_server,
        "one server",
        extra=True,
    ),
    Case(
        [Line("two lists, p50", "ms"), Line("two lists, p99", "ms")],
        trips.alone,
        trips.echo,
        "LPUSH and BLPOP",
        extra=True,
    ),
)
SLOTS = (
    Case(
        [Line("2,000 sleeps of 50 ms, 100 threads", "s", Bar(most=1.1))],
        slots.sleeping_threads,
        slots.ideal_sleep,
        "ideal",
    ),
    Case(
        [Line("2,000 sleeps of 50 ms, 100 coroutines", "s", Bar(most=1.1))],
        slots.sleeping_coroutines,
        slots.ideal_sleep,
        "ideal",
    ),
    Case(
        [Line("5 ms of computing, two processes", "tasks/s", Bar(least=0.92))],
        slots.computing,
        slots.ideal_computing,
        "ideal",
    ),
    Case(
        [
            Line("mixed: claim to start, p99", "ms", Bar(most=100, of="value")),
            Line("mixed: call to start, p99", "ms"),
            Line("mixed: claims", "a message"),
        ],
        slots.mixed,
        once=True,
    ),
)
SIZES = (
    Case(
        [
            Line("drain, 500,000 queued", "tasks/s", Bar(least=0.9)),
            Line("Redis memory of a queued message", "bytes", Bar(most=1)),
        ],
        backlog.deep,
        backlog.shallow,
        "10,000 queued; 1.3 x the list + 120",
        once=True,
    ),
    Case(
        [Line("arguments of 1 MiB", "MB/s", Bar(least=0.35))],
        payloads.largest,
        payloads.largest_set_and_got,
        "SET and GET",
    ),
    Case(
        [
            Line(f"arguments of {size:,} bytes", "MB/s", Bar(least=0.35) if last else None)
            for size, last in zip(payloads.SIZES, (0, 0, 0, 0, 1), strict=True)
        ],
        payloads.passed_on,
        payloads.set_and_got,
        "SET and GET",
        extra=True,
    ),
)
FOOTPRINT = (
    Case(
        [
            Line("import taskq", "ms", Bar(most=1.25)),
            Line("worker: start to first task done", "ms", Bar(most=4)),
        ],
        starts.taskq,
        starts.beneath,
        "importing what is beneath",
    ),
    Case(_idle_lines("10 idle workers"), idleness.ten, once=True),
    Case(_idle_lines("100 idle workers"), idleness.hundred, once=True, extra=True),
    Case(
        [Line("memory, before", "MB"), Line("memory, after 200,000 tasks", "MB")],
        growth.memory,
        once=True,
        extra=True,
    ),
)
DELAYED = (
    Case(
        [
            Line("due at once, p50 beyond a drain", "ms", Bar(most=10, of="value")),
            Line("due at once, p99 beyond a drain", "ms", Bar(most=50, of="value")),
        ],
        delayed.due_at_once,
        once=True,
    ),
    Case(
        [
            Line("due alone, p50", "ms"),
            Line("due alone, p99", "ms", Bar(most=10, of="value")),
        ],
        delayed.due_alone,
        once=True,
    ),
    Case(
        [
            Line("a million waiting: schedule", "calls/s", Bar(least=50_000, of="value")),
            Line("a million waiting: beyond a message", "bytes", Bar(most=400, of="value")),
            Line("a million waiting: worker before", "MB"),
            Line("a million waiting: worker with them", "MB"),
            Line("a million waiting: slowest move of 500", "ms", Bar(most=20, of="value")),
            Line("a million waiting: commands of a child", "a second", Bar(most=1, of="value")),
        ],
        delayed.a_million,
        once=True,
        extra=True,
    ),
)
CASES = (*ENQUEUEING, *DRAINS, *TRIPS, *SLOTS, *SIZES, *FOOTPRINT, *DELAYED)
