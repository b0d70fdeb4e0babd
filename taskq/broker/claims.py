"""Commands of a worker: a child joins, claims, ends, gives back; what the dead held goes back."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import Any

import msgspec

from taskq.broker import scripts
from taskq.broker.commands import PUBLISH, Argument, Command, first_number, text
from taskq.model import control


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
    # (sort and record, message): the sort is 't' or 'c', of a quick task 'q' or 'd'; no record at
    # the first claim
    claimed: list[tuple[bytes, bytes]]
    # Whether the child is to ask for its orders.
    summoned: bool = False

    def __repr__(self) -> str:
        """Say how it went, and show no bytes."""
        return f"Exchanged({self.word}, {self.verdicts}, {len(self.claimed)} claimed)"


def enrol(
    base: str, worker: bytes, lease_ms: int, name: str, digest: str, kinds: dict[str, str]
) -> Command[str]:
    """Make a child a member of the queue's workers; `kinds` maps task to 't' or 'c'."""
    pairs = [part for pair in kinds.items() for part in pair]
    return Command(scripts.load("enrol"), base, (worker, lease_ms, name, digest, *pairs), text)


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
    lots = [(key, list(lot)) for key, lot in itertools.groupby(finishes, _kind_and_number)]
    arguments: list[Argument] = [
        worker, seq, digest, lease_ms, PUBLISH, room.threads, room.coroutines,
        kept.letters, kept.age_ms, len(lots),
    ]  # fmt: skip
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


def orders(base: str, worker: bytes) -> Command[list[Order]]:
    """Return which of its messages a child is to cancel."""
    return Command(scripts.load("orders"), base, (worker,), _orders)


def disobey(base: str, worker: bytes, orders: Sequence[Order]) -> Command[int]:
    """Drop orders that are not proven. Reads as how many were still there."""
    parts = (part for one in orders for part in (one.field, one.signed))
    return Command(scripts.load("disobey"), base, (worker, *parts), first_number)


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
    return Command(scripts.load("release"), base, arguments, first_number, publish_at=0)


def wake(base: str, name: str) -> Command[str]:
    """End the blocked call of one child."""
    return Command(scripts.load("wake"), base, (name,), text)


_kind_and_number = operator.attrgetter("kind", "number")


def _renewed(reply: Any) -> Renewed:
    return Renewed(reply[0].decode(), _orders(reply[1:]))


def _orders(reply: Any) -> list[Order]:
    pairs = zip(reply[::2], reply[1::2], strict=True)
    return [Order(field, order) for field, order in pairs]


def _reclaimed(reply: Any) -> Reclaimed:
    return Reclaimed(int(reply[0]), bool(reply[1]), int(reply[2]), reply[3:])


def _exchanged(reply: Any) -> Exchanged:
    word, now_us, next_due, more, verdicts, *claimed = reply
    kinds, summons, _ = more.decode().partition("x")
    return Exchanged(
        word.decode(),
        int(now_us),
        int(next_due) if next_due else None,
        kinds,
        verdicts.decode(),
        list(zip(claimed[::2], claimed[1::2], strict=True)),
        bool(summons),
    )
