"""Waiting for work without polling: a call that blocks on bells, and on nothing else.

A lost ring costs latency, never a message: every return, time-outs included, is followed
by a claim.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from taskq.broker import commands, keys
from taskq.broker.connection import Endpoint
from taskq.broker.sync import Line
from taskq.errors import BrokerError
from taskq.model import clock

log = logging.getLogger("taskq.worker")

# Well under redis-py's socket timeout of 5 s.
BLOCK_SECONDS = 2
_AWAY_SECONDS = 0.3


class Heard(msgspec.Struct, frozen=True):
    """Why the bell's call returned."""

    # The queue that was heard of; None where only this bell was woken.
    queue: str | None
    # Whether that queue wants something cancelled; else it may have work.
    summons: bool = False


class Bell:
    """Rings when a queue of this child may have work for a kind of slot that is free.

    One thread listens at a time.
    """

    def __init__(
        self, app: str, endpoint: Endpoint, queues: Sequence[str], digest: str, child: str
    ) -> None:
        self._app = app
        self._queues = list(queues)
        self._digest = digest
        self._line = Line(endpoint)
        # Wakes this very bell; in the slot of the first queue.
        self.own_key = keys.wake(app, self._queues[0], child)
        self.kick = commands.wake(keys.base(app, self._queues[0]), child)
        # What the blocked call listens for; None while none is blocked.
        self.listening: str | None = None
        self._heeded: dict[str, str] = {}

    def lacks(self, kinds: str, members: dict[str, str]) -> bool:
        """Whether a call is blocked that does not hear of all of this."""
        listening = self.listening
        return listening is not None and (
            any(kind not in listening for kind in kinds) or self._heeded != members
        )

    def listen(
        self, kinds: str, members: dict[str, str], paused: frozenset[str] = frozenset()
    ) -> Heard | None:
        """Block until a bell rings; None: time has passed, or Redis is away.

        Args:
            kinds: of slot, those with room.
            members: who this child is in each queue. By that it is called, whatever has
                room, to cancel something.
            paused: queues the work of which is left to others for some time.

        """
        try:
            return self._block(kinds, members, paused)
        except BrokerError as error:
            log.debug("the bell: %s", error)
            clock.sleep(_AWAY_SECONDS)
            return None

    def close(self) -> None:
        """Close the connection. Nobody listens any more."""
        self._line.close()

    def _block(self, kinds: str, members: dict[str, str], paused: frozenset[str]) -> Heard | None:
        wakes = {keys.wake(self._app, queue, one): queue for queue, one in members.items()}
        bells = {
            keys.bell(self._app, queue, self._digest, kind): queue
            for queue in self._queues
            if queue not in paused
            for kind in kinds
        }
        self.listening, self._heeded = kinds, members
        try:
            reply = self._line.call("BLPOP", self.own_key, *wakes, *bells, BLOCK_SECONDS)
        finally:
            self.listening = None
        if reply is None:
            return None
        key = reply[0].decode()
        return Heard(wakes[key], summons=True) if key in wakes else Heard(bells.get(key))
