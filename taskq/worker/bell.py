"""Waiting for work without polling: a thread that blocks on bells, and on nothing else.

A lost ring costs latency, never a message: every return, time-outs included, is followed
by a claim.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

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
    """Rings when a queue of this child may have work for a kind of slot that is free."""

    def __init__(
        self, app: str, endpoint: Endpoint, queues: Sequence[str], digest: str, child: str
    ) -> None:
        self._app = app
        self._queues = list(queues)
        self._digest = digest
        self._line = Line(endpoint)
        # Wakes this very bell; in the slot of the first queue.
        self.own_key = keys.wake(app, self._queues[0], child)
        self._kinds: Callable[[], str] = str
        self._rang: Callable[[list[str] | None], None] = lambda _queues: None
        self._room = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._listen, name="taskq-bell", daemon=True)
        # What the blocked call listens for; '' while it does not block.
        self.listening = ""

    def start(self, kinds: Callable[[], str], rang: Callable[[list[str] | None], None]) -> None:
        """Listen: `kinds()` says for what, `rang(queues)` is told, None for a time-out."""
        self._kinds, self._rang = kinds, rang
        self._thread.start()

    def look(self) -> bool:
        """Note that slots were freed or filled; return whether the bell must be kicked.

        A call that blocks already does not hear of a kind that has room only now.
        """
        kinds = self._kinds()
        if kinds:
            self._room.set()
        return bool(self.listening) and any(kind not in self.listening for kind in kinds)

    def stop(self) -> None:
        """End the thread, once its blocked call returns."""
        self._stopped = True
        self._room.set()

    def join(self, seconds: float) -> None:
        """Wait for the thread to end."""
        self._thread.join(seconds)

    def _listen(self) -> None:
        while not self._stopped:
            kinds = self._kinds()
            if not kinds:
                self._room.wait()
                self._room.clear()
                continue
            try:
                queues = self._block(kinds)
            except BrokerError as error:
                log.debug("the bell: %s", error)
                clock.sleep(_AWAY_SECONDS)
                queues = None
            if not self._stopped:
                self._rang(queues)
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
            self.listening = ""
        if reply is None:
            return None
        queue = bells.get(reply[0].decode())
        return [queue] if queue else []
