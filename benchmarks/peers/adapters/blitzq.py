"""blitzq, in both of its modes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.peers import peer, work
from benchmarks.peers.adapters.windows import gathered


class Reliable(peer.Peer):
    name = "blitzq"
    project = "blitzq"
    distribution = "blitzq"
    kind: peer.Kind = "async def"
    settings = "mode reliable (a stream); 100 tasks at a time; uvloop, hiredis"
    safe = True
    safety = "runs again after 60 s without renewal"
    pace = 8000
    bulk = True
    mode = "reliable"

    def commands(self, processes: int, task: str) -> list[list[str]]:
        sizes = f"-c {self.slots(task)} -w {processes}"
        return peer.every(f"blitzq worker {peer.APP} {sizes} --log-level ERROR")

    def open(self, place: peer.Place) -> peer.Awaited:
        return Client(place, self.mode)


class Fast(Reliable):
    name = "blitzq fast"
    settings = Reliable.settings.replace("reliable (a stream)", "fast (a list)")
    safe = False
    safety = "taken off the list before it runs: lost"
    mode = "fast"


class Client:
    def __init__(self, place: peer.Place, mode: str) -> None:
        from blitzq import Queue

        self.app = Queue(redis_url=place.url, mode=mode, store_results=place.results)
        tasks = work.TASKS["async def"].items()
        self._tasks = {name: self.app.task(name=name)(function) for name, function in tasks}

    async def start(self) -> None:
        """It connects when it is first used."""

    async def call(self, task: str, x: int, y: int) -> Any:
        return await self._tasks[task].enqueue(x, y)

    async def many(self, task: str, calls: Sequence[peer.Call]) -> Sequence[Any]:
        return await self._tasks[task].enqueue_many(calls)

    async def values(self, handles: Sequence[Any]) -> Sequence[Any]:
        return await gathered(self._value, handles)

    async def _value(self, handle: Any) -> Any:
        return await self.app.get_result(handle.id, timeout=60)

    async def close(self) -> None:
        await self.app.close()
