"""How fast calls are enqueued: one by one, at the same time, in bulk."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks import servers
from benchmarks.case import Bench
from benchmarks.lookout import Traffic, looking
from benchmarks.prototype import Producer
from benchmarks.tasks import add, app

# What the single enqueue is held against: as many bytes in as many arguments, one write.
PUSH = "redis.call('LPUSH', KEYS[1], ARGV[4]) return 'o'"
AT_ONCE = 100
THREADS = 8


def single(bench: Bench) -> Sequence[float]:
    n = bench.count(4000)
    add.delay(0, 0)
    return (_rate(n, lambda: [add.delay(number, number) for number in range(n)]),)


def bare_single(bench: Bench) -> Sequence[float]:
    """Call a script that pushes bytes made beforehand, with redis-py's own client."""
    n, base = bench.count(4000), bench.place.base
    add.delay(1000, 1000)
    with servers.connect(bench.url) as client, looking(bench.url, add) as lookout:
        raw, sha = lookout.message(), client.script_load(PUSH)

        def call() -> None:
            for _ in range(n):
                client.evalsha(sha, 1, base + "single", add.name, 1, b"", raw)

        return (_rate(n, call),)


def bulk(bench: Bench) -> Sequence[float]:
    calls = [(number, number) for number in range(bench.count(50_000))]
    return (_rate(len(calls), lambda: add.starmap(calls)),)


def bare_bulk(bench: Bench) -> Sequence[float]:
    numbers = range(bench.count(50_000))
    calls: list[object] = [("add", (number, number), {}) for number in numbers]
    producer = Producer(bench.place)
    rate = _rate(len(calls), lambda: producer.enqueue(calls))
    producer.close()
    return (rate,)


def _rate(n: int, call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return n / (time.perf_counter() - begun)


def threads(bench: Bench) -> Sequence[float]:
    """Call from several threads of one process: calls a second, commands a call."""
    return _by_threads(bench, THREADS)


def one_thread(bench: Bench) -> Sequence[float]:
    return _by_threads(bench, 1)


def _by_threads(bench: Bench, count: int) -> Sequence[float]:
    share = bench.count(12_000) // count

    def enqueue(_: int) -> None:
        for number in range(share):
            add.delay(number, number)

    with servers.connect(bench.url) as client, ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda _: add.delay(0, 0), range(count)))
        traffic, begun = Traffic(client), time.perf_counter()
        list(pool.map(enqueue, range(count)))
        elapsed = time.perf_counter() - begun
        return count * share / elapsed, traffic.scripts() / (count * share)


def coroutines(bench: Bench) -> Sequence[float]:
    """Await a hundred calls at a time: calls a second, commands a call."""

    async def enqueue(numbers: Iterable[int]) -> None:
        await asyncio.gather(*(add.adelay(number, number) for number in numbers))

    return _awaited(bench, enqueue)


def one_coroutine(bench: Bench) -> Sequence[float]:
    async def enqueue(numbers: Iterable[int]) -> None:
        for number in numbers:
            await add.adelay(number, number)

    return _awaited(bench, enqueue)


def _awaited(bench: Bench, enqueue: Callable[[Iterable[int]], Awaitable[None]]) -> Sequence[float]:
    lots = bench.count(120, 1)

    async def run() -> tuple[float, float]:
        async with app:
            await enqueue(range(AT_ONCE))
            traffic, begun = Traffic(client), time.perf_counter()
            for _ in range(lots):
                await enqueue(range(AT_ONCE))
            elapsed, calls = time.perf_counter() - begun, lots * AT_ONCE
            return calls / elapsed, traffic.scripts() / calls

    with servers.connect(bench.url) as client:
        return asyncio.run(run())
