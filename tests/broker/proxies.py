"""A line to a server that can be cut at the worst moment."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self

from tests.servers import HOST


class Proxy:
    """Passes bytes on between its clients and a server."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        # How many connections were opened.
        self.count = 0
        # Swallow the next reply, end the connection, and refuse all others from then on.
        self.cut_at_reply = False
        self._start(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()
        for one in self._sockets:
            _end(one)
        for thread in self._threads:
            thread.join(5)

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    def refuse(self) -> None:
        """Accept no more connections."""
        # Only a shutdown wakes an accept() that waits.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.count += 1
                server = socket.create_connection((HOST, self._port))
                self._sockets += (client, server)
                self._start(self._pass_on, client, server)
                self._start(self._pass_back, server, client)

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        _end(source)
        _end(sink)

    def _pass_back(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.cut_at_reply:
                    self.refuse()
                    break
                sink.sendall(data)
        _end(source)
        _end(sink)


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
