"""Hears what a timekeeper must know at once: schedules that change, messages that are over.

What is not heard, because a connection was broken, costs time: everything is looked at again
every 15 seconds.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable

from taskq.broker import keys
from taskq.broker.connection import Endpoint
from taskq.broker.line import Line
from taskq.errors import BrokerError, BrokerUnavailable
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
                self._begin_anew()
            except Exception:
                # A defect must not make the worker deaf.
                log.exception("listening for schedules failed")
                self._begin_anew()
        self._line.close()

    def _begin_anew(self) -> None:
        """Subscribe to all again, after a moment, on another connection."""
        self._line.close()
        self._confirmed, self._asked = {}, {}
        self._stopped.wait(0.2 + secrets.randbelow(800) / 1000)

    def _hear(self) -> None:
        """Ask for what is missing, and hear what is said within a second."""
        wanted = self._wanted()
        if wanted or self._asked:
            self._line.connect()
        shard = "S" if self._line.endpoint.sharded else ""
        if new := [channel for channel in wanted if channel not in self._asked]:
            self._line.send(f"{shard}SUBSCRIBE", *new)
        if stale := [channel for channel in self._asked if channel not in wanted]:
            self._line.send(f"{shard}UNSUBSCRIBE", *stale)
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
        if kind == b"sunsubscribe" and channel in self._confirmed:
            # Nobody asked for that: the slot has gone to another node.
            self._line.close()
            msg = f"{channel!r} is heard elsewhere"
            raise BrokerUnavailable(msg)
        if queue is None or kind in (b"unsubscribe", b"sunsubscribe"):
            return
        if kind in (b"subscribe", b"ssubscribe"):
            self._confirmed[channel] = queue
        else:
            self._awaited.pop(channel, None)
        # After a subscription as well: something may have been told before it.
        self._heard(queue)


class Ears:
    """One ear for all queues; but with a cluster one for each, at the node that has it."""

    def __init__(
        self,
        app: str,
        endpoint: Endpoint,
        queues: Callable[[], list[str]],
        heard: Callable[[str], None],
    ) -> None:
        self._app, self._endpoint, self._queues, self._heard = app, endpoint, queues, heard
        self._ears: dict[str, Ear] = {}
        self._started = False

    def start(self) -> None:
        """Start to listen."""
        self._started = True
        if not self._endpoint.clustered:
            self._ear("")

    def attend(self) -> None:
        """Listen for the queues that there are by now."""
        if self._started and self._endpoint.clustered:
            for queue in self._queues():
                self._ear(queue)

    def stop(self) -> None:
        """Let the threads end, some time soon."""
        for ear in list(self._ears.values()):
            ear.stop()

    def await_end(self, queue: str, id: str) -> bool:
        """Listen for the end of a message as well; return whether that is so already."""
        return self._ear(queue if self._endpoint.clustered else "").await_end(queue, id)

    def _ear(self, name: str) -> Ear:
        ear = self._ears.get(name)
        if ear is None:
            endpoint = self._endpoint.at(keys.base(self._app, name))

            def queues() -> list[str]:
                known = self._queues()
                return [name] if name in known else [] if name else known

            ear = self._ears[name] = Ear(self._app, endpoint, queues, self._heard)
            ear.start()
        return ear
