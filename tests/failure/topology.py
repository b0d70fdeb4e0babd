"""Where a scenario's Redis is: what can be killed, frozen, and cut off from the rest.

A scenario knows only this face. Another kind of Redis is another class and another line in
`TOPOLOGIES`.
"""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

from tests.failure.proxy import Proxy
from tests.servers import Server

# What a dead server must not forget.
DURABLE: dict[str, str | int] = {"appendonly": "yes", "appendfsync": "always"}


class Topology(Protocol):
    """The servers of one scenario, and the lines to them."""

    # What apps are told.
    url: str
    # The server that takes the writes at this moment.
    primary: Server
    # The lines, where the scenario asked for some; what `url` says leads over them.
    proxies: list[Proxy]

    def close(self) -> None: ...


class Single:
    """One server, its data on disk."""

    def __init__(self, *, proxied: bool, **options: str | int) -> None:
        self.primary = Server(**(DURABLE | options)).start()
        self.proxies = [Proxy(self.primary.port)] if proxied else []
        self.url = self.proxies[0].url if proxied else self.primary.url

    def close(self) -> None:
        for proxy in self.proxies:
            proxy.close()
        with contextlib.suppress(ProcessLookupError):
            self.primary.close()


TOPOLOGIES: dict[str, Any] = {"single": Single}
