"""A message in the hands of a child: as it came, while it runs, and when it has ended."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import deque
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from taskq.broker import keys, records
from taskq.broker.claims import Finish
from taskq.broker.records import Record
from taskq.model import clock, outcome
from taskq.model.context import Context
from taskq.model.message import Envelope
from taskq.model.outcome import History
from taskq.model.signing import Seal

if TYPE_CHECKING:
    from taskq.client.task import Task

# A claimed message that did not start within this goes back: another slot may be free.
START_SECONDS = 0.1


@dataclasses.dataclass(eq=False, slots=True)
class Claim:
    """What the messages that one exchange brought have in common."""

    queue: str
    # This child's id in that queue, and the number of the exchange.
    worker: bytes
    seq: bytes
    # Redis's clock, microseconds: the fence of those claimed for the first time.
    fence: int
    # That instant by this process's monotonic clock.
    at: float
    # The queue that `queue`, a place, is of.
    queue_name: str = dataclasses.field(init=False)
    # Redis's clock where the monotonic one is at zero, milliseconds.
    zero_ms: float = dataclasses.field(init=False)
    # What an outcome is bound to, besides the id.
    name: bytes = dataclasses.field(init=False)
    # The record, less its state, of a message that ends in its first attempt.
    first_end: bytes = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.queue_name = keys.queue_of(self.queue)
        self.zero_ms = self.fence / 1000 - self.at * 1000
        self.name = self.worker + self.seq
        self.first_end = records.with_attempt(records.fresh(self.fence, self.name))

    def ms_at(self, instant: float) -> int:
        """Return a monotonic instant as milliseconds since the epoch by Redis's clock."""
        return int(self.zero_ms + instant * 1000)

    def now_ms(self) -> int:
        """Return milliseconds since the epoch by Redis's clock."""
        return int(self.zero_ms + clock.monotonic() * 1000)


class Delivery(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One message as the exchange hands it out: bytes, not yet verified."""

    claim: Claim
    # 't' thread or 'c' coroutine
    kind: str
    # Empty at the first claim.
    record: bytes
    raw: bytes
    # Where its entry on the board begins.
    entry: int = 0

    @property
    def key(self) -> tuple[str, bytes]:
        """What tells it from all others that this child holds."""
        return self.claim.queue, self.field

    def __repr__(self) -> str:
        """Name the message, and show no bytes."""
        return f"Delivery({self.field!r}, {len(self.raw)} bytes)"

    @property
    def field(self) -> bytes:
        """The field of `running:<worker>`."""
        return self.raw[12:44] + self.claim.seq

    @property
    def end(self) -> bytes:
        """The record, less its state, with which the message ends after this attempt."""
        if self.record:
            return records.with_attempt(self.record[1 : records.HEAD_BYTES])
        return self.claim.first_end

    @property
    def unstarted(self) -> bytes:
        """The same where there was no attempt."""
        if self.record:
            return self.record[1 : records.HEAD_BYTES]
        return records.fresh(self.claim.fence, self.claim.name)

    def parsed_record(self) -> Record:
        """Return the message's record."""
        claim = self.claim
        if self.record:
            return records.parse(self.record)
        return Record(b"R", claims=1, fence=claim.fence, worker=claim.worker, seq=claim.seq)


class Attempt(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One verified message being run."""

    delivery: Delivery
    envelope: Envelope
    task: Task[..., Any]
    context: Context
    # Binds outcomes and histories.
    seal: Seal
    # Monotonic seconds.
    started: float
    # Seconds until `SoftTimeLimitExceeded` is raised in it; None: never.
    soft: float | None = None
    # Whether that is because of the message's deadline.
    at_deadline: bool = False

    @property
    def started_ms(self) -> int:
        """When it began, in milliseconds since the epoch by Redis's clock."""
        return self.delivery.claim.ms_at(self.started)

    def history(self) -> History | None:
        """Return what is remembered of earlier attempts."""
        record = self.delivery.parsed_record()
        if not record.tail:
            return None
        return outcome.read_history(record.tail, self.seal, self.delivery.raw[12:44])

    def facts(self) -> dict[str, Any]:
        """Return the fields for a log line; never the arguments."""
        return {
            "message_id": self.context.id,
            "task": self.task.name,
            "queue": self.context.queue,
            "attempt": self.context.attempt,
            "delivery": self.context.delivery,
        }


class Slot(Protocol):
    """A place where a message runs, as the executor and whoever interrupts see it."""

    # What runs here and may be interrupted: the task's own code, nothing of ours.
    current: Delivery | None

    # Raise `exception` in the task if `delivery` is current; return whether it was.
    def interrupt(self, delivery: Delivery, exception: type[BaseException]) -> bool: ...


class SyncSlot(Slot, Protocol):
    """The same for a call on a thread."""

    # Whether an interrupt was under way while `current` was left.
    touched: bool

    # Wait until that interrupt is over, and take back what did not arrive.
    def leave(self) -> None: ...


class AsyncSlot(Slot, Protocol):
    """The same for a coroutine."""

    # Await a coroutine in which any exception can be raised, not a `CancelledError` alone.
    def guard(self, coroutine: Any) -> Awaitable[Any]: ...


def take_back(buffer: deque[Delivery], claimed_before: float = math.inf) -> list[Delivery]:
    """Take the messages out of a buffer that were claimed before a monotonic instant."""
    taken: list[Delivery] = []
    with contextlib.suppress(IndexError):  # it is empty, or a slot was quicker
        while buffer[0].claim.at < claimed_before:
            taken.append(buffer.popleft())
    return taken


class Done(msgspec.Struct, frozen=True, gc=False):
    """An ended attempt, ready to be sent."""

    delivery: Delivery
    finish: Finish
    # For measuring how many messages of the task may be claimed ahead.
    task: str = ""
    duration: float = 0.0
    # It could not start in time.
    late: bool = False
    # The message is signed with a key this process does not hold.
    unknown_key: bool = False


def given_back(delivery: Delivery, *, late: bool = False, unknown_key: bool = False) -> Done:
    """Return the end of a claim without an attempt: the message goes back, uncounted."""
    finish = Finish("b", delivery.field)
    return Done(delivery, finish, late=late, unknown_key=unknown_key)
