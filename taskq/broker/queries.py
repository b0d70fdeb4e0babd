"""The read side: what people and futures ask. Never on the hot path, changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from taskq.broker import scripts
from taskq.broker.commands import Command
from taskq.broker.records import Record, parse


class Look(msgspec.Struct, frozen=True):
    """One message as Redis knows it."""

    # None: Redis does not know the id.
    record: Record | None
    # Its bytes, unverified, where it is scheduled or running; else empty.
    message: bytes
    due_ms: int | None
    # What people call the worker that runs it.
    worker: str


class TaskSurvey(msgspec.Struct):
    """How many messages of a task are where."""

    queued: int = 0
    scheduled: int = 0
    running: int = 0
    # Whether some live worker knows the task.
    known: bool = True


class WorkerSurvey(msgspec.Struct, frozen=True):
    """One live child."""

    name: str
    # Seconds; negative once it ran out.
    lease_left: float
    running: int


class Survey(msgspec.Struct, frozen=True):
    """What is in one queue."""

    queue: str
    tasks: dict[str, TaskSurvey]
    workers: list[WorkerSurvey]
    # How many of the scheduled are due.
    due: int
    # How many messages were ever refused, expired, or claimed without a record.
    counts: dict[str, int]


def look(base: str, id: str) -> Command[Look]:
    """Return what is known of one message."""
    return Command(scripts.load("look"), base, (id,), _look)


def survey(base: str, queue: str) -> Command[Survey]:
    """Return what is in a queue, by task, and who serves it."""
    return Command(scripts.load("survey"), base, (), lambda reply: _survey(queue, reply))


def _look(reply: Any) -> Look:
    record, message, due, worker = reply
    return Look(
        parse(record) if record else None,
        message,
        int(float(due)) if due else None,
        worker.decode(errors="replace"),
    )


def _survey(queue: str, reply: Any) -> Survey:
    now_ms, lanes, waiting, running, workers, known, counts, due = reply
    knows = {name.decode() for name in known}
    tasks: dict[str, TaskSurvey] = {}

    def task(name: bytes) -> TaskSurvey:
        text = name.decode(errors="replace").partition(":")[0]
        return tasks.setdefault(text, TaskSurvey(known=text in knows))

    for lane, length in _pairs(lanes):
        task(lane).queued += int(length)
    for name, count in _pairs(waiting):
        task(name).scheduled += int(count)
    for name, count in _pairs(running):
        task(name).running += int(count)
    return Survey(
        queue,
        dict(sorted(tasks.items())),
        [_worker(workers[at : at + 3], int(now_ms)) for at in range(0, len(workers), 3)],
        int(due),
        {name.decode(): int(count) for name, count in _pairs(counts)},
    )


def _worker(triple: Sequence[Any], now_ms: int) -> WorkerSurvey:
    name, expiry, running = triple
    return WorkerSurvey(
        name.decode(errors="replace"), (float(expiry) - now_ms) / 1000, int(running)
    )


def _pairs(flat: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(flat[::2], flat[1::2], strict=True))
