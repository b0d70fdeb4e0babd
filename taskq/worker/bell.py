"""Waiting for work without polling: a call that blocks on bells, and on nothing else.

A lost ring costs latency, never a message: every return, time-outs included, is followed
by a claim.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from taskq.broker import keys
from taskq.broker.connection import Endpoint
from taskq.broker.sync import Line
from taskq.errors import BrokerError
from taskq.model import clock

log = logging.getLogger("taskq.worker")

# Well under redis-py's socket timeout of 5 s.
BLOCK_SECONDS = 2
_AWAY_SECONDS = 0.3


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
        # What the blocked call listens for; None while none is blocked.
        self.listening: str | None = None

    def lacks(self, kinds: str) -> bool:
        """Whether a call is blocked that does not hear of all these kinds of slot."""
        listening = self.listening
        return listening is not None and any(kind not in listening for kind in kinds)

    def listen(self, kinds: str) -> list[str] | None:
        """Block until a bell rings; return its queue, nothing where only this bell was woken.

        None: time has passed, or Redis is away.
        """
        try:
            return self._block(kinds)
        except BrokerError as error:
            log.debug("the bell: %s", error)
            clock.sleep(_AWAY_SECONDS)
            return None

    def close(self) -> None:
        """Close the connection. Nobody listens any more."""
        self._line.close()

    def _block(self, kinds: str) -> list[str] | None:
        bells = {
            keys.bell(self._app, queue, self._digest, kind): queue
            for queue in self._queues
            for kind in kinds
        }
        self.listening = kinds
        try:
            reply = self._line.call("BLPOP", self.own_key, *bells, BLOCK_SECONDS)
        finally:
            self.listening = None
        if reply is None:
            return None
        queue = bells.get(reply[0].decode())
        return [queue] if queue else []
