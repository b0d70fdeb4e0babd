"""The states of a message, and the moves between them.

The one statement of the state machine; `docs/states.md` draws it.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a message is. Terminal states absorb: nothing leaves them."""

    SCHEDULED = "SCHEDULED"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    RETRYING = "RETRYING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"
    # Redis does not know the id: never enqueued, or its record is gone.
    UNKNOWN = "UNKNOWN"

    @property
    def terminal(self) -> bool:
        """Whether the outcome is recorded."""
        return self in TERMINAL


class Cancellation(StrEnum):
    """What a call of `cancel` did."""

    # The message waited, for its time or for a slot: it will not start (again).
    CANCELLED = "cancelled"
    # It runs. Its worker was told; how it ends, its outcome says.
    TOLD = "told"
    # It was over already.
    OVER = "over"
    # Redis does not know the id.
    UNKNOWN = "unknown"


class Rescheduling(StrEnum):
    """What a call of `reschedule` did. All but the first left the message as it was."""

    # It waits for its new time.
    MOVED = "moved"
    # It waits for a slot: its time had come.
    QUEUED = "queued"
    RUNNING = "running"
    # It was over already.
    OVER = "over"
    # Redis does not know the id.
    UNKNOWN = "unknown"


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED})

TRANSITIONS: dict[State, frozenset[State]] = {
    State.SCHEDULED: frozenset({State.QUEUED, State.CANCELLED, State.EXPIRED}),
    # SUCCEEDED and FAILED: the late finish of a worker whose claim nobody took over.
    State.QUEUED: frozenset(
        {State.RUNNING, State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED}
    ),
    # QUEUED: released or reclaimed, uncounted.
    State.RUNNING: frozenset(
        {State.SUCCEEDED, State.FAILED, State.RETRYING, State.QUEUED, State.CANCELLED}
    ),
    # As of QUEUED.
    State.RETRYING: frozenset(
        {State.QUEUED, State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED}
    ),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
    State.EXPIRED: frozenset(),
}

# The letters of those who become dead letters, and what people call that.
DEATHS: dict[bytes, str] = {b"f": "failed", b"r": "refused", b"t": "timed out", b"k": "crashed"}

# The first byte of a record in Redis. Lower case is terminal: the scripts test for it.
LETTERS: dict[bytes, State] = {
    b"S": State.SCHEDULED,
    b"Q": State.QUEUED,
    b"R": State.RUNNING,
    b"Y": State.RETRYING,
    b"s": State.SUCCEEDED,
    b"f": State.FAILED,
    b"r": State.FAILED,  # refused: set aside unread
    b"t": State.FAILED,  # its process was killed: it ran past its hard time limit
    b"k": State.FAILED,  # it killed too many of the processes that ran it
    b"c": State.CANCELLED,
    b"e": State.EXPIRED,
}
