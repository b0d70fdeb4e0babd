"""What is known of a schedule: read from Redis, verified, and told in words."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from taskq.broker import keys, timetable
from taskq.broker.timetable import Entry
from taskq.errors import ScheduleError
from taskq.model import clock, schedule
from taskq.model.cron import zone_of
from taskq.model.schedule import Definition
from taskq.model.signing import BadSignature, Domain, UnknownKey

if TYPE_CHECKING:
    from taskq.client.app import TaskQ

_UNPROVEN = (UnknownKey, BadSignature)


class Schedule(msgspec.Struct, frozen=True):
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


def read(app: TaskQ, entry: Entry, queue: str) -> Definition:
    """Return a definition, verified; `ScheduleError` if it is not proven."""
    try:
        return schedule.read(entry.definition, entry.name, app.seal(Domain.SCHEDULE, queue))
    except _UNPROVEN as error:
        msg = f"the schedule {entry.name!r} is not to be trusted: {error}"
        raise ScheduleError(msg) from None


def proven(app: TaskQ, entry: Entry, queue: str) -> Definition | None:
    """Return a definition if it is proven."""
    try:
        return read(app, entry, queue)
    except ScheduleError:
        return None


def told(app: TaskQ, entry: Entry, queue: str) -> Schedule:
    """Return what is known of a schedule, in words."""
    try:
        definition = read(app, entry, queue)
    except ScheduleError as error:
        return Schedule(entry.name, queue, "", "", "", "", obstacle=str(error))
    rule, progress = definition.rule, entry.progress
    told = Schedule(
        entry.name, queue, definition.task, str(rule), str(definition.overlap),
        str(definition.catch_up),
        declared_by=definition.owner or None,
    )  # fmt: skip
    if progress is None:
        return msgspec.structs.replace(
            told, obstacle="what it fired so far cannot be read: add it again"
        )
    before = timetable.message_before(app.name, entry.name, progress)
    awaited = progress.tick and entry.due_ms is not None
    return msgspec.structs.replace(
        told,
        next_at=instant(progress.tick, rule.zone) if awaited else None,
        last_at=instant(progress.last, rule.zone) if progress.last else None,
        last_id=None if before is None else keys.address(before, queue),
        paused=progress.paused,
        note=progress.note or None,
        fired=progress.fired,
        skipped=progress.skipped,
        missed=progress.missed,
        obstacle=_obstacle(entry),
    )


def _obstacle(entry: Entry) -> str | None:
    progress = entry.progress
    if progress and progress.tick and not progress.paused and entry.due_ms is None:
        return "a worker found it not to be trusted: add it again"
    return None


def instant(ms: int, zone: str) -> datetime:
    """Return an instant on the clock of a zone."""
    return clock.instant(ms).astimezone(zone_of(zone))
