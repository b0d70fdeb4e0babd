"""What replicas must have said before a message counts as accepted: `durability="replicas:2"`.

Redis's WAIT asks for it, on the connection that wrote. It promises no more than that so many
replicas had the message once: which one of them is promoted, and whether the one that answered
still follows the same master, it does not know.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeAlias

from taskq.broker import keys
from taskq.broker.commands import Command
from taskq.errors import BrokerError, BrokerUnavailable, Interrupted
from taskq.model import clock

# So long is one WAIT, milliseconds: less than what a socket waits for a reply.
_WAIT_MS = 1_000
_MARK_MS = 60_000
# The script's letter for a message that it has just written.
_WRITTEN = "o"
# Their words for nothing at all: there is no such dead letter, or the schedule is another one.
_UNDONE = ("no", "stale")

Steps: TypeAlias = Generator[tuple[Any, ...], Any, None]


class Unreplicated(BrokerError):
    """The master has it, and too few of its replicas have said so in time."""

    def __init__(self, message: str, verdicts: str, *, late: bool = False) -> None:
        super().__init__(message)
        self.verdicts = verdicts
        # Whether it was time alone that was short.
        self.late = late

    def of(self, verdict: str) -> Unreplicated:
        """Return the same of one message among those that were sent together."""
        return Unreplicated(str(self), verdict, late=self.late)


def steps(place: str, command: Command[Any], verdicts: str, until: float) -> Steps:
    """Yield what to send on the line that wrote, until enough replicas have it.

    `until` is a monotonic instant; they are asked once at least.

    Raises:
        Unreplicated: it passed before that.

    """
    if verdicts in _UNDONE:
        return
    if verdicts.strip(_WRITTEN):
        # What was known wrote nothing here, and WAIT looks at this connection's last write
        # alone. Replicas that have the mark have all that was written before it.
        yield "SET", keys.mark(command.base), "", "PX", _MARK_MS
    while True:
        left_ms = round((until - clock.monotonic()) * 1000)
        count = yield "WAIT", command.replicas, max(1, min(_WAIT_MS, left_ms))
        if count >= command.replicas:
            return
        if left_ms <= _WAIT_MS:
            msg = f"{place}: {count} of {command.replicas} replicas acknowledged it in time"
            raise _short(msg, verdicts, late=True)


def troubled(error: BrokerError, verdicts: str) -> BrokerError:
    """Return what an error means that came while replicas were waited for."""
    if isinstance(error, BrokerUnavailable) or "WAIT cannot be used with replica" in str(error):
        # It was written; whoever is the master now may know of it, or not.
        return Interrupted(str(error))
    return _short(f"replicas cannot be waited for: {error}", verdicts)


def _short(words: str, verdicts: str, *, late: bool = False) -> Unreplicated:
    return Unreplicated(f"the message stands on the master; {words}", verdicts, late=late)
