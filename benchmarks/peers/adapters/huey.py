"""Huey, on threads; on processes where tasks compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.peers import peer, work


class Huey(peer.Peer):
    name = "huey"
    project = "huey"
    distribution = "huey"
    kind: peer.Kind = "def"
    settings = (
        "4 threads a process, processes where tasks compute; blocking pop; results notified; "
        "no periodic tasks; hiredis"
    )
    safe = False
    safety = "taken off the list before it runs: lost"
    pace = 1500
    quick = 4

    def commands(self, processes: int, task: str) -> list[list[str]]:
        quiet = "-n -q -d 0.01"
        if task == "burn":
            return peer.every(f"huey_consumer {peer.ENTRY}.app -k process -w {processes} {quiet}")
        words = f"huey_consumer {peer.ENTRY}.app -k thread -w {self.slots(task)} {quiet}"
        return peer.every(words, processes)

    def open(self, place: peer.Place) -> peer.Blocking:
        return Client(place)


class Client:
    def __init__(self, place: peer.Place) -> None:
        from huey import RedisHuey

        wanted = place.results
        self.app = RedisHuey("peers", url=place.url, results=wanted, notify_result=wanted)
        tasks = work.TASKS["def"].items()
        self._tasks = {name: self.app.task(name=name)(function) for name, function in tasks}

    def call(self, task: str, x: int, y: int) -> Any:
        return self._tasks[task](x, y)

    def many(self, task: str, calls: Sequence[peer.Call]) -> Sequence[Any]:
        raise NotImplementedError

    def values(self, handles: Sequence[Any]) -> Sequence[Any]:
        return [handle.get(blocking=True, timeout=60) for handle in handles]

    def close(self) -> None:
        self.app.storage.close()
