"""Several servers that belong together: a master with replicas and sentinels."""

from __future__ import annotations

import functools
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import redis

from tests.eventually import until
from tests.servers import HOST, Server, ServerError

SERVICE = "main"
_until = functools.partial(until, seconds=20.0)
# Replicas begin at once, and a master keeps enough of its words for one that was away.
_REPLICATED: dict[str, str | int] = {"repl-diskless-sync-delay": 0, "repl-backlog-size": "16mb"}


class Sentinel(Server):
    """One sentinel; its settings are in a file, which it rewrites."""

    def __init__(
        self, master: Server, binary: Path | None = None, *, down_after_ms: int, password: str = ""
    ) -> None:
        super().__init__(binary, **({"requirepass": password} if password else {}))
        self._file = self.folder / "sentinel.conf"
        lines = [
            f"port {self.port}",
            f"bind {HOST}",
            f"dir {self.folder}",
            f"sentinel monitor {SERVICE} {HOST} {master.port} 2",
            f"sentinel down-after-milliseconds {SERVICE} {down_after_ms}",
            f"sentinel failover-timeout {SERVICE} 4000",
            f"sentinel parallel-syncs {SERVICE} 2",
        ]
        if password:
            lines += [f"requirepass {password}", f"sentinel sentinel-pass {password}"]
        if master.password:
            lines.append(f"sentinel auth-pass {SERVICE} {master.password}")
        self._file.write_text("\n".join(lines) + "\n", encoding="ascii")

    def _command(self) -> list[str]:
        return [str(self.binary), str(self._file), "--sentinel"]


class SentinelSet:
    """One master, two replicas, three sentinels. Replicas follow before it is handed over."""

    def __init__(
        self,
        binary: Path | None = None,
        *,
        down_after_ms: int = 600,
        sentinel_password: str = "",
        **options: str | int,
    ) -> None:
        if password := options.get("requirepass"):
            options["masterauth"] = password
        self.servers = [Server(binary, **(_REPLICATED | options)) for _ in range(3)]
        self.sentinels = [
            Sentinel(
                self.servers[0], binary, down_after_ms=down_after_ms, password=sentinel_password
            )
            for _ in range(3)
        ]
        self._sentinel_password = sentinel_password

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> Self:
        for server in self.servers:
            server.start()
        for replica in self.servers[1:]:
            _tell(replica, "REPLICAOF", HOST, self.servers[0].port)
        _until(lambda: self.replicas(self.servers[0]) == 2)
        for sentinel in self.sentinels:
            sentinel.start()
        self.settle()
        return self

    def settle(self) -> None:
        """Wait until all is as it was at the start, whoever the master is now."""
        _until(lambda: all(map(self._knows_all, self.sentinels)))
        _until(lambda: self.replicas(self.primary) == 2)

    @property
    def url(self) -> str:
        hosts = ",".join(f"{HOST}:{one.port}" for one in self.sentinels)
        password = self.servers[0].password
        credentials = f":{password}@" if password else ""
        asked = self._sentinel_password
        return f"redis+sentinel://{credentials}{hosts}/{SERVICE}" + (
            f"?sentinel_password={asked}" if asked else ""
        )

    @property
    def primary(self) -> Server:
        """The master that most sentinels name."""
        ports = [port for one in self.sentinels if (port := self._named_by(one))]
        if not ports:
            msg = "no sentinel answers"
            raise ServerError(msg)
        most = max(set(ports), key=ports.count)
        return next(one for one in self.servers if one.port == most)

    @staticmethod
    def replicas(master: Server) -> int:
        """Return how many replicas a server has that have all of its data."""
        info = info_of(master, "replication")
        return sum(
            isinstance(one, dict) and one.get("state") == "online"
            for name, one in info.items()
            if name.startswith("slave")
        )

    def fail_over(self) -> None:
        """Let the sentinels choose another master, as an operator does; wait for it."""
        old = self.primary
        _tell(self.sentinels[0], "SENTINEL", "FAILOVER", SERVICE)
        self.wait_for_another(old)

    def wait_for_another(self, old: Server) -> Server:
        """Wait until another server is the master; return it."""
        _until(lambda: self.primary is not old and _role(self.primary) == "master")
        return self.primary

    def close(self) -> None:
        for one in (*self.sentinels, *self.servers):
            with suppress(ProcessLookupError):
                one.close()

    def _named_by(self, sentinel: Server) -> int:
        with suppress(redis.RedisError):
            host_and_port = _tell(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
            return int(host_and_port[1])
        return 0

    def _knows_all(self, sentinel: Server) -> bool:
        with sentinel.client() as client:
            state = client.sentinel_master(SERVICE)
        up = not (state["is_sdown"] or state["is_odown"])
        return up and state["num-slaves"] == 2 and state["num-other-sentinels"] == 2


def info_of(server: Server, section: str) -> dict[str, Any]:
    """Return what a server says of itself; nothing where it is away."""
    with server.client() as client, suppress(redis.RedisError):
        info: dict[str, Any] = client.info(section)
        return info
    return {}


def _role(server: Server) -> str:
    return str(info_of(server, "replication").get("role", ""))


def _tell(server: Server, *words: str | int) -> Any:
    with server.client() as client:
        return client.execute_command(*words)
