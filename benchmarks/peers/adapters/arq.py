"""arq, on uvloop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.peers import peer, work
from benchmarks.peers.adapters.windows import gathered

QUIET = {"version": 1, "disable_existing_loggers": True}


class Arq(peer.Peer):
    name = "arq"
    project = "arq"
    distribution = "arq"
    kind: peer.Kind = "async def"
    settings = (
        "100 jobs at a time; looks every 5 ms (the default of 0.5 s caps it at 200 jobs/s); "
        "results are polled every 2 ms; no log line for a job; uvloop, hiredis"
    )
    safe = True
    safety = "runs again when the longest job timeout has passed, 310 s by default"
    pace = 1000

    def commands(self, processes: int, task: str) -> list[list[str]]:
        del task
        log = f"{__name__}.QUIET"
        return peer.every(f"arq {peer.ENTRY}.app --custom-log-dict {log}", processes)

    def open(self, place: peer.Place) -> peer.Awaited:
        return Client(place)


def job(function: Callable[..., Any]) -> Callable[..., Any]:
    async def run(_context: object, x: int, y: int) -> Any:
        return await function(x, y)

    return run


class Client:
    def __init__(self, place: peer.Place) -> None:
        import uvloop
        from arq.connections import RedisSettings
        from arq.worker import func

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        keep = 3600 if place.results else 0
        self._settings = RedisSettings.from_dsn(place.url)
        self.app = type(
            "WorkerSettings",
            (),
            {
                "functions": [
                    func(job(function), name=name, keep_result=keep)
                    for name, function in work.TASKS["async def"].items()
                ],
                "redis_settings": self._settings,
                "max_jobs": place.slots,
                "poll_delay": 0.005,
                "log_results": False,
            },
        )

    async def start(self) -> None:
        from arq import create_pool

        self._pool = await create_pool(self._settings)

    async def call(self, task: str, x: int, y: int) -> Any:
        return await self._pool.enqueue_job(task, x, y)

    async def many(self, task: str, calls: Sequence[peer.Call]) -> Sequence[Any]:
        raise NotImplementedError

    async def values(self, handles: Sequence[Any]) -> Sequence[Any]:
        return await gathered(lambda one: one.result(timeout=60, poll_delay=0.002), handles)

    async def close(self) -> None:
        await self._pool.aclose()
