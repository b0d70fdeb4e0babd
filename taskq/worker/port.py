"""One queue's conversation with Redis: enrol, exchange, offer what came late.

Each exchange has a number. One whose reply was lost is sent again as it was, and gets the
same reply: nothing is claimed twice, nothing is stranded.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import secrets
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TypeAlias, cast

from taskq.broker import claims, keys
from taskq.broker.claims import DEFAULT_KEPT, Exchanged, Finish, Kept, Room
from taskq.broker.commands import Command
from taskq.broker.line import Line
from taskq.errors import BrokerError, BrokerUnavailable
from taskq.model import clock

log = logging.getLogger("taskq.worker")

MOST_FINISHES = 500
MOST_FINISH_BYTES = 4 << 20
# After an exchange that Redis refused.
_PAUSE_SECONDS = 1.0
# For outcomes offered under an id that Redis has forgotten: it comes after all others.
_LAST_SEQ = b"9" * 10


@dataclasses.dataclass(frozen=True, slots=True)
class Badge:
    """How a child introduces itself to a queue."""

    # What people call it.
    name: str
    lease_ms: int
    # Task → 't' (thread) or 'c' (coroutine), and the digest that names this set.
    kinds: dict[str, str]
    digest: str
    # What is kept of messages that failed for good.
    kept: Kept = DEFAULT_KEPT


_Pending: TypeAlias = tuple[Command[Exchanged], Sequence[Finish]]


# Between two attempts to reach Redis.
BACKOFF = (0.05, 1.0)


class Reach:
    """A line, the ports that use it, and when it is tried again if Redis is away."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.ports: list[Port] = []
        # A monotonic instant; 0 while Redis answers.
        self.retry_at = 0.0
        self._pause = BACKOFF[0]

    def away(self, now: float) -> bool:
        """Whether it is too early to try again."""
        return now < self.retry_at

    def back_off(self, error: Exception) -> None:
        """Note that Redis cannot be reached."""
        if not self.retry_at:
            log.warning("Redis cannot be reached, trying on: %s", error)
        jitter = 0.5 + secrets.randbelow(500) / 1000
        self.retry_at = clock.monotonic() + self._pause * jitter
        self._pause = min(2 * self._pause, BACKOFF[1])

    def answered(self) -> None:
        """Note that Redis is back."""
        log.info("Redis is back")
        self.retry_at, self._pause = 0.0, BACKOFF[0]


class Port:
    """One queue, as a child sees it.

    Touched under the exchange's lock; only the flags that ask for something are set by any thread.
    """

    def __init__(self, app: str, queue: str, badge: Badge, reach: Reach) -> None:
        self.queue = queue
        self.reach = reach
        reach.ports.append(self)
        self.base = keys.base(app, queue)
        self._badge = badge
        # This child's id in the queue; a new one after its lease was lost.
        self.worker = b""
        self.enrolled = False
        # Whether Redis may have forgotten the child, or its tasks.
        self.doubted = False
        # Whether it is one of several partitions of its queue.
        self.divided = False
        # Whether work may be waiting that was not asked for.
        self.hungry = True
        # Whether its bell rang, and no exchange has answered: the next one must, even
        # without room, for then it rings for others.
        self.rung = False
        # Monotonic instants: the last turn; the last claim; claim nothing before; the next due
        # message.
        self.visited_at = 0.0
        self.asked_at = 0.0
        self.paused_until = 0.0
        self.due_at = math.inf
        # Whether something held is perhaps to be cancelled; when that was asked for last.
        self.summoned = False
        self.obeyed_at = 0.0
        self._seq = 0
        self._finishes: deque[Finish] = deque()
        # Sent and not answered: to be sent again before anything else.
        self._pending: _Pending | None = None
        # Finishes of claims made under an id whose lease was lost.
        self._strays: deque[tuple[bytes, Finish]] = deque()

    @property
    def unsent(self) -> int:
        """How many ends of attempts wait to be sent, a call without an answer included."""
        return len(self._finishes) + len(self._strays) + (self._pending is not None)

    @property
    def at_ease(self) -> bool:
        """Whether there is nothing to see to before an exchange is sent."""
        troubled = self.doubted or self.summoned or self.unsent
        return self.enrolled and not troubled and self.reach.line.connected

    @property
    def seq(self) -> bytes:
        """The number of the last exchange: with `worker`, the claim of what it brought."""
        return b"%010d" % self._seq

    def add(self, finish: Finish, worker: bytes) -> None:
        """Put the end of an attempt in line; `worker` is the id it was claimed under."""
        if worker == self.worker:
            self._finishes.append(finish)
        else:
            self._strays.append((worker, finish))

    def enrol(self) -> None:
        """Become a member under a new id."""
        for finish in self._finishes:
            self._strays.append((self.worker, finish))
        self._finishes.clear()
        self.worker, self._seq, self._pending = secrets.token_hex(16).encode(), 0, None
        self._introduce()

    def _introduce(self) -> None:
        badge = self._badge
        self.reach.line.run(
            claims.enrol(
                self.base, self.worker, badge.lease_ms, badge.name, badge.digest, badge.kinds
            )
        )
        self.enrolled = self.hungry = True

    def make_sure(self) -> None:
        """Make the tasks known again, if Redis forgot them; see whether the lease is lost."""
        if self._pending is not None:
            return  # its answer tells, and it must not be given up before that
        badge = self._badge
        if self.enrolled:
            command = claims.renew(self.base, self.worker, badge.lease_ms, badge.digest)
            word = self.reach.line.run(command).word
            if word == "unknown":
                log.warning("Redis forgot the tasks on %s; telling it again", self.queue)
                self._introduce()
            elif word == "lost":
                self._lose(word)
        self.doubted = False

    def leave(self) -> None:
        """Give up the lease."""
        if self.enrolled:
            self.reach.line.run(claims.reclaim(self.base, self._badge.lease_ms, 0, self.worker))
            self.enrolled = False

    def offer_strays(self) -> Iterable[tuple[Finish, str]]:
        """Send outcomes under the id they were claimed by: they count if nobody took over."""
        while self._strays:
            worker, finish = self._strays[0]
            reply = self.reach.line.run(self._command(worker, _LAST_SEQ, (finish,), Room()))
            self._strays.popleft()
            yield finish, reply.verdicts

    def disclaim(self, held: set[bytes]) -> None:
        """Give back what Redis takes for ours and is not.

        After a power loss or a failover it may be as it was before we ended some messages;
        as long as this child lives, nobody else would take them.
        """
        known = held | {finish.field for finish in self._finishes}
        fields = self.reach.line.call("HKEYS", keys.running(self.base, self.worker.decode()))
        forgotten = [field for field in fields if field not in known]
        # Newest first: the oldest comes to stand at the end that is popped.
        for field in sorted(forgotten, key=lambda one: one[32:] + one, reverse=True):
            self._finishes.append(Finish("b", field))
        if forgotten:
            what = "%s: Redis forgot the ends of %d messages; they go back"
            log.warning(what, self.queue, len(forgotten))

    def begin(self, room: Room) -> None:
        """Send what ended, and ask for messages; `end` must follow, before all else."""
        self.reach.line.begin(self.next_call(room))

    def next_call(self, room: Room) -> Command[Exchanged]:
        """Return the call for that: one that was not answered, or the next."""
        if self._pending is None:
            self._seq += 1
            batch = _first(self._finishes)
            self._pending = (self._command(self.worker, self.seq, batch, room), batch)
            self.hungry, self.rung = self.hungry and room.empty, False
        return self._pending[0]

    def end(self, line: Line) -> tuple[Exchanged, Sequence[Finish]] | None:
        """Return the reply to what was begun, and the finishes that its verdicts are on.

        None: Redis refused, or had heard of a later exchange. Where the connection broke,
        the next `begin` sends the very same again. `line`: this queue's own, or the bell's.
        """
        command, finishes = cast("_Pending", self._pending)
        try:
            reply = line.finish(command)
        except BrokerUnavailable:
            raise
        except BrokerError as error:
            self._isolate(line, finishes, error)
            return None
        self._pending = None
        if reply.word != "ok":
            self._lose(reply.word)
        if reply.word == "stale":
            return None
        for _ in finishes:
            self._finishes.popleft()
        self.hungry = self.hungry or bool(reply.more)
        if reply.next_due is not None:
            wait_ms = max(0, reply.next_due - reply.now_us // 1000)
            self.due_at = clock.monotonic() + wait_ms / 1000
        return reply, finishes

    def _lose(self, word: str) -> None:
        log.warning("the lease on %s was lost (%s); enrolling anew", self.queue, word)
        self.enrolled = False

    def _isolate(self, line: Line, finishes: Sequence[Finish], error: BrokerError) -> None:
        """Redis refused a batch: send its parts one by one, and leave the culprit out."""
        self._pending = None
        self.paused_until = clock.monotonic() + _PAUSE_SECONDS
        log.error("%s: an exchange was refused: %s", self.queue, error)
        for finish in finishes:
            self._seq += 1
            try:
                line.run(self._command(self.worker, self.seq, (finish,), Room()))
            except BrokerUnavailable:
                raise
            except BrokerError as refused:
                log.error("the end of %s was refused: %s", finish.field[:32].decode(), refused)
            self._finishes.popleft()

    def _command(
        self, worker: bytes, seq: bytes, finishes: Sequence[Finish], room: Room
    ) -> Command[Exchanged]:
        badge = self._badge
        return claims.exchange(
            self.base, worker, seq, badge.digest, badge.lease_ms, finishes, room, badge.kept
        )


def _first(finishes: deque[Finish]) -> list[Finish]:
    """Return the finishes that go into one exchange."""
    batch = list(itertools.islice(finishes, MOST_FINISHES))
    if sum(len(finish.payload) for finish in batch) <= MOST_FINISH_BYTES:
        return batch
    batch.clear()
    size = 0
    for finish in finishes:
        full = len(batch) == MOST_FINISHES or size + len(finish.payload) > MOST_FINISH_BYTES
        if batch and full:
            break
        batch.append(finish)
        size += len(finish.payload)
    return batch
