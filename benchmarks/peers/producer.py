"""The producer of one measurement, run where its peer is installed; it prints one JSON object.

`python -m benchmarks.peers.producer ACTION OPTIONS`, the options as JSON.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import inspect
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.peers.catalog import named
from benchmarks.peers.peer import Awaited, Blocking, Call, Place, WrongError

AT_ONCE = 100  # awaited calls in flight
THREADS = 8
LOT = 1000  # calls in one call for many
WARM_CALLS = 20


@dataclasses.dataclass(frozen=True)
class Order:
    """What to do."""

    n: int
    # one, threads, gather, bulk
    mode: str = "one"
    task: str = "add"
    # Make all connections, and fill caches, by some calls before the time runs.
    warm: bool = True
    # Stop a series of round trips after so many seconds.
    limit: float = 3.0


def best_mode(client: Blocking | Awaited, *, bulk: bool) -> str:
    """Return the way to enqueue much whose results can then be awaited.

    Not by threads: Celery's results belong to the thread that made them.
    """
    if bulk:
        return "bulk"
    return "gather" if awaited(client) else "one"


def awaited(client: Blocking | Awaited) -> bool:
    return inspect.iscoroutinefunction(client.call)


def lots(calls: Sequence[Call], size: int) -> list[Sequence[Call]]:
    return [calls[at : at + size] for at in range(0, len(calls), size)]


class BlockingProducer:
    """Carries out orders by a client that blocks."""

    def __init__(self, client: Blocking) -> None:
        self._client = client
        self._threads = concurrent.futures.ThreadPoolExecutor(THREADS)

    def enqueue(self, order: Order) -> list[Any]:
        calls, client = calls_of(order), self._client
        if order.mode == "bulk":
            return [one for lot in lots(calls, LOT) for one in client.many(order.task, lot)]
        if order.mode == "threads":
            shares = lots(calls, -(-len(calls) // THREADS))
            done = self._threads.map(lambda share: self._one_by_one(order.task, share), shares)
            return [one for handles in done for one in handles]
        return self._one_by_one(order.task, calls)

    def _one_by_one(self, task: str, calls: Sequence[Call]) -> list[Any]:
        call = self._client.call
        return [call(task, x, y) for x, y in calls]

    def perform(self, action: str, order: Order) -> dict[str, float]:
        if order.warm and action != "enqueue":
            self.warm_up()
        if order.warm and action != "trips":
            handles = self.enqueue(dataclasses.replace(order, n=AT_ONCE))
            # Without a worker nobody can wait for them.
            _ = action == "enqueue" or self._client.values(handles)
        try:
            return {"enqueue": self.timed, "together": self.together, "trips": self.trips}[action](
                order
            )
        finally:
            self._client.close()

    def warm_up(self) -> None:
        """Wait until the worker answers.

        While it starts, a wrong answer is no error yet: SAQ's first sweep can abort a healthy job.
        """
        with contextlib.suppress(WrongError):
            self.round_trips(Order(WARM_CALLS))
            return
        self.round_trips(Order(WARM_CALLS))

    def timed(self, order: Order) -> dict[str, float]:
        begun = time.perf_counter()
        self.enqueue(order)
        return {"rate": order.n / (time.perf_counter() - begun)}

    def together(self, order: Order) -> dict[str, float]:
        begun = time.perf_counter()
        values = self._client.values(self.enqueue(order))
        elapsed = time.perf_counter() - begun
        check(values, order)
        return {"rate": order.n / elapsed}

    def trips(self, order: Order) -> dict[str, float]:
        return percentiles(self.round_trips(order))

    def round_trips(self, order: Order) -> list[float]:
        times: list[float] = []
        end = time.perf_counter() + order.limit
        while len(times) < order.n and (len(times) < WARM_CALLS or time.perf_counter() < end):
            begun = time.perf_counter()
            [value] = self._client.values([self._client.call("add", 1, 2)])
            times.append((time.perf_counter() - begun) * 1000)
            check([value], Order(1), first=3)
        return times


class AwaitedProducer:
    """The same by a client that is awaited."""

    def __init__(self, client: Awaited) -> None:
        self._client = client

    async def enqueue(self, order: Order) -> list[Any]:
        calls, client, handles = calls_of(order), self._client, list[Any]()
        if order.mode == "bulk":
            for lot in lots(calls, LOT):
                handles += await client.many(order.task, lot)
        elif order.mode == "gather":
            for lot in lots(calls, AT_ONCE):
                handles += await asyncio.gather(*(client.call(order.task, x, y) for x, y in lot))
        else:
            for x, y in calls:
                handles.append(await client.call(order.task, x, y))
        return handles

    async def perform(self, action: str, order: Order) -> dict[str, float]:
        await self._client.start()
        if order.warm and action != "enqueue":
            await self.warm_up()
        if order.warm and action != "trips":
            handles = await self.enqueue(dataclasses.replace(order, n=AT_ONCE))
            # Without a worker nobody can wait for them.
            _ = action == "enqueue" or await self._client.values(handles)
        actions = {"enqueue": self.timed, "together": self.together, "trips": self.trips}
        try:
            return await actions[action](order)
        finally:
            await self._client.close()

    async def warm_up(self) -> None:
        """Do as the one that blocks."""
        with contextlib.suppress(WrongError):
            await self.round_trips(Order(WARM_CALLS))
            return
        await self.round_trips(Order(WARM_CALLS))

    async def timed(self, order: Order) -> dict[str, float]:
        begun = time.perf_counter()
        await self.enqueue(order)
        return {"rate": order.n / (time.perf_counter() - begun)}

    async def together(self, order: Order) -> dict[str, float]:
        begun = time.perf_counter()
        values = await self._client.values(await self.enqueue(order))
        elapsed = time.perf_counter() - begun
        check(values, order)
        return {"rate": order.n / elapsed}

    async def trips(self, order: Order) -> dict[str, float]:
        return percentiles(await self.round_trips(order))

    async def round_trips(self, order: Order) -> list[float]:
        times: list[float] = []
        end = time.perf_counter() + order.limit
        while len(times) < order.n and (len(times) < WARM_CALLS or time.perf_counter() < end):
            begun = time.perf_counter()
            [value] = await self._client.values([await self._client.call("add", 1, 2)])
            times.append((time.perf_counter() - begun) * 1000)
            check([value], Order(1), first=3)
        return times


def calls_of(order: Order) -> list[Call]:
    return [(number, 1) for number in range(order.n)]


def check(values: Sequence[Any], order: Order, first: int = 1) -> None:
    """Raise unless every task returned its sum: a rate with wrong results is no rate."""
    if list(values) != list(range(first, first + order.n)):
        msg = f"{len(values)} results of {order.n} came, or not those that the tasks returned"
        raise WrongError(msg)


def percentiles(times: list[float]) -> dict[str, float]:
    """Return the 50th and the 99th percentile, in milliseconds."""
    times.sort()
    return {
        "p50": times[len(times) // 2],
        "p99": times[min(len(times) - 1, len(times) * 99 // 100)],
    }


def main() -> None:
    action, options = sys.argv[1:]
    place = Place.here()
    peer = named(place.peer)
    client = peer.open(place)
    order = Order(**json.loads(options))
    if order.mode == "best":
        order = dataclasses.replace(order, mode=best_mode(client, bulk=peer.bulk))
    if awaited(client):
        import uvloop  # noqa: PLC0415  # it is where an awaited peer is

        done = uvloop.run(AwaitedProducer(client).perform(action, order))
    else:
        done = BlockingProducer(client).perform(action, order)
    print(json.dumps(done))


if __name__ == "__main__":
    main()
