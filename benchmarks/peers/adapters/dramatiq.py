"""Dramatiq, on threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.peers import peer, work


class Dramatiq(peer.Peer):
    name = "dramatiq"
    project = "dramatiq"
    distribution = "dramatiq"
    kind: peer.Kind = "def"
    settings = (
        "8 threads a process (its default); middleware for results only with results; hiredis"
    )
    safe = True
    safety = "runs again once its worker has been silent for 60 s"
    pace = 1500
    quick = 8

    def slots(self, task: str) -> int:
        return 1 if task == "burn" else super().slots(task)

    def commands(self, processes: int, task: str) -> list[list[str]]:
        sizes = f"-p {processes} -t {self.slots(task)}"
        return peer.every(f"dramatiq {peer.APP} {sizes} --skip-logging")

    def open(self, place: peer.Place) -> peer.Blocking:
        return Client(place)


def silent(function: Callable[..., Any]) -> Callable[..., None]:
    """Return nothing: a value without the middleware is a warning in the log each time."""

    def actor(x: int, y: int) -> None:
        function(x, y)

    return actor


class Client:
    def __init__(self, place: peer.Place) -> None:
        import dramatiq
        from dramatiq.brokers.redis import RedisBroker
        from dramatiq.results import Results
        from dramatiq.results.backends import RedisBackend

        self.app = RedisBroker(url=place.url)
        options = {}
        if place.results:
            self.app.add_middleware(Results(backend=RedisBackend(url=place.url)))
            options = {"store_results": True}
        dramatiq.set_broker(self.app)
        self._tasks = {
            name: dramatiq.actor(
                function if place.results else silent(function), actor_name=name, **options
            )
            for name, function in work.TASKS["def"].items()
        }

    def call(self, task: str, x: int, y: int) -> Any:
        return self._tasks[task].send(x, y)

    def many(self, task: str, calls: Sequence[peer.Call]) -> Sequence[Any]:
        raise NotImplementedError

    def values(self, handles: Sequence[Any]) -> Sequence[Any]:
        return [handle.get_result(block=True, timeout=60_000) for handle in handles]

    def close(self) -> None:
        self.app.close()
