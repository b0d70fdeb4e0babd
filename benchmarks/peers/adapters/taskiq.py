"""taskiq with taskiq-redis, on a list and on a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.peers import peer, work
from benchmarks.peers.adapters.windows import gathered


class List(peer.Peer):
    name = "taskiq list"
    project = "taskiq"
    distribution = "taskiq"
    kind: peer.Kind = "async def"
    settings = (
        "ListQueueBroker; 100 tasks at a time and as many prefetched; arguments are not parsed; "
        "results are polled every 2 ms; uvloop, hiredis"
    )
    safe = False
    safety = "taken off the list before it runs: lost"
    pace = 1200
    broker = "ListQueueBroker"

    def commands(self, processes: int, task: str) -> list[list[str]]:
        slots = self.slots(task)
        sizes = f"-w {processes} --max-async-tasks {slots} --max-prefetch {slots}"
        return peer.every(f"taskiq worker {peer.APP} {sizes} --no-parse --log-level ERROR")

    def open(self, place: peer.Place) -> peer.Awaited:
        return Client(place, self.broker)


class Stream(List):
    name = "taskiq stream"
    settings = List.settings.replace("ListQueueBroker", "RedisStreamBroker")
    safe = True
    safety = "runs again after 10 min idle, also if it is still running"
    broker = "RedisStreamBroker"


class Client:
    def __init__(self, place: peer.Place, broker: str) -> None:
        import taskiq_redis

        self.app = getattr(taskiq_redis, broker)(place.url)
        if place.results:
            backend = taskiq_redis.RedisAsyncResultBackend(place.url, result_ex_time=600)
            self.app = self.app.with_result_backend(backend)
        self._tasks = {
            name: self.app.register_task(function, task_name=name)
            for name, function in work.TASKS["async def"].items()
        }

    async def start(self) -> None:
        await self.app.startup()

    async def call(self, task: str, x: int, y: int) -> Any:
        return await self._tasks[task].kiq(x, y)

    async def many(self, task: str, calls: Sequence[peer.Call]) -> Sequence[Any]:
        raise NotImplementedError

    async def values(self, handles: Sequence[Any]) -> Sequence[Any]:
        return await gathered(self._value, handles)

    async def _value(self, handle: Any) -> Any:
        return (await handle.wait_result(check_interval=0.002, timeout=60)).return_value

    async def close(self) -> None:
        await self.app.shutdown()
