"""What the harness asks of each queue: who it is, how it is run, and a client."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

SLEEPERS = 100  # slots, where tasks only sleep
BURNERS = 2  # slots in each process, where tasks only compute
PREFIX = "BENCH_"
# What a worker's own command is pointed at: module, and the attribute in it.
ENTRY = "benchmarks.peers.entry"
APP = f"{ENTRY}:app"

Call = tuple[int, int]
Kind = Literal["def", "async def"]


class WrongError(Exception):
    """A result is not the one that the task returned."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where and how the processes of one measurement work; it travels by variables."""

    peer: str
    url: str
    results: bool = True
    # How many tasks a worker process may run at a time.
    slots: int = 1

    def variables(self) -> dict[str, str]:
        """Return what a process is started with, for `here()` in it."""
        fields = dataclasses.asdict(self)
        return {
            PREFIX + name.upper(): str(int(value) if value in (True, False) else value)
            for name, value in fields.items()
        }

    @classmethod
    def here(cls) -> Place:
        """Read the variables of this process."""
        get = os.environ.__getitem__
        return cls(
            get(PREFIX + "PEER"),
            get(PREFIX + "URL"),
            get(PREFIX + "RESULTS") == "1",
            int(get(PREFIX + "SLOTS")),
        )


class Blocking(Protocol):
    """A producer that calls and waits; handles are whatever the peer gives."""

    # What the worker's command loads.
    app: Any

    def call(self, task: str, x: int, y: int) -> Any:
        """Enqueue in the peer's ordinary way."""

    def many(self, task: str, calls: Sequence[Call]) -> Sequence[Any]:
        """Enqueue by the peer's call for many."""

    def values(self, handles: Sequence[Any]) -> Sequence[Any]:
        """Wait for all, and return what they returned, in order."""

    def close(self) -> None:
        """Disconnect."""


class Awaited(Protocol):
    """The same, awaited."""

    app: Any

    async def start(self) -> None:
        """Connect."""

    async def call(self, task: str, x: int, y: int) -> Any:
        """Enqueue in the peer's ordinary way."""

    async def many(self, task: str, calls: Sequence[Call]) -> Sequence[Any]:
        """Enqueue by the peer's call for many."""

    async def values(self, handles: Sequence[Any]) -> Sequence[Any]:
        """Wait for all, and return what they returned, in order."""

    async def close(self) -> None:
        """Disconnect."""


class Peer(Protocol):
    """One row: a queue in one configuration.

    All but `open` works where the queue is not installed.
    """

    name: ClassVar[str]
    # The environment it runs in: `requirements/<project>.txt`.
    project: ClassVar[str]
    # The distribution whose version is told.
    distribution: ClassVar[str]
    kind: ClassVar[Kind]
    # How it was configured for speed, in words.
    settings: ClassVar[str]
    # What becomes of a running task whose worker is killed: does it run again by itself?
    safe: ClassVar[bool]
    safety: ClassVar[str]
    # Tasks a second, roughly: how many the first round takes.
    pace: ClassVar[int] = 1000
    # Slots of a process for tasks that do nothing.
    quick: ClassVar[int] = 100
    # Has it a call that enqueues many at once?
    bulk: ClassVar[bool] = False
    # Workloads that it is not measured on, and why.
    omits: ClassVar[Mapping[str, str]] = {}

    def slots(self, task: str) -> int:
        """Return how many of these tasks each process runs at a time."""
        return {"nap": SLEEPERS, "burn": BURNERS}.get(task, self.quick)

    def commands(self, processes: int, task: str) -> list[list[str]]:
        """Return the commands that together are this many worker processes."""
        raise NotImplementedError

    def open(self, place: Place) -> Blocking | Awaited:
        """Make the app and its client; only in an environment that has the queue."""
        raise NotImplementedError


def every(words: str, processes: int = 1) -> list[list[str]]:
    """Return one command, so many times: for peers whose worker is a single process."""
    return [words.split() for _ in range(processes)]
