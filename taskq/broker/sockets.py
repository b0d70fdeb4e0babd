"""What is asked of the system about a connection's socket, with fewer calls than redis-py makes."""

from __future__ import annotations

import select
import socket
import struct
from typing import Any

# How long one call of a socket may take, unless the URL says otherwise.
SOCKET_TIMEOUT = 5.0


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
