"""taskq itself, by the same rules as its peers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from benchmarks.peers import peer, work

OTHERWISE = "its producer is that of `taskq`"


class TaskQ(peer.Peer):
    name = "taskq"
    project = "taskq"
    distribution = "taskq-redis"
    kind: peer.Kind = "def"
    settings = "defaults: 8 threads a process, pickle, every message and result signed"
    safe = True
    safety = "runs again at once if a process dies, after the lease of 15 s if all do"
    pace = 20_000
    quick = 8
    bulk = True

    def commands(self, processes: int, task: str) -> list[list[str]]:
        slots = self.slots(task)
        sizes = f"-p {processes} -t {slots} --coroutines {slots}"
        return peer.every(f"taskq worker {peer.APP} {sizes} -l ERROR")

    def open(self, place: peer.Place) -> peer.Blocking:
        return BlockingClient(place, self.kind)


class OneThread(TaskQ):
    name = "taskq, 1 thread"
    settings = "one thread a process, else as `taskq`"
    quick = 1
    omits: ClassVar[Mapping[str, str]] = {
        "enqueue": OTHERWISE,
        "round_trip": "measured with 8 threads",
        "together": "measured with 8 threads",
        "sleeps": "measured with 100 threads",
        "cpu": "measured as `taskq`",
    }


class Coroutines(TaskQ):
    name = "taskq async"
    kind: peer.Kind = "async def"
    settings = "defaults: 100 coroutines a process; the producer on uvloop"
    quick = 100

    def open(self, place: peer.Place) -> peer.Awaited:
        return AwaitedClient(place, self.kind)


def make_app(place: peer.Place, kind: peer.Kind) -> tuple[Any, dict[str, Any]]:
    from taskq import TaskQ as App

    app = App("peers", url=place.url)
    tasks = {
        name: app.task(name=name, ignore_result=not place.results)(function)
        for name, function in work.TASKS[kind].items()
    }
    return app, tasks


class BlockingClient:
    def __init__(self, place: peer.Place, kind: peer.Kind) -> None:
        self.app, self._tasks = make_app(place, kind)

    def call(self, task: str, x: int, y: int) -> Any:
        return self._tasks[task].delay(x, y)

    def many(self, task: str, calls: Sequence[peer.Call]) -> Sequence[Any]:
        return self._tasks[task].starmap(calls)

    def values(self, handles: Sequence[Any]) -> Sequence[Any]:
        from taskq import gather

        return gather(handles, timeout=120)

    def close(self) -> None:
        self.app.close()


class AwaitedClient:
    def __init__(self, place: peer.Place, kind: peer.Kind) -> None:
        self.app, self._tasks = make_app(place, kind)

    async def start(self) -> None:
        await self.app.__aenter__()

    async def call(self, task: str, x: int, y: int) -> Any:
        return await self._tasks[task].adelay(x, y)

    async def many(self, task: str, calls: Sequence[peer.Call]) -> Sequence[Any]:
        return await self.app.aenqueue_many(self._tasks[task].s(x, y) for x, y in calls)

    async def values(self, handles: Sequence[Any]) -> Sequence[Any]:
        from taskq import agather

        return await agather(handles, timeout=120)

    async def close(self) -> None:
        await self.app.__aexit__(None, None, None)
