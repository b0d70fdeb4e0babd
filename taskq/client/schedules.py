"""Schedules: calls that are made again and again, at the ticks of a rule.

`app.schedules` makes, shows, changes and removes them. What came from Redis is verified on
reading, and no argument of a call is unpickled.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Generator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Unpack

from taskq.broker import commands, keys, timetable
from taskq.broker.commands import Command, Outgoing
from taskq.broker.timetable import Entry
from taskq.client.periodic import Timing, When, check_schedule, define
from taskq.client.result import Result
from taskq.client.signature import Signature
from taskq.config import nearest
from taskq.errors import (
    BrokerError,
    ConfigError,
    DuplicateMessage,
    EnqueueUncertain,
    Interrupted,
    ScheduleError,
)
from taskq.model import clock, schedule
from taskq.model.cron import zone_of
from taskq.model.retry import aware
from taskq.model.schedule import Definition
from taskq.model.signing import BadSignature, Domain, UnknownKey

if TYPE_CHECKING:
    from taskq.client.app import TaskQ

T = TypeVar("T")
# What a method asks of Redis, one command after the other; both drivers carry it out.
Steps: TypeAlias = Generator[Command[Any], Any, T]

MOST_TICKS = 10_000
MOST_NOTE = 500
# So much may a caller's clock be ahead of Redis's.
_SKEW_MS = 60_000
# Others may change the same schedule at the same time.
_TRIES = 5
_UNPROVEN = (UnknownKey, BadSignature)


@dataclasses.dataclass(frozen=True, slots=True)
class Schedule:
    """What is known of a schedule. Instants are aware: by Redis's clock, in its own zone."""

    name: str
    queue: str
    task: str
    # When it ticks, in words.
    rule: str
    overlap: str
    catch_up: str
    # The next tick; None where it is paused or has ended.
    next_at: datetime | None = None
    # The last tick that was fired.
    last_at: datetime | None = None
    # The message that was enqueued last; `app.result(last_id)` is the handle on it.
    last_id: str | None = None
    paused: bool = False
    # What whoever paused it said.
    note: str | None = None
    # The module whose code declares it; None for one made at run time.
    declared_by: str | None = None
    # How many messages were enqueued; how many ticks were left out because the message before
    # was not over; how many because nobody had been there to fire them.
    fired: int = 0
    skipped: int = 0
    missed: int = 0
    # Why no worker fires it, where none does.
    obstacle: str | None = None


class Schedules:
    """The schedules of an app. A name may be `<name>@<queue>` as well, where it is not alone."""

    def __init__(self, app: TaskQ) -> None:
        self._app = app

    def add(self, name: str, call: Signature[Any], /, **when: Unpack[When]) -> Schedule:
        """Make a schedule of a call, `task.s(...)`, or change it; what it fired is kept.

        Raises:
            ConfigError, ValueError, TypeError: a rule that cannot work; the text says why.
            ScheduleError: a worker's code declares it, or it is on another queue.
            SerializationError: the call cannot be written.

        """
        return self._run(self._add(name, call, when))

    async def aadd(self, name: str, call: Signature[Any], /, **when: Unpack[When]) -> Schedule:
        """Make a schedule of a call, or change it; as `add`, awaited."""
        return await self._arun(self._add(name, call, when))

    def list(self, queue: str | None = None) -> _Schedules:
        """Return the schedules of a queue, or of all that the app declares, by name."""
        return self._run(self._list(queue))

    async def alist(self, queue: str | None = None) -> _Schedules:
        """Return the schedules of a queue; as `list`, awaited."""
        return await self._arun(self._list(queue))

    def get(self, name: str) -> Schedule:
        """Return one schedule; `ScheduleError` names the nearest if there is none."""
        return self._run(self._get(name))

    async def aget(self, name: str) -> Schedule:
        """Return one schedule; as `get`, awaited."""
        return await self._arun(self._get(name))

    def pause(self, name: str, note: str = "") -> None:
        """Fire its ticks no more until it is resumed; the note is for people."""
        self._run(self._pause(name, note))

    async def apause(self, name: str, note: str = "") -> None:
        """Fire its ticks no more; as `pause`, awaited."""
        await self._arun(self._pause(name, note))

    def resume(self, name: str) -> None:
        """Fire the ticks of a paused schedule from now on."""
        self._run(self._resume(name))

    async def aresume(self, name: str) -> None:
        """Fire the ticks of a paused schedule; as `resume`, awaited."""
        await self._arun(self._resume(name))

    def remove(self, name: str) -> None:
        """Remove a schedule; what it has enqueued stays.

        Raises:
            ScheduleError: there is none, or the code of a worker that lives declares it.

        """
        self._run(self._remove(name))

    async def aremove(self, name: str) -> None:
        """Remove a schedule; as `remove`, awaited."""
        await self._arun(self._remove(name))

    def run_now(self, name: str) -> Result[Any]:
        """Enqueue its call at once, paused or not, whatever its overlap says.

        Calls within one millisecond are one.
        """
        return self._run(self._run_now(name))

    async def arun_now(self, name: str) -> Result[Any]:
        """Enqueue its call at once; as `run_now`, awaited."""
        return await self._arun(self._run_now(name))

    def backfill(self, name: str, start: datetime, end: datetime) -> _Results:
        """Enqueue the messages of all ticks from `start` until before `end`, in the past.

        A tick whose message is known is not fired again: for a day after that was over.

        Raises:
            ValueError: naive datetimes, a span in the future, or more than 10,000 ticks.

        """
        return self._run(self._backfill(name, start, end))

    async def abackfill(self, name: str, start: datetime, end: datetime) -> _Results:
        """Enqueue the messages of all ticks of a span; as `backfill`, awaited."""
        return await self._arun(self._backfill(name, start, end))

    def next(self, name: str, n: int = 5) -> _Instants:
        """Return the next ticks, though it be paused."""
        return self._run(self._next(name, n))

    async def anext(self, name: str, n: int = 5) -> _Instants:
        """Return the next ticks; as `next`, awaited."""
        return await self._arun(self._next(name, n))

    def _run(self, steps: Steps[T]) -> T:
        reply: Any = None
        try:
            while True:
                command = steps.send(reply)
                try:
                    reply = self._app.broker.run(command)
                except BrokerError as error:
                    steps.throw(error)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def _arun(self, steps: Steps[T]) -> T:
        reply: Any = None
        try:
            while True:
                command = steps.send(reply)
                try:
                    reply = await self._app.abroker().run(command)
                except BrokerError as error:
                    steps.throw(error)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def _add(self, name: str, call: Signature[Any], when: When) -> Steps[Schedule]:
        if not isinstance(call, Signature):  # pyright: ignore[reportUnnecessaryIsInstance] - people pass anything
            msg = f"a schedule is of a call, task.s(...), not of {type(call).__name__}"
            raise TypeError(msg)
        if call.app is not self._app:
            msg = f"{call.task} is of the app {call.app.name!r}: add it there"
            raise ConfigError(msg)
        check_schedule(name)
        queue = self._app.check_queue(call.queue)
        raw = define(self._app, name, call, Timing.of(when), created_ms=clock.now_ms())
        places = yield from self._places(name, self._app.queues)
        for other, _ in places:
            if other != queue:
                msg = f"there is a schedule {name!r} on the queue {other!r}: remove it first"
                raise ScheduleError(msg)
        definition = self._read(Entry(name.encode(), raw, None), queue)
        yield from self._put(queue, name, raw, definition)
        _, entry = yield from self._entry(name, queue)
        return self._told(entry, queue)

    def _put(self, queue: str, name: str, raw: bytes, definition: Definition) -> Steps[None]:
        base = keys.base(self._app.name, queue)
        for _ in range(_TRIES):
            now_ms, _, entries = yield timetable.plans(base, names=[name])
            entry = entries[0] if entries else None
            earlier = self._proven(entry, queue) if entry else None
            if earlier is not None and earlier.owner:
                msg = f"the schedule {name!r} is declared in {earlier.owner}: change it there"
                raise ScheduleError(msg)
            tick = timetable.next_tick(name, definition, earlier, entry, now_ms)
            revision = entry.progress.revision if entry and entry.progress else b""
            word = yield timetable.plan(base, name, raw, tick, revision=revision, declared=0)
            if word == "ok":
                return
        raise _busy(name)

    def _list(self, queue: str | None) -> Steps[_Schedules]:
        queues = self._app.queues if queue is None else (self._app.check_queue(queue),)
        found: _Schedules = []
        for one in queues:
            entries = yield from self._all(one)
            found += [self._told(entry, one) for entry in entries]
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

    def _get(self, name: str) -> Steps[Schedule]:
        queue, _, entry = yield from self._find(name)
        return self._told(entry, queue)

    def _pause(self, name: str, note: object) -> Steps[None]:
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

    def _resume(self, name: str) -> Steps[None]:
        for _ in range(_TRIES):
            queue, now_ms, entry = yield from self._find(name)
            definition, progress = self._read(entry, queue), entry.progress
            if progress is None:
                raise _unreadable(name)
            tick = definition.rule.next_after(now_ms)
            times = (tick, definition.rule.due(entry.name, tick)) if tick else (0, 0)
            base = keys.base(self._app.name, queue)
            word = yield timetable.resume(base, entry.name, progress.revision, times)
            if word == "ok":
                return
        raise _busy(name)

    def _remove(self, name: str) -> Steps[None]:
        queue, _, entry = yield from self._find(name)
        word = yield timetable.unplan(keys.base(self._app.name, queue), entry.name)
        if word == "declared":
            definition = self._proven(entry, queue)
            where = definition.owner if definition else "some module"
            msg = (
                f"the schedule {name!r} is declared in {where}, by workers that live: pause it, or "
                "take it out of the code"
            )
            raise ScheduleError(msg)
        if word == "no":
            raise _unknown(name)

    def _run_now(self, name: str) -> Steps[Result[Any]]:
        for _ in range(_TRIES):
            queue, now_ms, entry = yield from self._find(name)
            definition, progress = self._read(entry, queue), entry.progress
            if progress is None:
                raise _unreadable(name)
            seal = self._app.seal(Domain.MESSAGE, queue)
            one = timetable.cast(
                self._app.name, entry.name, definition, now_ms, now_ms, seal, by_hand=True
            )
            base = keys.base(self._app.name, queue)
            try:
                word = yield timetable.trigger(base, entry.name, progress.revision, now_ms, one)
            except Interrupted as error:
                id = self._handle(one, queue).id
                msg = f"{error}; Redis may or may not have accepted {definition.task} {id}"
                raise EnqueueUncertain(msg, id) from error
            if word != "stale":
                return self._handle(one, queue)
        raise _busy(name)

    def _backfill(self, name: str, start: datetime, end: datetime) -> Steps[_Results]:
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
        definition = self._read(entry, queue)
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
        for page, command in commands.send(keys.base(self._app.name, queue), outgoing):
            verdicts = yield command
            for one, verdict in zip(page, verdicts, strict=True):
                if verdict == "x":
                    msg = (
                        f"the id {one.message.envelope.name!r} is in use by another task's message"
                    )
                    raise DuplicateMessage(msg)
        return [self._handle(one, queue) for one in outgoing]

    def _next(self, name: str, n: object) -> Steps[_Instants]:
        if isinstance(n, bool) or not isinstance(n, int):
            msg = f"n must be an int, not {type(n).__name__}"
            raise TypeError(msg)
        if not 1 <= n <= MOST_TICKS:
            msg = f"n must be 1 to {MOST_TICKS:,}, not {n}"
            raise ValueError(msg)
        queue, now_ms, entry = yield from self._find(name)
        rule = self._read(entry, queue).rule
        found: _Instants = []
        tick = rule.next_after(now_ms)
        while tick is not None and len(found) < n:
            found.append(_instant(tick, rule.zone))
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

    def _read(self, entry: Entry, queue: str) -> Definition:
        """Return a definition, verified; `ScheduleError` if it is not proven."""
        try:
            return schedule.read(
                entry.definition, entry.name, self._app.seal(Domain.SCHEDULE, queue)
            )
        except _UNPROVEN as error:
            msg = f"the schedule {entry.name!r} is not to be trusted: {error}"
            raise ScheduleError(msg) from None

    def _proven(self, entry: Entry, queue: str) -> Definition | None:
        try:
            return self._read(entry, queue)
        except ScheduleError:
            return None

    def _handle(self, one: Outgoing, queue: str) -> Result[Any]:
        envelope = one.message.envelope
        return Result(
            self._app,
            envelope.name or "",
            queue,
            wire_id=one.message.id,
            task=envelope.task,
            stored=not envelope.ignore_result,
        )

    def _told(self, entry: Entry, queue: str) -> Schedule:
        """Return what is known of a schedule, in words."""
        try:
            definition = self._read(entry, queue)
        except ScheduleError as error:
            return Schedule(entry.name, queue, "", "", "", "", obstacle=str(error))
        rule, progress = definition.rule, entry.progress
        told = Schedule(
            entry.name, queue, definition.task, str(rule), str(definition.overlap),
            str(definition.catch_up),
            declared_by=definition.owner or None,
        )  # fmt: skip
        if progress is None:
            return dataclasses.replace(
                told, obstacle="what it fired so far cannot be read: add it again"
            )
        before = timetable.message_before(self._app.name, entry.name, progress)
        awaited = progress.tick and entry.due_ms is not None
        return dataclasses.replace(
            told,
            next_at=_instant(progress.tick, rule.zone) if awaited else None,
            last_at=_instant(progress.last, rule.zone) if progress.last else None,
            last_id=None if before is None else keys.address(before, queue),
            paused=progress.paused,
            note=progress.note or None,
            fired=progress.fired,
            skipped=progress.skipped,
            missed=progress.missed,
            obstacle=self._obstacle(entry),
        )

    def _obstacle(self, entry: Entry) -> str | None:
        progress = entry.progress
        if progress and progress.tick and not progress.paused and entry.due_ms is None:
            return "a worker found it not to be trusted: add it again"
        return None


# The method `list` stands before the type.
_Schedules: TypeAlias = list[Schedule]
_Results: TypeAlias = list[Result[Any]]
_Instants: TypeAlias = list[datetime]
_Entries: TypeAlias = list[Entry]
# Queue, Redis's clock, and what is there.
_Places: TypeAlias = list[tuple[str, tuple[int, Entry]]]


def _instant(ms: int, zone: str) -> datetime:
    return clock.instant(ms).astimezone(zone_of(zone))


def _unknown(name: str, known: Sequence[str] = ()) -> ScheduleError:
    return ScheduleError(f"there is no schedule {name!r}{nearest(name, frozenset(known))}")


def _unreadable(name: str) -> ScheduleError:
    return ScheduleError(f"what the schedule {name!r} fired so far cannot be read: add it again")


def _busy(name: str) -> ScheduleError:
    return ScheduleError(f"the schedule {name!r} was changed by others again and again: try again")
