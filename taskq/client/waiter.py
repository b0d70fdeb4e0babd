"""Waiting for outcomes: one pub/sub connection, and any number of callers on it.

Subscribe, then read, then wait; after a reconnect read again, and every few seconds in
any case. So no outcome is missed, whatever was published while nobody listened. Who has waited
at once for what he sent is taken to do so again: what he sends next is subscribed to before.

Whoever waits blocking reads the connection himself, for all; those who come while
somebody reads are told by him, and one of them follows him. For those who await a thread
reads, while there are any.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from taskq.broker.connection import Endpoint
from taskq.broker.faults import CLIENT_ERRORS
from taskq.broker.guides import Address
from taskq.broker.line import pack
from taskq.broker.sockets import SOCKET_TIMEOUT, can_read, is_open
from taskq.errors import BrokerUnavailable
from taskq.model import clock

log = logging.getLogger("taskq.client")

# How long a reader blocks before it looks whether it should end.
_READ_SECONDS = 1.0
# So many channels may be left before Redis is told, with no new one to tell of.
_MOST_STALE = 100
# How many outcomes are listened for that nobody waits for yet.
_MOST_AHEAD = 64
# Between two attempts to connect, at first and at most.
_RECONNECT_SECONDS = (0.05, 1.0)


class Wait:
    """What one caller waits for; `notify` wakes it."""

    def __init__(self, notify: Callable[[], None] | None = None) -> None:
        # Of a caller who blocks.
        self.wake = threading.Event()
        self.awaited = notify is not None
        self.notify = notify or self.wake.set
        # (channel, outcome) as published. Appended by the reader, taken by the caller.
        self.news: deque[tuple[bytes, bytes]] = deque()
        # Channels not yet confirmed by Redis, by their waiter. Only touched under its lock.
        self.unconfirmed: dict[Waiter, set[bytes]] = {}
        # Whether confirmations alone are not worth waking for: news are about to come.
        self.lingers = False
        # Set when a connection broke, and once another one listens again: something may have
        # been published in between.
        self.missed = False
        # Waiters that were not confirmed when records were read: to read then was too soon.
        self.early: set[Waiter] = set()

    @property
    def owner(self) -> object:
        """Who waits: this thread, or the asyncio task that runs."""
        return asyncio.current_task() if self.awaited else threading.current_thread()

    def confirm(self, waiter: Waiter, channel: bytes) -> bool:
        """Note that a channel is confirmed, or left; return whether all of that waiter's are."""
        channels = self.unconfirmed.get(waiter, set())
        channels.discard(channel)
        if not channels:
            self.unconfirmed.pop(waiter, None)
        return not channels


class Waiter:
    """The process's subscriptions, and who reads what they bring."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self.reset()
        _waiters.add(self)

    def reset(self) -> None:
        """Begin without subscriptions. After a fork: the parent keeps those it has."""
        # Held by the one who reads the connection; only he opens and closes it.
        self._reading = threading.Lock()
        # Guards all fields below. Held for memory work and for one small write at most.
        self._lock = threading.Lock()
        self._waits: dict[bytes, list[Wait]] = {}
        self._confirmed: set[bytes] = set()
        # Subscribed channels that nobody waits for: told to Redis with the next that is new.
        self._stale: set[bytes] = set()
        # Subscribed channels that somebody is about to wait for, and what was published there.
        # A channel is in `_waits`, `_stale` or here, never in two of them.
        self._ahead: dict[bytes, bytes | None] = {}
        # Who waits at once for what he sends, a thread or an asyncio task; and the channel that
        # he is to wait for next.
        self._hasty: weakref.WeakKeyDictionary[object, bytes] = weakref.WeakKeyDictionary()
        self._connection: Any = None
        # After a broken connection: how long to rest before the next one.
        self._pause = 0.0
        # Blocking callers that rest, because another one reads.
        self._resting: list[Wait] = []
        # The waits of those who await, and the thread that reads for them.
        self._awaited: set[Wait] = set()
        self._thread: threading.Thread | None = None

    def subscribe(self, channels: Iterable[bytes], wait: Wait) -> None:
        """Bring the news of these channels to `wait`, from the confirmation on."""
        with self._lock:
            new: list[bytes] = []
            for channel in channels:
                waits = self._waits.get(channel)
                if waits is None:
                    waits = self._waits[channel] = []
                    if channel in self._ahead:
                        if (payload := self._ahead.pop(channel)) is not None:
                            wait.news.append((channel, payload))
                            wait.notify()
                    elif channel in self._stale:
                        self._stale.discard(channel)
                    else:
                        new.append(channel)
                waits.append(wait)
                if channel not in self._confirmed:
                    wait.unconfirmed.setdefault(self, set()).add(channel)
            self._send(new)
            if wait.awaited:
                self._awaited.add(wait)
                self._start()

    def hurry(self, who: object) -> None:
        """Note that a thread, or an asyncio task, waits for what it has just sent."""
        if who is not None and who not in self._hasty:
            self._hasty[who] = b""

    def hurried(self, who: object) -> bool:
        """Whether somebody will wait for what he sends next, if he does as he did before."""
        return who in self._hasty

    def expect(self, channel: bytes, who: object) -> None:
        """Listen for what somebody is about to send, unless he did not wait the last time."""
        last, self._hasty[who] = self._hasty.get(who, b""), channel
        if self.forgo(last):
            self._hasty.pop(who, None)
        else:
            self.listen(channel)

    def listen(self, channel: bytes) -> None:
        """Listen for an outcome that somebody is about to wait for."""
        with self._lock:
            if channel in self._waits or channel in self._ahead or not is_open(self._connection):
                return
            if len(self._ahead) >= _MOST_AHEAD:  # some have ended before they waited
                oldest = next(iter(self._ahead))
                del self._ahead[oldest]
                self._stale.add(oldest)
            self._ahead[channel] = None
            if channel in self._stale:
                self._stale.discard(channel)
            else:
                self._send([channel])

    def forgo(self, channel: bytes) -> bool:
        """End what `listen` began; return whether nobody has come to wait."""
        with self._lock:
            if channel not in self._ahead:
                return False
            del self._ahead[channel]
            self._stale.add(channel)
            return True

    def unsubscribe(self, channels: Iterable[bytes], wait: Wait) -> None:
        """End what `subscribe` began."""
        with self._lock:
            for channel in channels:
                waits = self._waits.get(channel, [])
                if wait in waits:
                    waits.remove(wait)
                    wait.confirm(self, channel)
                    if not waits:
                        del self._waits[channel]
                        self._stale.add(channel)
            if len(self._stale) > _MOST_STALE:
                self._send([])

    def attend(self, wait: Wait) -> None:
        """Bring the news to a blocking caller who has other waiters to look after too."""
        with self._lock:
            self._awaited.add(wait)
            self._start()

    def leave(self, wait: Wait) -> None:
        """Note that a wait is over."""
        with self._lock:
            self._awaited.discard(wait)

    def node_of(self, base: str) -> Address | None:  # noqa: ARG002
        """Return the node of a cluster from which news of a queue came last; None: not known."""
        return self._endpoint.node

    def rest(self, wait: Wait, seconds: float) -> None:
        """Block until `wait` is notified, at most so long; read the news if nobody does."""
        deadline = clock.monotonic() + seconds
        with self._lock:
            self._resting.append(wait)
        try:
            if self._reading.acquire(blocking=False):
                try:
                    self._read_until(deadline, wait.wake.is_set)
                finally:
                    self._reading.release()
            else:
                wait.wake.wait(seconds)
        finally:
            with self._lock:
                self._resting.remove(wait)
                follower = self._resting[0] if self._resting else None
            wait.wake.clear()
            # He may have been told while the connection was still in use: he looks again.
            if follower is not None and not self._reading.locked():
                follower.notify()

    def close(self) -> None:
        """Close the connection. A later wait opens a new one."""
        with self._lock:
            thread, self._thread, connection = self._thread, None, self._connection
        if thread is not None and thread is not threading.current_thread():
            if connection is not None:
                with contextlib.suppress(*CLIENT_ERRORS):
                    # It is blocked in a read, which ends with the connection.
                    connection.disconnect()
            thread.join(2 * _READ_SECONDS)
        if self._reading.acquire(timeout=2 * _READ_SECONDS):
            try:
                self._disconnect()
            finally:
                self._reading.release()

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._read_on, name="taskq-waiter", daemon=True)
            self._thread.start()

    def _send(self, new: list[bytes]) -> None:
        """Subscribe, and end what is stale: in one packet, if there is a connection.

        Where there is none, or it is broken, the reader subscribes to all when he has one.
        """
        shard = "S" if self._endpoint.sharded else ""
        words: list[tuple[str | bytes, ...]] = [(f"{shard}SUBSCRIBE", *new)] if new else []
        if self._stale:
            words.append((f"{shard}UNSUBSCRIBE", *self._stale))
            self._confirmed -= self._stale
            self._stale.clear()
        if words and is_open(self._connection):
            # Not the client's own errors alone: the reader may be closing it.
            with contextlib.suppress(Exception):
                packed = b"".join(map(pack, words))
                self._connection.send_packed_command((packed,), check_health=False)

    def _read_on(self) -> None:
        """Read while somebody awaits."""
        me = threading.current_thread()
        while True:
            with self._reading:
                self._read_until(clock.monotonic() + _READ_SECONDS, lambda: self._thread is not me)
            with self._lock:
                if self._thread is me and self._awaited:
                    continue
                if self._thread is me:
                    self._thread = None
                follower = self._resting[0] if self._resting else None
            if follower is not None:
                follower.notify()
            return

    def _read_until(self, deadline: float, stop: Callable[[], bool]) -> None:
        """Hand out news until `stop()` or a monotonic instant. Called under `_reading`."""
        while not stop() and (left := deadline - clock.monotonic()) > 0:
            try:
                if self._connection is None:
                    self._connect(left)
                elif can_read(self._connection, min(left, _READ_SECONDS)):
                    self._handle(self._connection.read_response())
            except Exception as error:  # noqa: BLE001
                # Not the client's own errors alone: whoever sends on a broken connection closes
                # it under our hands, and then anything can be None.
                if isinstance(error, CLIENT_ERRORS):
                    self._endpoint.translate(error, sent=True, of=self._connection)
                log.debug("waiting: %s: %s", self._endpoint.place, error)
                self._disconnect()
                self._pause = min(
                    max(2 * self._pause, _RECONNECT_SECONDS[0]), _RECONNECT_SECONDS[1]
                )
            except BaseException:
                # Interrupted in the midst of a reply: the next reader would read the rest.
                self._disconnect()
                raise

    def _connect(self, left: float) -> None:
        if self._pause > 0:
            clock.sleep(min(self._pause, left))
        # Whoever waits for a short time does not wait longer for a host that is silent.
        connection = self._endpoint.open(max(0.05, min(SOCKET_TIMEOUT, left)), listens=True)
        self._pause = 0.0
        with self._lock:
            self._connection = connection
            for channel, waits in self._waits.items():
                for wait in waits:
                    wait.unconfirmed.setdefault(self, set()).add(channel)
                    wait.early.add(self)
            self._stale.clear()
            self._send(list(self._waits))

    def _disconnect(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
            self._confirmed.clear()
            self._ahead.clear()
            waits = {id(wait): wait for waits in self._waits.values() for wait in waits}
        if connection is None:
            return  # nobody listened, so nothing more was missed
        with contextlib.suppress(*CLIENT_ERRORS):  # it is broken already
            connection.disconnect()
        for wait in waits.values():
            wait.missed = True
            wait.notify()

    def _handle(self, reply: Any) -> None:
        match reply:
            case [b"subscribe" | b"ssubscribe", channel, _]:
                self._confirm(channel)
            case [b"message" | b"smessage", channel, payload]:
                with self._lock:
                    waits = list(self._waits.get(channel, ()))
                    if channel in self._ahead:
                        self._ahead[channel] = payload
                for wait in waits:
                    wait.news.append((channel, payload))
                    wait.notify()
            case [b"sunsubscribe", channel, _] if channel in self._confirmed:
                # Nobody asked for that: the slot has gone to another node.
                msg = f"{self._endpoint.place}: {channel!r} is heard elsewhere"
                raise BrokerUnavailable(msg)
            case _:  # the end of a subscription
                pass

    def _confirm(self, channel: bytes) -> None:
        with self._lock:
            waits = list(self._waits.get(channel, ()))
            # Also where nobody waits at the moment: somebody may come before it is left.
            if waits or channel in self._ahead or channel in self._stale:
                self._confirmed.add(channel)
            heard = [wait for wait in waits if wait.confirm(self, channel)]
        for wait in heard:
            if self in wait.early:
                wait.early.discard(self)
                wait.missed = True
            if not wait.lingers:
                wait.notify()


_waiters: weakref.WeakSet[Waiter] = weakref.WeakSet()


def _after_fork() -> None:
    """Leave the parent's subscriptions to the parent: two readers would share its news."""
    for waiter in list(_waiters):
        waiter.reset()


os.register_at_fork(after_in_child=_after_fork)
