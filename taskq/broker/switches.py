"""Hears of a master that is replaced, and cuts the connections to the one before.

The old one goes on to take writes until its sentinels make it a replica, about ten seconds
after an operator's `SENTINEL FAILOVER`; all of them are lost. Who hears of it leaves at once.
https://redis.io/docs/latest/develop/reference/sentinel-clients/ (`+switch-master`)
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import weakref
from collections.abc import Callable
from typing import Any

from redis.exceptions import RedisError

from taskq.broker.guides import Address, Sentinels
from taskq.model import clock

_CHANNEL = "+switch-master"
# How long it listens before it looks whether there is still something to cut.
_LISTEN_SECONDS = 1.0
# Where no sentinel answers.
_AWAY_SECONDS = 0.5


class Switches:
    """A thread that listens to a sentinel while there are connections to its master."""

    def __init__(self, guide: Sentinels, connect: Callable[[Address], Any]) -> None:
        self._guide, self._connect = guide, connect
        self._reset()

    def _reset(self) -> None:
        # Open connections, blocking and awaited, and to whom they lead.
        self._known: weakref.WeakKeyDictionary[Any, Address] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        # The process in which the thread runs; 0 where none does.
        self._pid = 0

    def watch(self, connection: Any, address: Address) -> None:
        """Cut a connection once another server is the master."""
        if self._pid not in (0, os.getpid()):
            # After a fork: thread and connections are the parent's.
            self._reset()
        with self._lock:
            self._known[connection] = address
            if not self._pid:
                self._pid = os.getpid()
                threading.Thread(target=self._run, name="taskq-sentinels", daemon=True).start()

    def _run(self) -> None:
        number = 0
        while self._needed():
            addresses = [question.address for question in self._guide.questions()]
            address = addresses[number % len(addresses)]
            number += 1
            try:
                self._listen(address)
            except (RedisError, OSError):
                clock.sleep(_AWAY_SECONDS)

    def _needed(self) -> bool:
        with self._lock:
            if not self._known:
                self._pid = 0
            return bool(self._pid)

    def _listen(self, address: Address) -> None:
        """Hear what one sentinel says, until nobody needs that or it is away."""
        connection = self._connect(address)
        try:
            connection.connect()
            connection.send_command("SUBSCRIBE", _CHANNEL, check_health=False)
            while self._needed():
                if connection.can_read(timeout=_LISTEN_SECONDS):
                    kind, _, what = connection.read_response()
                    if kind == b"message":
                        self._heed(what.decode().split())
        finally:
            connection.disconnect()

    def _heed(self, words: list[str]) -> None:
        """Cut what does not lead to the new master: service, old host and port, new ones."""
        if len(words) != 5 or words[0] != self._guide.service:
            return
        new = words[3], int(words[4])
        with self._lock:
            old = [one for one, address in self._known.items() if address != new]
        for connection in old:
            _cut(connection)


def _cut(connection: Any) -> None:
    """End a connection from outside: whoever reads or writes finds it broken."""
    writer = getattr(connection, "_writer", None)
    one = getattr(connection, "_sock", None) or (writer and writer.get_extra_info("socket"))
    with contextlib.suppress(OSError):
        if isinstance(one, socket.socket):
            # The plain one: TLS's own would go on in the clear for a moment.
            socket.socket.shutdown(one, socket.SHUT_RDWR)
        elif one is not None:
            one.shutdown(socket.SHUT_RDWR)
