"""SAQ, on uvloop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.peers import peer, work
from benchmarks.peers.adapters.windows import gathered
from benchmarks.peers.peer import WrongError


class SAQ(peer.Peer):
    name = "saq"
    project = "saq"
    distribution = "saq"
    kind: peer.Kind = "async def"
    settings = "30 jobs at a time, 100 where they sleep; uvloop, hiredis"
    safe = False
    safety = "swept after 60 s; runs again only with `retries` above the default of 1, else aborted"
    pace = 1500
    quick = 30

    def commands(self, processes: int, task: str) -> list[list[str]]:
        del task
        return peer.every(f"saq {peer.ENTRY}.app --workers {processes} -q")

    def open(self, place: peer.Place) -> peer.Awaited:
        return Client(place)


def job(function: Callable[..., Any]) -> Callable[..., Any]:
    async def run(_context: object, *, x: int, y: int) -> Any:
        return await function(x, y)

    return run


class Client:
    def __init__(self, place: peer.Place) -> None:
        import uvloop
        from saq import Queue

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        self._queue = Queue.from_url(place.url)
        # -1: the job is deleted when it is done.
        self._ttl = 600 if place.results else -1
        tasks = work.TASKS["async def"].items()
        self.app = {
            "queue": self._queue,
            "functions": [(name, job(function)) for name, function in tasks],
            "concurrency": place.slots,
        }

    async def start(self) -> None:
        await self._queue.connect()

    async def call(self, task: str, x: int, y: int) -> Any:
        return await self._queue.enqueue(task, x=x, y=y, ttl=self._ttl)

    async def many(self, task: str, calls: Sequence[peer.Call]) -> Sequence[Any]:
        raise NotImplementedError

    async def values(self, handles: Sequence[Any]) -> Sequence[Any]:
        return await gathered(self._value, handles)

    async def _value(self, handle: Any) -> Any:
        # Its own wait can miss the notification.
        while not handle.completed:
            await handle.refresh()
            if not handle.completed:
                await asyncio.sleep(0.001)
        if handle.error:
            raise WrongError(handle.error)
        return handle.result

    async def close(self) -> None:
        await self._queue.disconnect()
