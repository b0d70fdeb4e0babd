"""Hears of a master that is replaced, and cuts the connections to the one before.

The old one goes on to take writes until its sentinels make it a replica, about ten seconds
after an operator's `SENTINEL FAILOVER`; all of them are lost. Who hears of it leaves at once.
https://redis.io/docs/latest/develop/reference/sentinel-clients/ (`+switch-master`)
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import weakref
from collections.abc import Callable
from typing import Any

from redis.exceptions import RedisError, ResponseError

from taskq.broker.guides import Address, Sentinels, spelt
from taskq.errors import BrokerError, BrokerUnavailable
from taskq.model import clock

log = logging.getLogger("taskq.broker")

_CHANNEL = "+switch-master"
# How long it listens before it looks whether there is still something to cut, and whether the
# sentinel is still there; and how long that may be silent.
_LISTEN_SECONDS = 1.0
_SILENT_SECONDS = 3.0
# The others hear of it by what sentinels say every two seconds.
_STALE_SECONDS = 10.0
# Where no sentinel answers; and where they refuse to tell.
_AWAY_SECONDS = 0.5
_REFUSED_SECONDS = 10.0


class Switches:
    """A thread that listens to a sentinel while there are connections to its master."""

    def __init__(
        self,
        guide: Sentinels,
        connect: Callable[[Address], Any],
        find: Callable[[], Address],
    ) -> None:
        self._guide, self._connect, self._find = guide, connect, find
        self._told = False
        self._reset()

    def _reset(self) -> None:
        # Open connections, blocking and awaited, and to whom they lead.
        self._known: weakref.WeakKeyDictionary[Any, Address] = weakref.WeakKeyDictionary()
        # Masters that were replaced, and until when another sentinel may not know it.
        self._left: dict[Address, float] = {}
        self._lock = threading.Lock()
        # The process in which the thread runs; 0 where none does.
        self._pid = 0

    def watch(self, connection: Any, address: Address) -> None:
        """Cut a connection once another server is the master.

        Raises:
            BrokerUnavailable: it was told already that another one is.

        """
        if self._pid not in (0, os.getpid()):
            # After a fork: thread and connections are the parent's.
            self._reset()
        if clock.monotonic() < self._left.get(address, 0.0):
            msg = f"{spelt(address)} was named as the master, and was replaced just now"
            raise BrokerUnavailable(msg)
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
            except ResponseError as error:
                if not self._told:
                    self._told = True
                    log.warning("sentinels do not tell when the master is another: %s", error)
                clock.sleep(_REFUSED_SECONDS)
            except (RedisError, OSError):
                clock.sleep(_AWAY_SECONDS)

    def _needed(self) -> bool:
        with self._lock:
            if not any(map(_socket_of, self._known)):
                self._pid = 0
            return bool(self._pid)

    def _listen(self, address: Address) -> None:
        """Hear what one sentinel says, until nobody needs that or it is away."""
        connection, answers = self._connect(address), 0
        try:
            connection.connect()
            answered = clock.monotonic()
            while self._needed() and clock.monotonic() - answered < _SILENT_SECONDS:
                # Again and again: one that is frozen or cut off does not answer.
                connection.send_command("SUBSCRIBE", _CHANNEL, check_health=False)
                while connection.can_read(timeout=_LISTEN_SECONDS):
                    kind, _, what = connection.read_response()
                    answers, answered = answers + 1, clock.monotonic()
                    if kind == b"message":
                        self._heed(what.decode().split())
                    elif answers == 1:
                        self._look()
        finally:
            connection.disconnect()

    def _look(self) -> None:
        """Ask who the master is: it may have become another before anybody listened."""
        with contextlib.suppress(BrokerError):
            master = self._find()
            self._left.pop(master, None)
            self._leave(master)

    def _heed(self, words: list[str]) -> None:
        """Leave a master: the words are the service, its host and port, those of the new one."""
        if len(words) == 5 and words[0] == self._guide.service:
            old, new = (words[1], int(words[2])), (words[3], int(words[4]))
            # First this: who is on the way to the old one is not known yet.
            self._left[old] = clock.monotonic() + _STALE_SECONDS
            self._left.pop(new, None)
            self._leave(new)

    def _leave(self, master: Address) -> None:
        """Cut what does not lead to the master."""
        with self._lock:
            old = [one for one, address in self._known.items() if address != master]
        for connection in old:
            _cut(connection)


def _socket_of(connection: Any) -> Any:
    """Return the socket of a connection that is open, blocking or awaited; else None."""
    writer = getattr(connection, "_writer", None)
    return getattr(connection, "_sock", None) or (writer and writer.get_extra_info("socket"))


def _cut(connection: Any) -> None:
    """End a connection from outside: whoever reads or writes finds it broken."""
    one = _socket_of(connection)
    with contextlib.suppress(OSError):
        if isinstance(one, socket.socket):
            # The plain one: TLS's own would go on in the clear for a moment.
            socket.socket.shutdown(one, socket.SHUT_RDWR)
        elif one is not None:
            one.shutdown(socket.SHUT_RDWR)
