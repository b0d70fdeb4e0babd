"""Hears what a timekeeper must know at once: schedules that change, messages that are over.

What is not heard, because a connection was broken, costs time: everything is looked at again
every few seconds.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable

from taskq.broker import keys
from taskq.broker.connection import Endpoint
from taskq.broker.sync import Line
from taskq.errors import BrokerError
from taskq.model import clock

log = logging.getLogger("taskq.worker")

# How long it listens before it looks for what else there is to listen to.
_LISTEN_SECONDS = 1.0
# A message that was not asked for again within so long is not waited for any more.
_AWAIT_SECONDS = 20.0


class Ear:
    """A thread with a subscription to the schedules of some queues."""

    def __init__(
        self,
        app: str,
        endpoint: Endpoint,
        queues: Callable[[], list[str]],
        heard: Callable[[str], None],
    ) -> None:
        self._app, self._queues, self._heard = app, queues, heard
        self._line = Line(endpoint)
        self._stopped = threading.Event()
        # Channel → queue: those that Redis has confirmed, and those it was asked for.
        self._confirmed: dict[bytes, str] = {}
        self._asked: dict[bytes, str] = {}
        # Channels of messages that a tick waits for: queue, and until when.
        self._awaited: dict[bytes, tuple[str, float]] = {}
        self._thread = threading.Thread(
            target=self._listen, name="taskq-schedules-ear", daemon=True
        )

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end, some time soon: it may be listening."""
        self._stopped.set()

    def await_end(self, queue: str, id: str) -> bool:
        """Listen for the end of a message as well; return whether that is so already."""
        channel = keys.done(self._app, queue, id).encode()
        self._awaited[channel] = queue, clock.monotonic() + _AWAIT_SECONDS
        return channel in self._confirmed

    def _listen(self) -> None:
        while not self._stopped.is_set():
            try:
                self._hear()
            except BrokerError as error:
                log.debug("schedules: %s", error)
                self._confirmed, self._asked = {}, {}
                self._stopped.wait(0.2 + secrets.randbelow(800) / 1000)
        self._line.close()

    def _hear(self) -> None:
        """Ask for what is missing, and hear what is said within a second."""
        wanted = self._wanted()
        if new := [channel for channel in wanted if channel not in self._asked]:
            self._line.send("SUBSCRIBE", *new)
        if stale := [channel for channel in self._asked if channel not in wanted]:
            self._line.send("UNSUBSCRIBE", *stale)
            for channel in stale:
                self._confirmed.pop(channel, None)
        self._asked = wanted
        if not wanted:
            self._stopped.wait(_LISTEN_SECONDS / 4)
        elif self._line.hears(_LISTEN_SECONDS):
            kind, channel, *_ = self._line.receive()
            self._take(kind, channel)

    def _wanted(self) -> dict[bytes, str]:
        now = clock.monotonic()
        for channel, (_, until) in list(self._awaited.items()):
            if until < now:
                del self._awaited[channel]
        awaited = {channel: queue for channel, (queue, _) in list(self._awaited.items())}
        return {keys.agenda(self._app, one).encode(): one for one in self._queues()} | awaited

    def _take(self, kind: bytes, channel: bytes) -> None:
        queue = self._asked.get(channel)
        if queue is None or kind == b"unsubscribe":
            return
        if kind == b"subscribe":
            self._confirmed[channel] = queue
        else:
            self._awaited.pop(channel, None)
        # After a subscription as well: something may have been told before it.
        self._heard(queue)
