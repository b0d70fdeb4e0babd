"""streaq, on uvloop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.peers import peer, work
from benchmarks.peers.adapters.windows import gathered

# With 100 at a time its waits for results time out.
WINDOW = 50


class Streaq(peer.Peer):
    name = "streaq"
    project = "streaq"
    distribution = "streaq"
    kind: peer.Kind = "async def"
    settings = (
        "32 tasks at a time, 100 where they sleep; silent; 50 results awaited at a time; uvloop"
    )
    safe = True
    safety = "runs again after 60 s without renewal"
    pace = 800
    quick = 32
    bulk = True

    def commands(self, processes: int, task: str) -> list[list[str]]:
        del task
        return peer.every(f"streaq run {peer.APP} -w {processes}")

    def open(self, place: peer.Place) -> peer.Awaited:
        return Client(place)


class Client:
    def __init__(self, place: peer.Place) -> None:
        from streaq import Worker

        self.app = Worker(
            redis_url=place.url, concurrency=place.slots, anyio_kwargs={"use_uvloop": True}
        )
        ttl = 600 if place.results else 0
        self._tasks = {
            name: self.app.task(name=name, silent=True, ttl=ttl)(function)
            for name, function in work.TASKS["async def"].items()
        }

    async def start(self) -> None:
        await self.app.__aenter__()

    async def call(self, task: str, x: int, y: int) -> Any:
        return await self._tasks[task].enqueue(x, y)

    async def many(self, task: str, calls: Sequence[peer.Call]) -> Sequence[Any]:
        handles = [self._tasks[task].enqueue(x, y) for x, y in calls]
        await self.app.enqueue_many(handles)
        return handles

    async def values(self, handles: Sequence[Any]) -> Sequence[Any]:
        return await gathered(self._value, handles, WINDOW)

    async def _value(self, handle: Any) -> Any:
        return (await handle.result(60)).result

    async def close(self) -> None:
        await self.app.__aexit__(None, None, None)
