"""What Redis says of the app's messages: how many are left, and how they ended."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks import servers, workers
from benchmarks.tasks import app
from taskq import Result
from taskq.broker import keys, records
from taskq.broker.records import Record

QUEUE = "default"


class Lookout:
    """Looks at one queue of the app, and at one task in it."""

    def __init__(self, client: Any, task: Any) -> None:
        self.client = client
        self._ready = keys.ready(app.name, QUEUE, task.name)
        self._base = keys.base(app.name, QUEUE)

    def queued(self) -> int:
        return int(self.client.llen(self._ready))

    def members(self) -> list[str]:
        """Return the worker processes' ids."""
        return [one.decode() for one in self.client.zrange(self._base + "workers", 0, -1)]

    def left(self) -> int:
        """Return how many wait or run, at one moment; cheap, whatever their number."""
        while True:
            known = self.client.zrange(self._base + "workers", 0, -1)
            with self.client.pipeline() as pipe:
                pipe.zrange(self._base + "workers", 0, -1).llen(self._ready)
                for worker in known:
                    pipe.hlen(f"{self._base}running:{worker.decode()}")
                members, *counts = pipe.execute()
            # One that came meanwhile may have taken all there was.
            if set(members) == set(known):
                return int(sum(counts))

    def message(self) -> bytes:
        """Return the bytes of one that waits."""
        return bytes(self.client.lindex(self._ready, 0))

    def records(self, results: Sequence[Result[Any]]) -> list[Record | None]:
        """Return what Redis knows of each."""
        found: list[Record | None] = []
        for at in range(0, len(results), 1000):
            names = [keys.record(app.name, QUEUE, one.wire_id) for one in results[at : at + 1000]]
            found += [records.parse(raw) if raw else None for raw in self.client.mget(names)]
        return found

    def check(self, results: Sequence[Result[Any]]) -> None:
        """Raise `Failed` unless all of them returned, and none is left."""
        found = sum(one is not None and one.letter == b"s" for one in self.records(results))
        check(found, len(results), self.left())


@contextlib.contextmanager
def looking(url: str, task: Any) -> Iterator[Lookout]:
    with servers.connect(url) as client:
        yield Lookout(client, task)


def check(outcomes: int, total: int, left: int) -> None:
    if outcomes != total or left:
        msg = f"{outcomes} of {total} outcomes are there, and {left} messages still run"
        raise workers.Failed(msg)


class Traffic:
    """What clients sent since it was made. Commands inside scripts are no part of it."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._scripts, self._reads = self._counted()

    def scripts(self) -> int:
        """Return the script calls: all that a producer sends."""
        return self._counted()[0] - self._scripts

    def reads(self) -> int:
        """Return how often the server read from a client: one for each small command."""
        return self._counted()[1] - self._reads - 2  # those of this very look are not theirs

    def _counted(self) -> tuple[int, int]:
        reads = self._client.info("stats")["total_reads_processed"]
        calls = self._client.info("commandstats")
        names = ("cmdstat_evalsha", "cmdstat_eval")
        return sum(calls.get(name, {"calls": 0})["calls"] for name in names), int(reads)
