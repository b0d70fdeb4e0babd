"""What the supervisor sees to from outside, for a child may be too busy to do it itself.

Hard time limits, memory, messages that cannot start, and whether it lives at all. A child
with a message inside its hard limit is never killed for being silent: a task that keeps
the interpreter to itself is slow, not dead.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence

from taskq.model import clock
from taskq.worker import memory
from taskq.worker.blame import Cause
from taskq.worker.board import CLAIMED, STARTED, Entry, overdue
from taskq.worker.maintenance import Member
from taskq.worker.process import ChildProcess, Orders

log = logging.getLogger("taskq.worker")

# What ended gets so long to be told, before the process is killed for a message that does not.
FLUSH_SECONDS = 0.5
# After twice the time within which a child gives back by itself what it cannot start.
STUCK_SECONDS = 0.25
_RELEASE_EVERY = 0.25
_PING_EVERY = 10.0
_SILENT_SECONDS = 30.0
_TELL_EVERY = 60.0
# One that begins over the bound is not replaced again and again.
_LEAST_LIFE = 5.0
# Where each look costs a process.
_MEMORY_EVERY = 0.0 if memory.PROC.is_dir() else 2.0


class Guard:
    """Looks at children, each time it is asked to."""

    def __init__(
        self,
        orders: Orders,
        release: Callable[[Member, Sequence[bytes]], None],
        recycle: Callable[[ChildProcess, str], None],
    ) -> None:
        self._limit, self._most = orders.memory_limit, orders.max_memory
        self._release = release
        self._recycle = recycle
        # When to do it again, by child.
        self._release_at: dict[int, float] = {}
        self._tell_at: dict[int, float] = {}
        self._memory_at = 0.0

    def look(self, children: Iterable[ChildProcess]) -> float:
        """See to all of them; return the monotonic instant of the next hard limit."""
        now = clock.monotonic()
        soonest = math.inf
        weigh = bool(self._limit or self._most) and now >= self._memory_at
        if weigh:
            self._memory_at = now + _MEMORY_EVERY
        for child in children:
            if child.hello is None:
                continue
            entries = child.board.entries(CLAIMED, STARTED)
            started = [entry for entry in entries if entry.state == STARTED]
            soonest = min(soonest, self._enforce(child, started, now))
            self._free(child, [entry for entry in entries if entry.state == CLAIMED], now)
            self._listen(child, started, now)
            if weigh:
                self._weigh(child, now)
        return soonest

    def forget(self, child: ChildProcess) -> None:
        """Forget a child that has ended."""
        self._release_at.pop(child.pid, None)
        self._tell_at.pop(child.pid, None)

    def _enforce(self, child: ChildProcess, started: list[Entry], now: float) -> float:
        """Kill the child if a message in it does not end; return when to look again."""
        late = overdue(started, now)
        if child.condemned_at is None:
            if not late:
                return min((entry.deadline for entry in started), default=math.inf)
            log.warning("%s on child %d ran past its hard limit", late[0].id, child.pid)
            child.condemned_at = now + FLUSH_SECONDS
            child.channel.send({"kind": "flush"})
        elif child.condemned_at <= now:
            child.condemned_at = math.inf
            if late:
                child.kill(Cause.LIMIT, "past the hard limit of a message")
            else:
                # It ended at the last moment. But the child was told to claim no more.
                self._recycle(child, "a message ended just past its hard limit")
        return child.condemned_at

    def _free(self, child: ChildProcess, claimed: list[Entry], now: float) -> None:
        """Give back what it has claimed and cannot start."""
        stuck = [entry for entry in claimed if entry.claimed + STUCK_SECONDS < now]
        if not stuck or now < self._release_at.get(child.pid, 0.0):
            return
        self._release_at[child.pid] = now + _RELEASE_EVERY
        for queue, worker in child.members.items():
            fields = [entry.field for entry in stuck if child.queue_of(entry) == queue]
            if fields:
                self._release((queue, worker), fields)

    def _listen(self, child: ChildProcess, started: list[Entry], now: float) -> None:
        """Ask for a sign of life, and replace what gives none and runs nothing."""
        if child.frozen:
            return
        if child.pinged_at is None:
            if now - child.answered_at > _PING_EVERY:
                child.pinged_at = now
                child.channel.send({"kind": "ping"})
            return
        if now - child.pinged_at < _SILENT_SECONDS or now < self._tell_at.get(child.pid, 0.0):
            return
        if not started:
            log.error("child %d is silent and runs nothing; replacing it", child.pid)
            child.kill()
            return
        self._tell_at[child.pid] = now + _TELL_EVERY
        oldest = min(started, key=lambda entry: entry.claimed)
        log.warning(
            "child %d is too busy to answer; since %.0f s it runs %s of queue %s",
            child.pid, now - oldest.claimed, oldest.id, child.queue_of(oldest),
        )  # fmt: skip

    def _weigh(self, child: ChildProcess, now: float) -> None:
        size = child.memory()
        if size is None:
            return
        if self._limit is not None and size > self._limit:
            allowed = memory.told(self._limit)
            child.kill(Cause.CRASH, f"it used {memory.told(size)} of memory; allowed are {allowed}")
        elif self._most is None or size <= self._most or child.alone:
            return
        elif now - child.born > _LEAST_LIFE:
            self._recycle(child, f"it uses {memory.told(size)} of memory")
