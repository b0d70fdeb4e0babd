"""RQ, with the worker that does not fork."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from benchmarks.peers import peer, work

# Its command reads this module as its settings.
REDIS_URL = os.environ.get(peer.PREFIX + "URL")


class RQ(peer.Peer):
    name = "rq"
    project = "rq"
    distribution = "rq"
    kind: peer.Kind = "def"
    settings = "SimpleWorker, which does not fork for each job; no log line for a job; hiredis"
    safe = False
    safety = (
        "found after its heartbeat ends and moved to the failed jobs; runs again only with `Retry`"
    )
    pace = 200
    quick = 1
    bulk = True
    omits: ClassVar[Mapping[str, str]] = {"sleeps": "one job at a time in a process"}

    def slots(self, task: str) -> int:
        del task
        return 1

    def commands(self, processes: int, task: str) -> list[list[str]]:
        del task
        options = "--quiet --disable-job-desc-logging -w rq.SimpleWorker"
        return peer.every(f"rq worker peers -c {__name__} {options}", processes)

    def open(self, place: peer.Place) -> peer.Blocking:
        return Client(place)


class Client:
    def __init__(self, place: peer.Place) -> None:
        from redis import Redis
        from rq import Queue

        self.app = Queue("peers", connection=Redis.from_url(place.url))
        # 0: the job is deleted when it is done.
        self._ttl = 500 if place.results else 0

    def call(self, task: str, x: int, y: int) -> Any:
        return self.app.enqueue(work.TASKS["def"][task], x, y, result_ttl=self._ttl)

    def many(self, task: str, calls: Sequence[peer.Call]) -> Sequence[Any]:
        function = work.TASKS["def"][task]
        return self.app.enqueue_many(
            [self.app.prepare_data(function, call, result_ttl=self._ttl) for call in calls]
        )

    def values(self, handles: Sequence[Any]) -> Sequence[Any]:
        return [handle.latest_result(timeout=60).return_value for handle in handles]

    def close(self) -> None:
        self.app.connection.close()
