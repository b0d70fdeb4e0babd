"""docket (pydocket), its worker started from Python as its guide shows."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

from benchmarks.peers import peer, work
from benchmarks.peers.adapters.windows import gathered


class Docket(peer.Peer):
    name = "docket"
    project = "docket"
    distribution = "pydocket"
    kind: peer.Kind = "async def"
    settings = (
        "50 tasks at a time, 100 where they sleep; looks every 5 ms (the default of its command, "
        "10 tasks and 100 ms, caps it at 100 tasks/s); 1,000 connections; uvloop, hiredis"
    )
    safe = True
    safety = "runs again when its lease of 5 min is not renewed"
    pace = 1000
    quick = 50
    bulk = True

    def commands(self, processes: int, task: str) -> list[list[str]]:
        del task
        return peer.every(f"python -m {__name__}", processes)

    def open(self, place: peer.Place) -> peer.Awaited:
        return Client(place)


class Client:
    def __init__(self, place: peer.Place) -> None:
        from docket import Docket as App

        # 0: neither the state nor the result is kept.
        kept = dt.timedelta(minutes=10 if place.results else 0)
        # Its guide: at least a connection for each task that runs at a time.
        self.app = App(url=f"{place.url}?max_connections=1000", execution_ttl=kept)
        for name, function in work.TASKS["async def"].items():
            self.app.register(function, names=[name])

    async def start(self) -> None:
        await self.app.__aenter__()

    async def call(self, task: str, x: int, y: int) -> Any:
        return await self.app.add(task)(x, y)

    async def many(self, task: str, calls: Sequence[peer.Call]) -> Sequence[Any]:
        return await self.app.add_many(self.app.call(task)(x, y) for x, y in calls)

    async def values(self, handles: Sequence[Any]) -> Sequence[Any]:
        return await gathered(self._value, handles)

    async def _value(self, handle: Any) -> Any:
        return await handle.get_result(timeout=dt.timedelta(seconds=60))

    async def close(self) -> None:
        await self.app.__aexit__(None, None, None)


async def work_forever(place: peer.Place) -> None:
    """Do what its command does, which offers no uvloop."""
    from docket import Worker

    interval = dt.timedelta(milliseconds=5)
    async with (
        Client(place).app as app,
        Worker(app, concurrency=place.slots, minimum_check_interval=interval) as worker,
    ):
        await worker.run_forever()


if __name__ == "__main__":
    import uvloop

    uvloop.run(work_forever(peer.Place.here()))
