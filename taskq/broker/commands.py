"""One pure function per state change: arguments in, a `Command` out. Nothing here waits.

Those of producers and of people; a worker's are in `claims`, those of schedules in `timetable`.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

import msgspec

from taskq.broker import scripts
from taskq.broker.scripts import Script
from taskq.config import MOST_PARTITIONS
from taskq.model.message import Message

T_co = TypeVar("T_co", covariant=True)
S = TypeVar("S", "Outgoing", "Lot")
Argument: TypeAlias = bytes | str | int

MOST_MESSAGES = 1000
MOST_BYTES = 4 << 20
PUBLISH = "PUBLISH"


class Command(msgspec.Struct, Generic[T_co], frozen=True):
    """A script call as a value: what to send, and how to read the reply."""

    script: Script
    base: str
    arguments: Sequence[Argument]
    read: Callable[[Any], T_co]
    # Where among the arguments the word stands by which it publishes.
    publish_at: int | None = None
    # So many replicas must have what it wrote before its sender believes the reply.
    replicas: int = 0

    def __repr__(self) -> str:
        """Name the script, and show no argument."""
        return f"Command({self.script.name}, {self.base})"

    def publishing(self, word: str) -> Command[T_co]:
        """Return the same call, publishing by another word."""
        if self.publish_at is None or self.arguments[self.publish_at] == word:
            return self
        arguments = list(self.arguments)
        arguments[self.publish_at] = word
        return msgspec.structs.replace(self, arguments=arguments)

    def lasting(self, replicas: int) -> Command[T_co]:
        """Return the same call, to be believed once so many replicas have what it wrote."""
        return msgspec.structs.replace(self, replicas=replicas) if replicas else self


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """A message on its way to Redis."""

    message: Message
    raw: bytes
    # The ready list it will wait in.
    lane: str
    # What its record must say from the first moment; see `records.label`.
    label: bytes = b""
    # None: at once. '+<ms>' from now, or '<ms>' since the epoch, by Redis's clock.
    due: str | None = None

    def __repr__(self) -> str:
        """Name the place, and show no bytes."""
        return f"Outgoing({self.lane}, {len(self.raw)} bytes)"

    @property
    def task(self) -> str:
        """The name of its task."""
        return self.message.envelope.task

    @property
    def name(self) -> str:
        """What people know it by: the text given as its id, or the id."""
        return self.message.envelope.name or self.message.id

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return len(self.raw)


class Lot(msgspec.Struct, frozen=True):
    """Messages on their way that go to one ready list, with one label, at one time."""

    lane: str
    label: bytes
    due: str | None
    raws: list[bytes]

    def __repr__(self) -> str:
        """Name the place, and show no bytes."""
        return f"Lot({self.lane}, {len(self.raws)} messages)"

    @property
    def size(self) -> int:
        """How many bytes they have."""
        return sum(map(len, self.raws))


def enqueue(base: str, outgoing: Sequence[Outgoing]) -> Command[str]:
    """Queue at most 1,000 messages. Reads as one letter each."""
    if len(outgoing) == 1:  # as mostly: there is nothing to put in order
        [one] = outgoing
        return Command(scripts.load("enqueue"), base, (one.lane, one.label, 1, one.raw), text)
    return enqueue_lots(base, map(_alone, outgoing))


def enqueue_lots(base: str, lots: Iterable[Lot]) -> Command[str]:
    """Queue at most 1,000 messages; as `enqueue`."""
    arguments: list[Argument] = []
    for lot in _joined(lots):
        arguments += (lot.lane, lot.label, len(lot.raws))
        arguments += lot.raws
    return Command(scripts.load("enqueue"), base, arguments, text)


def schedule(base: str, outgoing: Sequence[Outgoing]) -> Command[str]:
    """Keep at most 1,000 messages until they are due. Reads as one letter each."""
    return schedule_lots(base, map(_alone, outgoing))


def schedule_lots(base: str, lots: Iterable[Lot]) -> Command[str]:
    """Keep at most 1,000 messages until they are due; as `schedule`."""
    arguments: list[Argument] = []
    for lot in _joined(lots):
        arguments += (lot.lane, lot.due or "+0", lot.label, len(lot.raws))
        arguments += lot.raws
    return Command(scripts.load("schedule"), base, arguments, text)


def reschedule(base: str, id: str, due: str) -> Command[str]:
    """Give a waiting message another time; `due` as of `Outgoing`.

    Reads as 'moved', 'queued', 'running', 'over' or 'unknown'.
    """
    return Command(scripts.load("reschedule"), base, (id, due), text)


def send(
    base: str, outgoing: Sequence[Outgoing]
) -> Iterable[tuple[Sequence[Outgoing], Command[str]]]:
    """Return the commands that send these messages, each with the messages it takes.

    At most 1,000 messages and 4 MiB go into one.
    """
    return _by_pages(base, outgoing, enqueue, schedule)


def send_lots(base: str, lots: Sequence[Lot]) -> Iterable[tuple[Sequence[Lot], Command[str]]]:
    """Return the commands that send at most 1,000 messages, each with the lots it takes.

    At most 4 MiB go into one: a lot of more than that must have one message.
    """
    return _by_pages(base, lots, enqueue_lots, schedule_lots)


def cancel(base: str, id: str, order: bytes) -> Command[str]:
    """Take a message back by a signed order. Reads as 'cancelled', 'told', 'over' or 'unknown'."""
    return Command(scripts.load("cancel"), base, (PUBLISH, id, order), text, publish_at=0)


def expire(base: str, id: str) -> Command[str]:
    """Resolve a message whose expiry passed before it started."""
    return Command(scripts.load("expire"), base, (PUBLISH, id), text, publish_at=0)


def purge(base: str, reason: str, task: str = "") -> Command[tuple[int, bool]]:
    """Throw away queued and scheduled messages, of one task or of all."""
    arguments = (PUBLISH, reason, task)
    return Command(scripts.load("purge"), base, arguments, _count_and_left, publish_at=0)


def forget(base: str, id: str) -> Command[str]:
    """Drop the outcome of a message that is over."""
    return Command(scripts.load("forget"), base, (id,), text)


def widen(base: str, partitions: int) -> Command[int]:
    """Say how many partitions a queue has. Reads as how many that is by now."""
    return Command(scripts.load("widen"), base, (partitions, MOST_PARTITIONS), first_number)


def revive(base: str, id: bytes, died: bytes, lane: str, message: bytes) -> Command[str]:
    """Queue a message in place of a dead letter. Reads as 'o', 'd' done before, or 'no'."""
    return Command(scripts.load("revive"), base, (id, died, lane, message), text)


def discard(
    base: str, skip: int, task: str = "", ids: Sequence[bytes] = ()
) -> Command[tuple[int, int | None]]:
    """Throw away dead letters: those named, or those of a task, or all.

    Reads as how many, and what to skip in a further call; None if none is needed.
    """
    arguments: list[Argument] = [skip, task, *ids]
    return Command(scripts.load("discard"), base, arguments, _count_and_next)


def _by_pages(
    base: str,
    sendings: Sequence[S],
    now: Callable[[str, Sequence[S]], Command[str]],
    later: Callable[[str, Sequence[S]], Command[str]],
) -> Iterable[tuple[Sequence[S], Command[str]]]:
    for page in _pages(sorted((one for one in sendings if one.due is None), key=_lane)):
        yield page, now(base, page)
    for page in _pages([one for one in sendings if one.due is not None]):
        yield page, later(base, page)


def _pages(sendings: Iterable[S]) -> Iterable[list[S]]:
    page: list[S] = []
    size = 0
    for one in sendings:
        more = one.size
        if page and (len(page) == MOST_MESSAGES or size + more > MOST_BYTES):
            yield page
            page, size = [], 0
        page.append(one)
        size += more
    if page:
        yield page


def _alone(one: Outgoing) -> Lot:
    return Lot(one.lane, one.label, one.due, [one.raw])


def _joined(lots: Iterable[Lot]) -> Iterable[Lot]:
    """Return neighbours that go to one place as one lot: each costs the script some commands."""
    for (lane, label, due), some in itertools.groupby(lots, _place_of):
        yield Lot(lane, label, due, [raw for lot in some for raw in lot.raws])


# In a list they keep their order, whatever their labels are.
_lane = operator.attrgetter("lane")
_place_of = operator.attrgetter("lane", "label", "due")


def first_number(reply: Any) -> int:
    """Return a reply that begins with a number."""
    return int(reply[0])


def text(reply: Any) -> str:
    """Return a reply that is a word, or letters."""
    return bytes(reply).decode()


def _count_and_left(reply: Any) -> tuple[int, bool]:
    return int(reply[0]), bool(reply[1])


def _count_and_next(reply: Any) -> tuple[int, int | None]:
    return int(reply[0]), int(reply[1]) if reply[1] else None
