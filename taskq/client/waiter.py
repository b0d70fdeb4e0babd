"""Waiting for outcomes: one pub/sub connection, and any number of callers on it.

Subscribe, then read, then wait; after a reconnect read again, and every few seconds in
any case. So no outcome is missed, whatever was published while nobody listened.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from taskq.broker.connection import CLIENT_ERRORS, Endpoint
from taskq.model import clock

log = logging.getLogger("taskq.client")

# How long the reader blocks before it looks whether it should end.
_READ_SECONDS = 1.0
_RECONNECT_SECONDS = (0.05, 1.0)


class Wait:
    """What one caller waits for; `notify` wakes it."""

    def __init__(self, notify: Callable[[], None]) -> None:
        self.notify = notify
        # (channel, outcome) as published. Appended by the reader, taken by the caller.
        self.news: deque[tuple[bytes, bytes]] = deque()
        # Channels not yet confirmed by Redis. Only touched under the waiter's lock.
        self.unconfirmed: set[bytes] = set()
        # Set after a reconnect: something may have been published in between.
        self.missed = False


class Waiter:
    """The process's subscriptions, and the thread that reads what they bring."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self.reset()
        _waiters.add(self)

    def reset(self) -> None:
        """Begin without subscriptions. After a fork: the parent keeps those it has."""
        # Guards all fields below. Held for memory work and for one small write at most.
        self._lock = threading.Lock()
        self._waits: dict[bytes, list[Wait]] = {}
        self._confirmed: set[bytes] = set()
        self._connection: Any = None
        self._thread: threading.Thread | None = None

    def subscribe(self, channels: Iterable[bytes], wait: Wait) -> None:
        """Bring the news of these channels to `wait`, from the confirmation on."""
        with self._lock:
            new: list[bytes] = []
            for channel in channels:
                waits = self._waits.setdefault(channel, [])
                waits.append(wait)
                if channel not in self._confirmed:
                    wait.unconfirmed.add(channel)
                if len(waits) == 1:
                    new.append(channel)
            self._start()
            self._send("SUBSCRIBE", new)

    def unsubscribe(self, channels: Iterable[bytes], wait: Wait) -> None:
        """End what `subscribe` began."""
        with self._lock:
            gone: list[bytes] = []
            for channel in channels:
                waits = self._waits.get(channel, [])
                if wait in waits:
                    waits.remove(wait)
                    if not waits:
                        del self._waits[channel]
                        self._confirmed.discard(channel)
                        gone.append(channel)
            self._send("UNSUBSCRIBE", gone)

    def close(self) -> None:
        """End the reader. A later wait starts a new one."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(2 * _READ_SECONDS)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._read_on, name="taskq-waiter", daemon=True)
            self._thread.start()

    def _send(self, word: str, channels: list[bytes]) -> None:
        """Write to the connection, if there is one; the reader subscribes otherwise."""
        if channels and self._connection is not None:
            # A broken connection: the reader notices it and subscribes anew.
            with contextlib.suppress(*CLIENT_ERRORS):
                self._connection.send_command(word, *channels, check_health=False)

    def _read_on(self) -> None:
        me = threading.current_thread()
        pause = _RECONNECT_SECONDS[0]
        while self._thread is me:
            connection = self._endpoint.connection()
            try:
                self._connect(connection)
                pause = _RECONNECT_SECONDS[0]
                while self._thread is me:
                    if connection.can_read(timeout=_READ_SECONDS):
                        self._handle(connection.read_response())
            except CLIENT_ERRORS as error:
                log.debug("waiting: %s: %s", self._endpoint.place, error)
                clock.sleep(pause)
                pause = min(2 * pause, _RECONNECT_SECONDS[1])
            finally:
                self._disconnect(connection)

    def _connect(self, connection: Any) -> None:
        connection.connect()
        with self._lock:
            self._connection = connection
            for channel, waits in self._waits.items():
                for wait in waits:
                    wait.unconfirmed.add(channel)
            self._send("SUBSCRIBE", list(self._waits))

    def _disconnect(self, connection: Any) -> None:
        with self._lock:
            if self._connection is connection:
                self._connection = None
            self._confirmed.clear()
            waits = {id(wait): wait for waits in self._waits.values() for wait in waits}
        with contextlib.suppress(*CLIENT_ERRORS):  # it is broken already
            connection.disconnect()
        for wait in waits.values():
            wait.missed = True
            wait.notify()

    def _handle(self, reply: Any) -> None:
        match reply:
            case [b"subscribe", channel, _]:
                self._confirm(channel)
            case [b"message", channel, payload]:
                with self._lock:
                    waits = list(self._waits.get(channel, ()))
                for wait in waits:
                    wait.news.append((channel, payload))
                    wait.notify()
            case _:  # the end of a subscription
                pass

    def _confirm(self, channel: bytes) -> None:
        with self._lock:
            waits = list(self._waits.get(channel, ()))
            if waits:
                self._confirmed.add(channel)
            for wait in waits:
                wait.unconfirmed.discard(channel)
        for wait in waits:
            if not wait.unconfirmed:
                wait.notify()


_waiters: weakref.WeakSet[Waiter] = weakref.WeakSet()


def _after_fork() -> None:
    """Leave the parent's subscriptions to the parent: two readers would share its news."""
    for waiter in list(_waiters):
        waiter.reset()


os.register_at_fork(after_in_child=_after_fork)
