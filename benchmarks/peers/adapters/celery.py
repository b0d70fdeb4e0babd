"""Celery, on the two pools that suit short tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from benchmarks.peers import peer, work

TUNED = (
    "prefetch multiplier 128 (its guide: more for short tasks; 1 for long ones); "
    "no gossip, mingle, heartbeat, events, remote control; hiredis"
)


class Prefork(peer.Peer):
    name = "celery"
    project = "celery"
    distribution = "celery"
    kind: peer.Kind = "def"
    settings = f"prefork, a child for each process; {TUNED}"
    safe = False
    safety = "acknowledged before it runs (`acks_late` is off by default): lost"
    pace = 500
    quick = 1
    omits: ClassVar[Mapping[str, str]] = {"sleeps": "a process for each slot: see `celery threads`"}
    pool = "prefork"

    def slots(self, task: str) -> int:
        return 1 if task == "burn" else super().slots(task)

    def commands(self, processes: int, task: str) -> list[list[str]]:
        return peer.every(self.words(processes * self.slots(task)))

    def words(self, slots: int) -> str:
        quiet = "--without-gossip --without-mingle --without-heartbeat -l ERROR"
        return f"celery -A {peer.APP} worker -P {self.pool} -c {slots} {quiet}"

    def open(self, place: peer.Place) -> peer.Blocking:
        return Client(place)


class Threads(Prefork):
    name = "celery threads"
    settings = f"a worker with 4 threads for each process; {TUNED}"
    quick = 4
    omits: ClassVar[Mapping[str, str]] = {"enqueue": "its producer is that of `celery`"}
    pool = "threads"

    def commands(self, processes: int, task: str) -> list[list[str]]:
        # Each worker has a name of its own.
        words = self.words(self.slots(task))
        return [f"{words} -n worker{number}@%h".split() for number in range(processes)]


class Client:
    def __init__(self, place: peer.Place) -> None:
        from celery import Celery

        backend = place.url if place.results else None
        self.app = Celery("peers", broker=place.url, backend=backend)
        self.app.conf.update(
            task_ignore_result=not place.results,
            worker_prefetch_multiplier=1 if place.slots >= peer.SLEEPERS else 128,
            worker_send_task_events=False,
            worker_enable_remote_control=False,
            worker_hijack_root_logger=False,
            broker_connection_retry_on_startup=True,
        )
        tasks = work.TASKS["def"].items()
        self._tasks = {name: self.app.task(function, name=name) for name, function in tasks}

    def call(self, task: str, x: int, y: int) -> Any:
        return self._tasks[task].delay(x, y)

    def many(self, task: str, calls: Sequence[peer.Call]) -> Sequence[Any]:
        raise NotImplementedError

    def values(self, handles: Sequence[Any]) -> Sequence[Any]:
        from celery.result import ResultSet

        if len(handles) == 1:
            return [handles[0].get(timeout=60)]
        return ResultSet(list(handles)).join_native(timeout=120)

    def close(self) -> None:
        self.app.close()
