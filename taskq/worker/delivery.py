"""A message in the hands of a child: as it came, while it runs, and when it has ended."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from taskq.broker import records
from taskq.broker.commands import Finish
from taskq.broker.records import Record
from taskq.model import clock, outcome
from taskq.model.context import Context
from taskq.model.message import Message
from taskq.model.outcome import History
from taskq.model.signing import Seal

if TYPE_CHECKING:
    from taskq.client.task import Task


class Delivery(msgspec.Struct, gc=False):
    """One message as the exchange hands it out: bytes, not yet verified."""

    queue: str
    # The claim: this child's id in that queue, and the number of the exchange.
    worker: bytes
    seq: bytes
    # 't' thread or 'c' coroutine
    kind: str
    # Empty at the first claim.
    record: bytes
    raw: bytes
    fence: int
    # By this process's monotonic clock.
    claimed_at: float
    # Redis's clock less this machine's, milliseconds.
    clock_lead: int

    @property
    def field(self) -> bytes:
        """The field of `running:<worker>`."""
        return self.raw[12:44] + self.seq

    @property
    def key(self) -> tuple[str, bytes]:
        """What tells it from all others that this child holds."""
        return self.queue, self.field

    @property
    def claim(self) -> bytes:
        """What an outcome is bound to, besides the id."""
        return self.worker + self.seq

    @property
    def head(self) -> bytes:
        """The message's record, less its state."""
        if self.record:
            return self.record[1 : records.HEAD_BYTES]
        return records.fresh(self.fence, self.claim)

    def parsed_record(self) -> Record:
        """Return the message's record."""
        if self.record:
            return records.parse(self.record)
        return Record(b"R", claims=1, fence=self.fence, worker=self.worker, seq=self.seq)

    def now_ms(self) -> int:
        """Return milliseconds since the epoch by Redis's clock."""
        return clock.now_ms() + self.clock_lead


@dataclasses.dataclass(slots=True)
class Attempt:
    """One verified message being run."""

    delivery: Delivery
    message: Message
    task: Task[..., Any]
    record: Record
    context: Context
    # Binds outcomes and histories.
    seal: Seal
    # Monotonic seconds, and milliseconds by Redis's clock.
    started: float
    started_ms: int

    def history(self) -> History | None:
        """Return what is remembered of earlier attempts."""
        if not self.record.tail:
            return None
        return outcome.read_history(self.record.tail, self.seal, self.message.id.encode())

    def facts(self) -> dict[str, Any]:
        """Return the fields for a log line; never the arguments."""
        return {
            "message_id": self.context.id,
            "task": self.task.name,
            "queue": self.context.queue,
            "attempt": self.context.attempt,
            "delivery": self.context.delivery,
        }


def take_back(buffer: deque[Delivery], claimed_before: float = math.inf) -> list[Delivery]:
    """Take the messages out of a buffer that were claimed before a monotonic instant."""
    taken: list[Delivery] = []
    while buffer:
        try:
            delivery = buffer.popleft()
        except IndexError:  # a slot was quicker
            break
        if delivery.claimed_at >= claimed_before:
            buffer.appendleft(delivery)
            break
        taken.append(delivery)
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
