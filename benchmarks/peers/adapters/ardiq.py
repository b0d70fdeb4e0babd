"""ardiq, whose core is written in Rust."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.peers import peer, work
from benchmarks.peers.adapters.windows import gathered


class Ardiq(peer.Peer):
    name = "ardiq"
    project = "ardiq"
    distribution = "ardiq"
    kind: peer.Kind = "async def"
    settings = "100 tasks at a time; the producer on uvloop"
    safe = True
    safety = "runs again after 60 s without renewal"
    pace = 7000
    bulk = True

    def commands(self, processes: int, task: str) -> list[list[str]]:
        del task
        return peer.every(f"ardiq run {peer.APP} -w {processes} -q")

    def open(self, place: peer.Place) -> peer.Awaited:
        return Client(place)


class Client:
    def __init__(self, place: peer.Place) -> None:
        from ardiq import Ardiq as App

        kept = {} if place.results else {"result_ttl_ms": 0}
        self.app = App(place.url, concurrency=place.slots, **kept)
        tasks = work.TASKS["async def"].items()
        self._tasks = {name: self.app.task(name=name)(function) for name, function in tasks}

    async def start(self) -> None:
        """It connects when it is first used."""

    async def call(self, task: str, x: int, y: int) -> Any:
        return await self._tasks[task].enqueue(x, y)

    async def many(self, task: str, calls: Sequence[peer.Call]) -> Sequence[Any]:
        one = self._tasks[task]
        return await self.app.enqueue_many([one.prepare(x, y) for x, y in calls])

    async def values(self, handles: Sequence[Any]) -> Sequence[Any]:
        return await gathered(self._value, handles)

    async def _value(self, handle: Any) -> Any:
        return (await handle.result(timeout=60)).value

    async def close(self) -> None:
        """It has nothing to close."""
