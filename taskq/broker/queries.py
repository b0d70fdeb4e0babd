"""The read side: what people and futures ask. Never on the hot path, changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from taskq.broker import keys, scripts
from taskq.broker.commands import Command
from taskq.broker.records import UNREADABLE, Record, parse
from taskq.config import MOST_PARTITIONS


class Look(msgspec.Struct, frozen=True):
    """One message as Redis knows it."""

    # None: Redis does not know the id.
    record: Record | None
    # Its bytes, unverified, where it is scheduled or running; else empty.
    message: bytes
    due_ms: int | None
    # What people call the worker that runs it.
    worker: str
    # False: it waits, and no worker knows its task. None: it does not wait, or who knows.
    known: bool | None = None

    def __repr__(self) -> str:
        """Show the state, and no bytes."""
        return f"Look({self.record!r}, {len(self.message)} bytes)"


class Letter(msgspec.Struct, frozen=True):
    """One dead letter as Redis has it: nothing in it is verified."""

    id: bytes
    # Milliseconds since the epoch, as Redis writes them.
    died: bytes
    # The ready list its message was taken from.
    lane: str
    # How it ended: the terminal record.
    record: Record
    message: bytes


class TaskSurvey(msgspec.Struct):
    """How many messages of a task are where."""

    queued: int = 0
    scheduled: int = 0
    running: int = 0
    # Whether some live worker knows the task.
    known: bool = True


class WorkerSurvey(msgspec.Struct, frozen=True):
    """One child whose lease runs."""

    name: str
    # Seconds.
    lease_left: float
    running: int


class Survey(msgspec.Struct, frozen=True):
    """What is in one queue."""

    queue: str
    tasks: dict[str, TaskSurvey]
    workers: list[WorkerSurvey]
    # How many of the scheduled are due.
    due: int
    # How many messages were ever refused, expired, or claimed without a record, and how many
    # orders were not obeyed.
    counts: dict[str, int]


def look(base: str, id: str, task: str | None) -> Command[Look]:
    """Return what is known of one message; `task` as far as its handle knows it."""
    return Command(scripts.load("look"), base, (id, task or ""), _look)


def survey(base: str, queue: str) -> Command[Survey]:
    """Return what is in a queue, by task, and who serves it."""
    return Command(scripts.load("survey"), base, (), lambda reply: _survey(queue, reply))


def joined(queue: str, surveys: Sequence[Survey]) -> Survey:
    """Return what is in all partitions of a queue together; a child serves all of them."""
    tasks: dict[str, TaskSurvey] = {}
    workers: dict[tuple[str, int], WorkerSurvey] = {}
    counts: dict[str, int] = {}
    for one in surveys:
        for name, some in one.tasks.items():
            task = tasks.setdefault(name, TaskSurvey())
            task.queued += some.queued
            task.scheduled += some.scheduled
            task.running += some.running
            task.known = task.known and some.known
        alike: dict[str, int] = {}
        for worker in one.workers:
            alike[worker.name] = number = alike.get(worker.name, 0) + 1
            known = workers.get((worker.name, number), WorkerSurvey(worker.name, 0.0, 0))
            left = max(known.lease_left, worker.lease_left)
            running = known.running + worker.running
            workers[worker.name, number] = WorkerSurvey(worker.name, left, running)
        for what, count in one.counts.items():
            counts[what] = counts.get(what, 0) + count
    due = sum(one.due for one in surveys)
    return Survey(queue, dict(sorted(tasks.items())), list(workers.values()), due, counts)


def read_count(raw: bytes | None) -> int:
    """Return how many partitions Redis says; what cannot be a number of them counts as one."""
    count = int(raw) if raw and raw.isdigit() and len(raw) <= len(str(MOST_PARTITIONS)) else 1
    return count if 1 <= count <= MOST_PARTITIONS else 1


def letters(
    base: str, age_ms: int, skip: int, most: int, id: bytes = b""
) -> Command[tuple[list[Letter], int | None]]:
    """Return a page of dead letters, newest first, or the one of an id.

    Reads as those, and how many to skip for the next page; None if there is none.
    """
    return Command(scripts.load("letters"), base, (age_ms, skip, most, id), _letters)


def _letters(reply: Any) -> tuple[list[Letter], int | None]:
    following, *rest = reply
    found = zip(rest[::3], rest[1::3], rest[2::3], strict=True)
    return [_letter(*one) for one in found], int(following) if following else None


def _letter(id: bytes, died: bytes, raw: bytes) -> Letter:
    """Split a letter; `lua/lib/dead.lua` draws it."""
    at, until, record = 3, len(raw), UNREADABLE
    try:
        at = 3 + int(raw[:3])
        until = at + 8 + int(raw[at : at + 8])
        record = parse(raw[at + 8 : until])
    except ValueError:
        record = UNREADABLE
    if record is UNREADABLE:
        return Letter(id, died, "", Record(b"r", tail=b"an unreadable letter"), raw)
    return Letter(id, died, raw[3:at].decode(errors="backslashreplace"), record, raw[until:])


def _look(reply: Any) -> Look:
    record, message, due, worker, known = reply
    return Look(
        parse(record) if record else None,
        message,
        int(float(due)) if due else None,
        worker.decode(errors="replace"),
        {b"y": True, b"n": False}.get(known),
    )


def _survey(queue: str, reply: Any) -> Survey:
    now_ms, lanes, waiting, running, workers, known, counts, due = reply
    knows = {_task_of(name) for name in known}
    tasks: dict[str, TaskSurvey] = {}

    def task(name: bytes) -> TaskSurvey:
        text = _task_of(name)
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
        [one for one in _workers(workers, int(now_ms)) if one.lease_left > 0],
        int(due),
        {name.decode(): int(count) for name, count in _pairs(counts)},
    )


def _task_of(lane: bytes) -> str:
    """Return the task of a lane, or the name of the task where suspects wait for it."""
    return lane.decode(errors="replace").partition(":")[0].removeprefix(keys.apart(""))


def _workers(flat: Sequence[Any], now_ms: int) -> Iterable[WorkerSurvey]:
    for name, expiry, running in zip(flat[::3], flat[1::3], flat[2::3], strict=True):
        left = (float(expiry) - now_ms) / 1000
        yield WorkerSurvey(name.decode(errors="replace"), left, int(running))


def _pairs(flat: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(flat[::2], flat[1::2], strict=True))
