"""Schedules in Redis: how they are made, changed and fired, and how to read what is there.

`lua/lib/schedules.lua` draws the layout. Nothing read here is verified yet.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from taskq.broker import keys, records, scripts
from taskq.broker.commands import PUBLISH, Argument, Command, Outgoing, first_number, text
from taskq.model import clock, message
from taskq.model.message import Envelope, Message
from taskq.model.schedule import Definition
from taskq.model.signing import Seal

NO_ID = "0" * 32
# What a message of a schedule carries in its headers.
NAME_HEADER, TICK_HEADER = "taskq-schedule", "taskq-tick"
# What one agenda returns, and one page of `plans`.
MOST = 100

_LETTER_AT = 117
# It ends with: it goes on, its tick waits, it is paused.
_SOUND = re.compile(rb"[0-9]{55}[0-9a-fA-F]{32}[0-9]{30}[-wp]")


class Progress(msgspec.Struct, frozen=True):
    """What came of a schedule so far. Instants are milliseconds since the epoch, 0 none."""

    # Another one with each definition.
    revision: bytes
    tick: int
    # The last tick that was fired, and when that was.
    last: int
    at: int
    # The message that was enqueued last; `NO_ID` none.
    id: str
    # How many messages; how many ticks for their overlap; and for being too late.
    fired: int
    skipped: int
    missed: int
    letter: str = "-"
    note: str = ""

    @property
    def place(self) -> bytes:
        """What another definition takes the place of: this one, at this tick."""
        return b"%b%013d" % (self.revision, self.tick)

    @property
    def paused(self) -> bool:
        """Whether its ticks are not fired until it is resumed."""
        return self.letter == "p"

    @property
    def waits(self) -> bool:
        """Whether its tick waits until the message before is over."""
        return self.letter == "w"


class Entry(msgspec.Struct, frozen=True):
    """One schedule as Redis has it."""

    # As Redis has it; no name of ours, perhaps.
    key: bytes
    definition: bytes
    # None: no script wrote what is there.
    progress: Progress | None
    # When its next tick is to be fired; None where none is awaited.
    due_ms: int | None = None
    # Until when some worker's code vouches for it.
    declared_ms: int | None = None

    @property
    def name(self) -> str:
        """The name, fit to be shown."""
        return self.key.decode(errors="backslashreplace")

    def __repr__(self) -> str:
        """Name the schedule, and show no bytes."""
        return f"Entry({self.name!r}, {len(self.definition)} bytes)"


class Agenda(msgspec.Struct, frozen=True):
    """What is due in a queue, and when the next schedule is."""

    now_ms: int
    next_ms: int | None
    # Names that are not there, though somebody's code declares them.
    gone: list[str]
    # Names that nobody's code declares any more.
    lapsed: list[str]
    due: list[Entry]


class Firing(msgspec.Struct, frozen=True):
    """What a schedule does at a tick, in the script's words."""

    # The first letter of `Overlap`.
    overlap: str
    # The order that cancels the message before; empty where none is wanted.
    order: bytes
    # The next tick and when it is due; 0: there is none.
    next_ms: int
    due_ms: int
    # In the order of their ticks; all in one lane, and with one label.
    messages: Sequence[tuple[int, Outgoing]]
    skipped: int = 0
    missed: int = 0


def plan(
    base: str,
    name: str,
    definition: bytes,
    tick: tuple[int, int],
    *,
    known: Progress | None,
    declared: int,
) -> Command[str]:
    """Make a schedule, or change the one that is known. Reads as 'ok' or 'stale'.

    Args:
        base: of the queue.
        name: of the schedule.
        definition: signed.
        tick: the next one, and when it is due; 0 for none.
        known: what it fired so far; None where it must not be there yet.
        declared: for how many milliseconds code vouches for it; 0: it is made at run time.

    """
    place = b"" if known is None else known.place
    arguments = (PUBLISH, name, place, _digits(tick[0]), tick[1], declared, definition)
    return Command(scripts.load("plan"), base, arguments, text, publish_at=0)


def agenda(
    base: str, *, declared: int, skipped: Iterable[bytes] = (), names: Iterable[str] = ()
) -> Command[Agenda]:
    """Return what is due but for `skipped`; vouch for `names` for so many milliseconds.

    With 0 milliseconds nobody is vouched for, and nobody has lapsed.
    """
    skips = list(skipped)
    arguments: list[Argument] = [MOST, declared, len(skips), *skips, *names]
    return Command(scripts.load("agenda"), base, arguments, _agenda)


def fire(base: str, name: str, progress: Progress, firing: Firing) -> Command[tuple[str, int]]:
    """Fire a tick. Reads as 'ok', 'wait' or 'stale', and how many messages were enqueued."""
    lane, label = "", b""
    if firing.messages:
        lane, label = firing.messages[0][1].lane, firing.messages[0][1].label
    arguments: list[Argument] = [
        PUBLISH, name, progress.revision, _digits(progress.tick), progress.id,
        firing.overlap, firing.order, _digits(firing.next_ms), firing.due_ms,
        firing.skipped, firing.missed, lane, label,
    ]  # fmt: skip
    for tick, one in firing.messages:
        arguments += (_digits(tick), one.raw)
    return Command(scripts.load("fire"), base, arguments, _word_and_count, publish_at=0)


def trigger(base: str, name: str, revision: bytes, at_ms: int, one: Outgoing) -> Command[str]:
    """Enqueue a message of a schedule at once. Reads as 'o', 'd' done before, or 'stale'."""
    arguments = (name, revision, _digits(at_ms), one.lane, one.label, one.raw)
    return Command(scripts.load("trigger"), base, arguments, text)


def suspend(base: str, name: str, note: str) -> Command[str]:
    """Fire no more ticks. Reads as 'ok' or 'no'."""
    return Command(scripts.load("suspend"), base, (name, note), text)


def resume(base: str, name: str, revision: bytes, tick: tuple[int, int]) -> Command[str]:
    """Fire ticks again, from this one on, which is due then. Reads as 'ok' or 'stale'."""
    arguments = (PUBLISH, name, revision, _digits(tick[0]), tick[1])
    return Command(scripts.load("resume"), base, arguments, text, publish_at=0)


def unplan(base: str, name: str, definition: bytes = b"") -> Command[str]:
    """Remove a schedule, whatever its definition is, or if it is this one.

    Reads as 'ok', 'no' or 'declared': by the code of a worker that lives.
    """
    return Command(scripts.load("unplan"), base, (name, definition), text)


def distrust(base: str, entries: Iterable[Entry]) -> Command[int]:
    """Fire no more ticks of what is not proven. Reads as how many were still there."""
    parts = tuple(part for one in entries for part in (one.key, one.definition))
    return Command(scripts.load("distrust"), base, parts, first_number)


def plans(
    base: str, cursor: bytes = b"0", names: Sequence[str] = ()
) -> Command[tuple[int, bytes, list[Entry]]]:
    """Return Redis's clock, the cursor of the next page (`0` the end), and schedules."""
    return Command(scripts.load("plans"), base, (cursor, MOST, *names), _plans)


def next_tick(
    name: str, definition: Definition, earlier: Definition | None, entry: Entry | None, now_ms: int
) -> tuple[int, int]:
    """Return the tick that a schedule awaits from now on, and when it is due; 0 for none.

    Where the rule is the one it had, so is the tick, though it may have passed: it was
    missed then. A new rule begins now.
    """
    progress = entry.progress if entry else None
    if earlier is not None and progress and earlier.rule == definition.rule and not progress.paused:
        tick: int | None = progress.tick
    else:
        tick = definition.rule.next_after(now_ms)
    return (tick, definition.rule.due(name, tick)) if tick else (0, 0)


def moment(ms: int) -> str:
    """Return an instant as it stands in ids and headers: ISO 8601, in UTC."""
    text = clock.instant(ms).isoformat(timespec="milliseconds").removesuffix("+00:00")
    return text.removesuffix(".000") + "Z"


def message_name(name: str, at_ms: int, *, by_hand: bool = False) -> str:
    """Return the id by which the message of a tick is known, or one that was asked for then."""
    return f"{name}:now:{at_ms}" if by_hand else f"{name}:{moment(at_ms)}"


def message_before(app: str, name: str, progress: Progress) -> str | None:
    """Return by which id people know what was enqueued last; None where it is not of the schedule.

    What stands in Redis is not signed: only an id that follows from the schedule is believed.
    """
    names = (message_name(name, progress.last), message_name(name, progress.at, by_hand=True))
    return next((one for one in names if message.id_of(app, one) == progress.id), None)


def cast(
    app: str,
    name: str,
    definition: Definition,
    at_ms: int,
    now_ms: int,
    seal: Seal,
    *,
    by_hand: bool = False,
) -> Outgoing:
    """Return the message of a schedule for a tick, or for an instant at which it was asked for.

    It has the same id each time.
    """
    one, id = definition, message_name(name, at_ms, by_hand=by_hand)
    headers = {**(one.headers or {}), NAME_HEADER: name, TICK_HEADER: moment(at_ms)}
    expires_ms = now_ms + one.expires_ms if one.expires_ms else 0
    deadline_ms = now_ms + one.deadline_ms if one.deadline_ms else None
    if deadline_ms:
        expires_ms = min(expires_ms or deadline_ms, deadline_ms)
    envelope = Envelope(
        one.task, now_ms, one.serializer, one.body, id, one.ignore_result, one.result_ttl_ms,
        headers, one.timeout_ms, one.hard_timeout_ms, deadline_ms,
    )  # fmt: skip
    cast = Message(message.id_of(app, id), expires_ms, envelope)
    priority = keys.DEFAULT_PRIORITY if one.priority is None else one.priority
    label = records.label(records.mark_of(one.task), expires_ms)
    return Outgoing(cast, message.encode(cast, seal), keys.lane(one.task, priority), label)


def _digits(ms: int) -> bytes:
    return b"%013d" % ms


def _word_and_count(reply: Any) -> tuple[str, int]:
    return reply[0].decode(), int(reply[1])


def _agenda(reply: Any) -> Agenda:
    now, following, gone, lapsed, *rest = reply
    return Agenda(
        int(now),
        int(following) if following else None,
        [_name(one) for one in gone],
        [_name(one) for one in lapsed],
        [_entry(*one) for one in zip(*[iter(rest)] * 3, strict=True)],
    )


def _plans(reply: Any) -> tuple[int, bytes, list[Entry]]:
    now, cursor, *rest = reply
    return int(now), cursor, [_entry(*one) for one in zip(*[iter(rest)] * 5, strict=True)]


def _entry(
    name: bytes, definition: bytes, state: bytes, due: bytes = b"", declared: bytes = b""
) -> Entry:
    return Entry(name, definition, _progress(state), _instant(due), _instant(declared))


def _name(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace")


def _instant(score: bytes) -> int | None:
    try:
        return int(float(score)) if score else None
    except (ValueError, OverflowError):  # no script wrote that
        return None


def _progress(raw: bytes) -> Progress | None:
    # What the scripts take for none is none here: a plan names what it takes the place of.
    if _SOUND.match(raw) is None:
        return None
    return Progress(
        raw[:16], int(raw[16:29]), int(raw[29:42]), int(raw[42:55]), raw[55:87].decode(),
        int(raw[87:97]), int(raw[97:107]), int(raw[107:_LETTER_AT]),
        raw[_LETTER_AT : _LETTER_AT + 1].decode(),
        raw[_LETTER_AT + 1 :].decode(errors="backslashreplace"),
    )  # fmt: skip
