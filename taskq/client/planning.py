"""What each method of `app.schedules` asks of Redis, one command after the other.

Logic without a driver: each generator yields commands, and is sent the replies.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from taskq.broker import commands, keys, timetable
from taskq.broker.commands import Command, Outgoing
from taskq.broker.replication import Unreplicated
from taskq.broker.timetable import Entry
from taskq.client import batch, sending
from taskq.client.outlook import Schedule, instant, proven, read, told
from taskq.client.periodic import Timing, When, check_schedule, define
from taskq.client.result import Result
from taskq.client.signature import Signature
from taskq.config import nearest
from taskq.errors import (
    BrokerError,
    ConfigError,
    EnqueueUncertain,
    Interrupted,
    ScheduleError,
)
from taskq.model import clock
from taskq.model.schedule import Definition
from taskq.model.signing import Domain
from taskq.model.times import aware

if TYPE_CHECKING:
    from taskq.client.app import TaskQ

T = TypeVar("T")
Steps: TypeAlias = Generator[Command[Any], Any, T]

MOST_TICKS = 10_000
MOST_NOTE = 500
# So much may a caller's clock be ahead of Redis's.
_SKEW_MS = 60_000
# Calls by hand in one millisecond get one each of those that follow, of so many.
_CROWDED_MS = 60_000
# Others may change the same schedule at the same time.
_TRIES = 5


class Planning:
    """The steps of the methods of an app's schedules, which say what they do."""

    def __init__(self, app: TaskQ) -> None:
        self._app = app

    def add(self, name: str, call: Signature[Any], when: When) -> Steps[Schedule]:
        if not isinstance(call, Signature):  # pyright: ignore[reportUnnecessaryIsInstance] - people pass anything
            msg = f"a schedule is of a call, task.s(...), not of {type(call).__name__}"
            raise TypeError(msg)
        if call.app is not self._app:
            msg = f"{call.task} is of the app {call.app.name!r}: add it there"
            raise ConfigError(msg)
        name = check_schedule(name)
        queue = self._app.check_queue(call.queue)
        raw = define(self._app, name, call, Timing.of(when), created_ms=clock.now_ms())
        places = yield from self._places(name, self._app.queues)
        for other, _ in places:
            if other != queue:
                msg = f"there is a schedule {name!r} on the queue {other!r}: remove it first"
                raise ScheduleError(msg)
        definition = read(self._app, Entry(name.encode(), raw, None), queue)
        yield from self._put(queue, name, raw, definition)
        _, entry = yield from self._entry(name, queue)
        return told(self._app, entry, queue)

    def _put(self, queue: str, name: str, raw: bytes, definition: Definition) -> Steps[None]:
        base = keys.base(self._app.name, queue)
        for _ in range(_TRIES):
            now_ms, _, entries = yield timetable.plans(base, names=[name])
            entry = entries[0] if entries else None
            earlier = proven(self._app, entry, queue) if entry else None
            if earlier is not None and earlier.owner:
                msg = f"the schedule {name!r} is declared in {earlier.owner}: change it there"
                raise ScheduleError(msg)
            tick = timetable.next_tick(name, definition, earlier, entry, now_ms)
            known = entry.progress if entry else None
            word = yield timetable.plan(base, name, raw, tick, known=known, declared=0)
            if word == "ok":
                return
        raise _busy(name)

    def list(self, queue: str | None) -> Steps[_Schedules]:
        queues = self._app.queues if queue is None else (self._app.check_queue(queue),)
        found: _Schedules = []
        for one in queues:
            entries = yield from self._all(one)
            found += [told(self._app, entry, one) for entry in entries]
        return sorted(found, key=lambda one: (one.name, one.queue))

    def _all(self, queue: str) -> Steps[_Entries]:
        found: dict[str, Entry] = {}
        cursor = b""
        while cursor != b"0":
            _, cursor, page = yield timetable.plans(
                keys.base(self._app.name, queue), cursor or b"0"
            )
            found |= {entry.name: entry for entry in page}
        return list(found.values())

    def get(self, name: str) -> Steps[Schedule]:
        queue, _, entry = yield from self._find(name)
        return told(self._app, entry, queue)

    def pause(self, name: str, note: object) -> Steps[None]:
        if not isinstance(note, str):
            msg = f"note must be a str, not {type(note).__name__}"
            raise TypeError(msg)
        if len(note) > MOST_NOTE:
            msg = f"note: {len(note):,} characters are too many; at most {MOST_NOTE}"
            raise ValueError(msg)
        queue, _, entry = yield from self._find(name)
        word = yield timetable.suspend(keys.base(self._app.name, queue), entry.name, note)
        if word == "no":
            raise _unknown(name)

    def resume(self, name: str) -> Steps[None]:
        for _ in range(_TRIES):
            queue, now_ms, entry = yield from self._find(name)
            definition, progress = read(self._app, entry, queue), entry.progress
            if progress is None:
                raise _unreadable(name)
            tick = definition.rule.next_after(now_ms)
            times = (tick, definition.rule.due(entry.name, tick)) if tick else (0, 0)
            base = keys.base(self._app.name, queue)
            word = yield timetable.resume(base, entry.name, progress.revision, times)
            if word == "ok":
                return
        raise _busy(name)

    def remove(self, name: str) -> Steps[None]:
        queue, _, entry = yield from self._find(name)
        word = yield timetable.unplan(keys.base(self._app.name, queue), entry.name)
        if word == "declared":
            definition = proven(self._app, entry, queue)
            where = definition.owner if definition else "some module"
            msg = (
                f"the schedule {name!r} is declared in {where}, by workers that live: pause it, or "
                "take it out of the code"
            )
            raise ScheduleError(msg)
        if word == "no":
            raise _unknown(name)

    def run_now(self, name: str) -> Steps[Result[Any]]:
        for _ in range(_TRIES):
            queue, now_ms, entry = yield from self._find(name)
            definition, progress = read(self._app, entry, queue), entry.progress
            if progress is None:
                raise _unreadable(name)
            seal = self._app.seal(Domain.MESSAGE, queue)
            at_ms = _free_instant(now_ms, progress.at)
            one = timetable.cast(
                self._app.name, entry.name, definition, at_ms, now_ms, seal, by_hand=True
            )
            base = keys.base(self._app.name, queue)
            command = timetable.trigger(base, entry.name, progress.revision, at_ms, one)
            try:
                word = yield command.lasting(self._app.replicas(definition.task))
            except (Interrupted, Unreplicated) as error:
                raise _uncertain(error, sending.handle(self._app, one, queue)) from error
            if word != "stale":
                return sending.handle(self._app, one, queue)
        raise _busy(name)

    def backfill(self, name: str, start: datetime, end: datetime) -> Steps[_Results]:
        start_ms, end_ms = (
            round(aware(what, value).timestamp() * 1000)
            for what, value in (("start", start), ("end", end))
        )
        if end_ms <= start_ms:
            msg = f"end ({end}) must be after start ({start})"
            raise ValueError(msg)
        queue, now_ms, entry = yield from self._find(name)
        if end_ms > now_ms + _SKEW_MS:
            msg = f"end ({end}) is in the future: what is to come is fired in its time"
            raise ValueError(msg)
        definition = read(self._app, entry, queue)
        found = definition.rule.ticks(start_ms - 1, min(end_ms - 1, now_ms))
        ticks = [*itertools.islice(found, MOST_TICKS + 1)]
        if len(ticks) > MOST_TICKS:
            msg = f"there are more than {MOST_TICKS:,} ticks between {start} and {end}"
            raise ValueError(msg)
        seal = self._app.seal(Domain.MESSAGE, queue)
        outgoing = [
            timetable.cast(self._app.name, entry.name, definition, tick, now_ms, seal)
            for tick in ticks
        ]
        return (yield from self._send(queue, outgoing, self._app.replicas(definition.task)))

    def _send(self, queue: str, outgoing: Sequence[Outgoing], replicas: int) -> Steps[_Results]:
        sent: _Results = []
        for page, command in commands.send(keys.base(self._app.name, queue), outgoing):
            try:
                verdicts = yield command.lasting(replicas)
            except (Interrupted, Unreplicated) as error:
                first = sending.handle(self._app, page[0], queue)
                uncertain = _uncertain(error, first, "; to backfill the span again is safe")
                uncertain.sent = sent
                raise uncertain from error
            except BrokerError as error:
                error.sent = sent
                raise
            for one, verdict in zip(page, verdicts, strict=True):
                if verdict == batch.REFUSED:
                    duplicate = batch.duplicate(one.task, one.name)
                    duplicate.sent = sent
                    raise duplicate
            sent += [sending.handle(self._app, one, queue) for one in page]
        return sent

    def next(self, name: str, n: object) -> Steps[_Instants]:
        if isinstance(n, bool) or not isinstance(n, int):
            msg = f"n must be an int, not {type(n).__name__}"
            raise TypeError(msg)
        if not 1 <= n <= MOST_TICKS:
            msg = f"n must be 1 to {MOST_TICKS:,}, not {n}"
            raise ValueError(msg)
        queue, now_ms, entry = yield from self._find(name)
        rule = read(self._app, entry, queue).rule
        found: _Instants = []
        tick = rule.next_after(now_ms)
        while tick is not None and len(found) < n:
            found.append(instant(tick, rule.zone))
            tick = rule.next_after(tick)
        return found

    def _find(self, name: str) -> Steps[tuple[str, int, Entry]]:
        """Return the queue of a schedule, Redis's clock, and what is there."""
        plain, queue = self._parsed(name)
        queues = self._app.queues if queue is None else (queue,)
        places = yield from self._places(plain, queues)
        if len(places) > 1:
            every = ", ".join(f"{plain}@{one}" for one, _ in places)
            msg = f"there are several schedules {plain!r}: say which, {every}"
            raise ScheduleError(msg)
        if not places:
            known: list[str] = []
            for one in queues:
                entries = yield from self._all(one)
                known += [entry.name for entry in entries]
            raise _unknown(name, known)
        ((found, (now_ms, entry)),) = places
        return found, now_ms, entry

    def _places(self, name: str, queues: Sequence[str]) -> Steps[_Places]:
        found: _Places = []
        for queue in queues:
            base = keys.base(self._app.name, queue)
            now_ms, _, entries = yield timetable.plans(base, names=[name])
            found += [(queue, (now_ms, entry)) for entry in entries]
        return found

    def _entry(self, name: str, queue: str) -> Steps[tuple[int, Entry]]:
        places = yield from self._places(name, (queue,))
        if not places:
            raise _unknown(name)
        return places[0][1]

    def _parsed(self, name: object) -> tuple[str, str | None]:
        if not isinstance(name, str):
            msg = f"schedule name must be a str, not {type(name).__name__}"
            raise TypeError(msg)
        plain, at, queue = name.partition("@")
        return check_schedule(plain), self._app.check_queue(queue) if at else None


# The method `list` stands before the type.
_Schedules: TypeAlias = list[Schedule]
_Results: TypeAlias = list[Result[Any]]
_Instants: TypeAlias = list[datetime]
_Entries: TypeAlias = list[Entry]
# Queue, Redis's clock, and what is there.
_Places: TypeAlias = list[tuple[str, tuple[int, Entry]]]


def _free_instant(now_ms: int, last_ms: int) -> int:
    """Return the first instant from now on at which nothing was enqueued: an id follows from it."""
    return last_ms + 1 if 0 <= last_ms - now_ms < _CROWDED_MS else now_ms


def _uncertain(
    error: Interrupted | Unreplicated, result: Result[Any], remedy: str = ""
) -> EnqueueUncertain:
    if isinstance(error, Unreplicated):
        told = f"if that dies now, {result.id!r} may be lost"
    else:
        told = f"Redis may or may not have accepted {result.id!r}"
    return EnqueueUncertain(f"{error}; {told}{remedy}", result.id)


def _unknown(name: str, known: Sequence[str] = ()) -> ScheduleError:
    return ScheduleError(f"there is no schedule {name!r}{nearest(name, frozenset(known))}")


def _unreadable(name: str) -> ScheduleError:
    return ScheduleError(f"what the schedule {name!r} fired so far cannot be read: add it again")


def _busy(name: str) -> ScheduleError:
    return ScheduleError(f"the schedule {name!r} was changed by others again and again: try again")
