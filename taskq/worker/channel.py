"""The line between supervisor and child: JSON objects, one a line, over a socket pair."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any, TypeAlias

Note: TypeAlias = dict[str, Any]

_CHUNK = 1 << 16


class Channel:
    """One end. Any thread may send; one receives."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._buffer = b""
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """Return the descriptor, for selecting."""
        return self._socket.fileno()

    def send(self, note: Note) -> bool:
        """Send one note; return False if the other end is gone."""
        try:
            with self._lock:
                self._socket.sendall(json.dumps(note).encode() + b"\n")
        except OSError:
            return False
        return True

    def receive(self) -> list[Note] | None:
        """Block for data and return the notes that are complete; None at the end."""
        try:
            data = self._socket.recv(_CHUNK)
        except OSError:
            return None
        if not data:
            return None
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        """Close this end."""
        self._socket.close()
