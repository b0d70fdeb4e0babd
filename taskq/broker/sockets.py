"""What is asked of the system about a connection's socket, with fewer calls than redis-py makes."""

from __future__ import annotations

import contextlib
import functools
import select
import socket
import struct
from typing import Any

from taskq.config import usable_cpus
from taskq.model import clock

# How long one call of a socket may take, unless the URL says otherwise.
SOCKET_TIMEOUT = 5.0
# How long a reply is waited for awake: three times what one takes from a Redis on this machine.
_SPIN_SECONDS = 0.0001
_MOST_PASSING = 256


def leave_limit_to_system(connection: Any) -> None:
    """Let the system limit each call of a socket: Python polls before it where it has a limit.

    That doubles the calls of the system, each of which also lets go of Python's lock.
    """
    sock = getattr(connection, "_sock", None)
    # TLS reads and writes as it likes; and zeros would be no limit.
    if type(sock) is socket.socket and (seconds := sock.gettimeout()):
        # A `struct timeval`.
        limit = struct.pack("ll", *divmod(max(1, round(seconds * 1_000_000)), 1_000_000))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        sock.settimeout(None)


class Spin:
    """Waits awake for a reply that comes soon: to sleep and be woken takes longer than most take.

    After a wait in vain one call is let pass without, after the next one two, then four: so a
    Redis that is far away, or at work, costs a moment now and then. The way of adaptive mutexes.
    """

    def __init__(self) -> None:
        self._sock: socket.socket | None = None
        self._poll = select.poll()
        # So many calls are let pass now; and so many after the next wait in vain.
        self._passing, self._next = 0, 1
        # With one processor, or no more than the time of one, who stays awake keeps the other side
        # from answering.
        self._seconds = _SPIN_SECONDS if _processors() > 1 else 0.0

    def wait(self, connection: Any) -> bool:
        """Return whether there is something to read, be it the end, within a moment."""
        if self._passing:
            self._passing -= 1
            return False
        sock = getattr(connection, "_sock", None)
        if sock is not self._sock:
            if type(sock) is not socket.socket:
                return False
            self._sock, self._poll = sock, select.poll()
            with contextlib.suppress(ValueError):  # it was closed at this moment
                self._poll.register(sock, select.POLLIN)
        until = clock.monotonic() + self._seconds
        while not self._poll.poll(0):
            if clock.monotonic() >= until:
                self._passing, self._next = self._next, min(2 * self._next, _MOST_PASSING)
                return False
        self._next = 1
        return True


# It reads files.
_processors = functools.cache(usable_cpus)


def is_open(connection: Any) -> bool:
    """Return whether a connection has a socket. One that has none would connect to be sent on."""
    return getattr(connection, "_sock", None) is not None


def can_read(connection: Any, seconds: float) -> bool:
    """Return whether there is something to read, be it the end, within so many seconds.

    As the connection's own `can_read`, which asks the system up to four times.

    Raises:
        ConnectionError: there is no connection any more.

    """
    sock = getattr(connection, "_sock", None)
    if sock is None:
        # Its own `can_read` would connect anew, and hear nothing: nobody would subscribe there.
        msg = "the connection was closed"
        raise ConnectionError(msg)
    reader: Any = getattr(getattr(connection, "_parser", None), "_reader", None)
    if type(sock) is not socket.socket or not hasattr(reader, "has_data"):
        return bool(connection.can_read(timeout=seconds))
    if reader.has_data():
        return True
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
