"""Where a scenario's Redis is: what can be killed, frozen, and cut off from the rest.

A scenario knows only this face. Another kind of Redis is another class and another line in
`TOPOLOGIES`.
"""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

from tests.failure.proxy import Proxy
from tests.fleets import Cluster, SentinelSet
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
    # All servers, where there are several.
    fleet: Any
    # A key of the queue `default`, by which its node is found.
    key: str

    def kill_primary(self) -> Server:
        """Kill the server that takes the writes; return once another one does, if there is one."""
        ...

    def close(self) -> None: ...


class Single:
    """One server, its data on disk."""

    fleet: Any = None
    key = ""

    def __init__(self, *, proxied: bool, **options: str | int) -> None:
        self.primary = Server(**(DURABLE | options)).start()
        self.proxies = [Proxy(self.primary.port)] if proxied else []
        self.url = self.proxies[0].url if proxied else self.primary.url

    def kill_primary(self) -> Server:
        self.primary.kill()
        return self.primary.start()

    def close(self) -> None:
        for proxy in self.proxies:
            proxy.close()
        with contextlib.suppress(ProcessLookupError):
            self.primary.close()


class Sentinel:
    """A master, two replicas and three sentinels. What is killed comes back as a replica."""

    key = ""

    def __init__(self, *, proxied: bool, **options: str | int) -> None:
        assert not proxied, "sentinels name the servers, not proxies"
        self.fleet = SentinelSet(**(DURABLE | options)).start()
        self.proxies: list[Proxy] = []
        self.url = self.fleet.url

    @property
    def primary(self) -> Server:
        return self.fleet.primary

    def kill_primary(self) -> Server:
        old = self.fleet.primary
        old.kill()
        return self.fleet.wait_for_another(old)

    def close(self) -> None:
        self.fleet.close()


class Shards:
    """Three masters and a replica of each; `primary` is the node that has the queue `default`."""

    def __init__(self, *, proxied: bool, **options: str | int) -> None:
        assert not proxied, "the nodes of a cluster name the servers, not proxies"
        self.fleet = Cluster(replicas=1, **(DURABLE | options)).start()
        self.proxies: list[Proxy] = []
        self.url = self.fleet.url
        # A key of the queue that is looked at; the scene tells its name.
        self.key = ""

    @property
    def primary(self) -> Server:
        return self.fleet.owner(self.key)

    def kill_primary(self) -> Server:
        old = self.primary
        old.kill()
        return self.fleet.wait_for_another(self.key, old)

    def close(self) -> None:
        self.fleet.close()


TOPOLOGIES: dict[str, Any] = {"single": Single, "sentinel": Sentinel, "cluster": Shards}
