"""One pure function per state change: arguments in, a `Command` out. Nothing here waits."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

import msgspec

from taskq.broker import scripts
from taskq.broker.scripts import Script
from taskq.config import MOST_PARTITIONS
from taskq.model import control
from taskq.model.message import Message

T_co = TypeVar("T_co", covariant=True)
S = TypeVar("S", "Outgoing", "Lot")
Argument: TypeAlias = bytes | str | int

MOST_MESSAGES = 1000
MOST_BYTES = 4 << 20
PUBLISH = "PUBLISH"
REPLY_HEAD = 5


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


class Finish(msgspec.Struct, frozen=True, gc=False):
    """The end of one attempt, in the script's words."""

    # 's', 'f' or 'c' recorded, 'y' retry, 'b' back, 'r' refused.
    kind: str
    # Id and claim number: the field of `running:<worker>`.
    field: bytes
    payload: bytes = b""
    number: int = 0

    def __repr__(self) -> str:
        """Name the message, and show no bytes."""
        return f"Finish({self.kind}, {self.field!r}, {len(self.payload)} bytes)"


class Room(msgspec.Struct, frozen=True):
    """How much a child can take."""

    threads: int = 0
    coroutines: int = 0
    # Beyond the free slots: so many messages of a task that is known to be quick.
    caps: dict[str, int] = {}

    @property
    def empty(self) -> bool:
        """Whether nothing can be taken."""
        return not (self.threads or self.coroutines or self.caps)


class Order(msgspec.Struct, frozen=True):
    """A message that a child holds, and is to cancel."""

    # The field of `running:<worker>`.
    field: bytes
    # Letter, proof and reason, as `control.give` made them, or as somebody wrote them.
    signed: bytes

    @property
    def id(self) -> bytes:
        """The message's id."""
        return self.field[:32]

    @property
    def terminate(self) -> bool:
        """Whether its process is to be ended."""
        return self.signed[:1] == control.TERMINATE

    @property
    def reason(self) -> bytes:
        """What whoever waits is told."""
        return self.signed[control.REASON_AT :]


class Renewed(msgspec.Struct, frozen=True):
    """The reply to the renewal of a lease."""

    # 'ok', 'unknown' (renewed, but its tasks were forgotten) or 'lost'
    word: str
    orders: list[Order] = []


class Kept(msgspec.Struct, frozen=True):
    """How many dead letters a queue keeps, and for how long."""

    letters: int = 10_000
    age_ms: int = 90 * 86_400_000


DEFAULT_KEPT = Kept()


class Blame(msgspec.Struct, frozen=True):
    """What the death of a child has to do with a message that it ran."""

    # 'k' it caused it, 't' it ran past its hard limit, 's' it perhaps caused it, 'i' another did.
    letter: str
    # The field of `running:<worker>`.
    field: bytes
    # At so many crashes it is over.
    budget: int = 0
    # What its future then raises.
    reason: str = ""

    @property
    def isolates(self) -> bool:
        """Whether the message, if it is not over, is to be handed out alone from now on."""
        return self.letter in ("k", "s")


class Reclaimed(msgspec.Struct, frozen=True):
    """The reply to a reclaim."""

    # How many messages were taken back.
    taken: int
    # Whether a further call is needed.
    left: bool
    # How many messages wait to be handed out alone.
    suspects: int
    # Those of the members named that Redis does not know, or whose tasks it does not know.
    forgotten: list[bytes] = []


class Exchanged(msgspec.Struct, frozen=True):
    """The reply to an exchange."""

    # 'ok', 'lost' (the lease is gone; nothing was claimed) or 'stale'.
    word: str
    # Redis's clock, microseconds: the fence of the messages claimed for the first time.
    now_us: int
    # Milliseconds since the epoch, for the one worker that watches for it.
    next_due: int | None
    # The kinds of slot for which work is left.
    more: str
    # One letter a finish: 'k' recorded, 'l' the claim was lost.
    verdicts: str
    # ('t', 'c' or 'q' and the record, message bytes); no record at the first claim
    claimed: list[tuple[bytes, bytes]]
    # Whether the child is to ask for its orders.
    summoned: bool = False

    def __repr__(self) -> str:
        """Say how it went, and show no bytes."""
        return f"Exchanged({self.word}, {self.verdicts}, {len(self.claimed)} claimed)"


def enqueue(base: str, outgoing: Sequence[Outgoing]) -> Command[str]:
    """Queue at most 1,000 messages. Reads as one letter each."""
    if len(outgoing) == 1:  # as mostly: there is nothing to put in order
        [one] = outgoing
        return Command(scripts.load("enqueue"), base, (one.lane, one.label, 1, one.raw), _text)
    return enqueue_lots(base, _lots(outgoing))


def enqueue_lots(base: str, lots: Iterable[Lot]) -> Command[str]:
    """Queue at most 1,000 messages; as `enqueue`."""
    arguments: list[Argument] = []
    for lot in lots:
        arguments += (lot.lane, lot.label, len(lot.raws))
        arguments += lot.raws
    return Command(scripts.load("enqueue"), base, arguments, _text)


def schedule(base: str, outgoing: Sequence[Outgoing]) -> Command[str]:
    """Keep at most 1,000 messages until they are due. Reads as one letter each."""
    return schedule_lots(base, _lots(outgoing))


def schedule_lots(base: str, lots: Iterable[Lot]) -> Command[str]:
    """Keep at most 1,000 messages until they are due; as `schedule`."""
    arguments: list[Argument] = []
    for lot in lots:
        arguments += (lot.lane, lot.due or "+0", lot.label, len(lot.raws))
        arguments += lot.raws
    return Command(scripts.load("schedule"), base, arguments, _text)


def reschedule(base: str, id: str, due: str) -> Command[str]:
    """Give a waiting message another time; `due` as of `Outgoing`.

    Reads as 'moved', 'queued', 'running', 'over' or 'unknown'.
    """
    return Command(scripts.load("reschedule"), base, (id, due), _text)


def send(
    base: str, outgoing: Sequence[Outgoing]
) -> Iterable[tuple[Sequence[Outgoing], Command[str]]]:
    """Return the commands that send these messages, each with the messages it takes.

    At most 1,000 messages and 4 MiB go into one.
    """
    now = sorted((one for one in outgoing if one.due is None), key=_place_of)
    later = [one for one in outgoing if one.due is not None]
    for page in _pages(now):
        yield page, enqueue(base, page)
    for page in _pages(later):
        yield page, schedule(base, page)


def send_lots(base: str, lots: Sequence[Lot]) -> Iterable[tuple[Sequence[Lot], Command[str]]]:
    """Return the commands that send at most 1,000 messages, each with the lots it takes.

    At most 4 MiB go into one: a lot of more than that must have one message.
    """
    now = sorted((lot for lot in lots if lot.due is None), key=_place_of)
    later = [lot for lot in lots if lot.due is not None]
    for page in _pages(now):
        yield page, enqueue_lots(base, page)
    for page in _pages(later):
        yield page, schedule_lots(base, page)


def enrol(
    base: str, worker: bytes, lease_ms: int, name: str, digest: str, kinds: dict[str, str]
) -> Command[str]:
    """Make a child a member of the queue's workers; `kinds` maps task to 't' or 'c'."""
    pairs = [part for pair in kinds.items() for part in pair]
    return Command(scripts.load("enrol"), base, (worker, lease_ms, name, digest, *pairs), _text)


def exchange(
    base: str,
    worker: bytes,
    seq: bytes,
    digest: str,
    lease_ms: int,
    finishes: Sequence[Finish],
    room: Room,
    kept: Kept = DEFAULT_KEPT,
) -> Command[Exchanged]:
    """End attempts and claim messages, in one call."""
    arguments: list[Argument] = [
        worker, seq, digest, lease_ms, PUBLISH, room.threads, room.coroutines,
        kept.letters, kept.age_ms, 0,
    ]  # fmt: skip
    lots = [(key, list(lot)) for key, lot in itertools.groupby(finishes, _kind_and_number)]
    arguments[-1] = len(lots)
    for (kind, number), lot in lots:
        arguments += (kind, number, len(lot))
        for finish in lot:
            arguments += (finish.field, finish.payload)
    for pair in room.caps.items():
        arguments += pair
    return Command(scripts.load("exchange"), base, arguments, _exchanged, publish_at=4)


def renew(base: str, worker: bytes, lease_ms: int, digest: str) -> Command[Renewed]:
    """Renew a child's lease."""
    return Command(scripts.load("renew"), base, (worker, lease_ms, digest), _renewed)


def cancel(base: str, id: str, order: bytes) -> Command[str]:
    """Take a message back by a signed order. Reads as 'cancelled', 'told', 'over' or 'unknown'."""
    return Command(scripts.load("cancel"), base, (PUBLISH, id, order), _text, publish_at=0)


def orders(base: str, worker: bytes) -> Command[list[Order]]:
    """Return which of its messages a child is to cancel."""
    return Command(scripts.load("orders"), base, (worker,), _orders)


def disobey(base: str, worker: bytes, orders: Sequence[Order]) -> Command[int]:
    """Drop orders that are not proven. Reads as how many were still there."""
    parts = (part for one in orders for part in (one.field, one.signed))
    return Command(scripts.load("disobey"), base, (worker, *parts), lambda reply: int(reply[0]))


def reclaim(
    base: str,
    lease_ms: int,
    tick_ms: int,
    worker: bytes = b"",
    digest: str = "",
    blames: Sequence[Blame] = (),
    kept: Kept = DEFAULT_KEPT,
    members: Sequence[bytes] = (),
) -> Command[Reclaimed]:
    """Take back the messages of a child, or of all whose lease ran out.

    Renews the leases of `members`, and rings for them. `blames` say what its death has to do
    with those that it ran. Suspects are counted of
    the tasks that `digest` stands for.
    """
    arguments: list[Argument] = [
        lease_ms, tick_ms, PUBLISH, worker, digest, kept.letters, kept.age_ms, len(members),
        *members,
    ]  # fmt: skip
    for one in blames:
        arguments += (one.letter, one.field, one.budget, one.reason)
    return Command(scripts.load("reclaim"), base, arguments, _reclaimed, publish_at=2)


def release(base: str, worker: bytes, fields: Sequence[bytes]) -> Command[int]:
    """Give back messages that a child holds and cannot start. Reads as how many it held."""
    arguments: list[Argument] = [PUBLISH, worker, *fields]
    return Command(
        scripts.load("release"), base, arguments, lambda reply: int(reply[0]), publish_at=0
    )


def wake(base: str, name: str) -> Command[str]:
    """End the blocked call of one child."""
    return Command(scripts.load("wake"), base, (name,), _text)


def expire(base: str, id: str) -> Command[str]:
    """Resolve a message whose expiry passed before it started."""
    return Command(scripts.load("expire"), base, (PUBLISH, id), _text, publish_at=0)


def purge(base: str, reason: str, task: str = "") -> Command[tuple[int, bool]]:
    """Throw away queued and scheduled messages, of one task or of all."""
    arguments = (PUBLISH, reason, task)
    return Command(scripts.load("purge"), base, arguments, _count_and_left, publish_at=0)


def forget(base: str, id: str) -> Command[str]:
    """Drop the outcome of a message that is over."""
    return Command(scripts.load("forget"), base, (id,), _text)


def widen(base: str, partitions: int) -> Command[int]:
    """Say how many partitions a queue has. Reads as how many that is by now."""
    return Command(scripts.load("widen"), base, (partitions, MOST_PARTITIONS), _first_number)


def revive(base: str, id: bytes, died: bytes, lane: str, message: bytes) -> Command[str]:
    """Queue a message in place of a dead letter. Reads as 'o', 'd' done before, or 'no'."""
    return Command(scripts.load("revive"), base, (id, died, lane, message), _text)


def discard(
    base: str, skip: int, task: str = "", ids: Sequence[bytes] = ()
) -> Command[tuple[int, int | None]]:
    """Throw away dead letters: those named, or those of a task, or all.

    Reads as how many, and what to skip in a further call; None if none is needed.
    """
    arguments: list[Argument] = [skip, task, *ids]
    return Command(scripts.load("discard"), base, arguments, _count_and_next)


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


def _lots(outgoing: Sequence[Outgoing]) -> Iterable[Lot]:
    """Return messages by where they go, in their order."""
    for (lane, label, due), some in itertools.groupby(outgoing, _place_of):
        yield Lot(lane, label, due, [one.raw for one in some])


def _place_of(one: Outgoing | Lot) -> tuple[str, bytes, str]:
    return one.lane, one.label, one.due or ""


_kind_and_number = operator.attrgetter("kind", "number")


def _first_number(reply: Any) -> int:
    return int(reply[0])


def _text(reply: Any) -> str:
    return bytes(reply).decode()


def _renewed(reply: Any) -> Renewed:
    return Renewed(reply[0].decode(), _orders(reply[1:]))


def _orders(reply: Any) -> list[Order]:
    pairs = zip(reply[::2], reply[1::2], strict=True)
    return [Order(field, order) for field, order in pairs]


def _count_and_left(reply: Any) -> tuple[int, bool]:
    return int(reply[0]), bool(reply[1])


def _count_and_next(reply: Any) -> tuple[int, int | None]:
    return int(reply[0]), int(reply[1]) if reply[1] else None


def _reclaimed(reply: Any) -> Reclaimed:
    return Reclaimed(int(reply[0]), bool(reply[1]), int(reply[2]), reply[3:])


def _exchanged(reply: Any) -> Exchanged:
    word, now_us, next_due, more, verdicts = reply[:REPLY_HEAD]
    kinds, summons, _ = more.decode().partition("x")
    return Exchanged(
        word.decode(),
        int(now_us),
        int(next_due) if next_due else None,
        kinds,
        verdicts.decode(),
        list(zip(reply[REPLY_HEAD::2], reply[REPLY_HEAD + 1 :: 2], strict=True)),
        bool(summons),
    )
