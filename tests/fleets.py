"""Several servers that belong together: a master with replicas and sentinels; a cluster."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import redis
from redis.crc import key_slot

from tests.eventually import until
from tests.servers import CLUSTER_SLOTS, HOST, Server, ServerError, Tls

SERVICE = "main"
_until = functools.partial(until, seconds=60.0)
# Replicas begin at once, and a master keeps enough of its words for one that was away.
_REPLICATED: dict[str, str | int] = {"repl-diskless-sync-delay": 0, "repl-backlog-size": "16mb"}


class Followed:
    """One master and two replicas, over which nobody watches."""

    def __init__(self, binary: Path | None = None, **options: str | int) -> None:
        self.master, *self.replicas = (Server(binary, **(_REPLICATED | options)) for _ in range(3))

    def __enter__(self) -> Self:
        self.master.start()
        for replica in self.replicas:
            _tell(replica.start(), "REPLICAOF", HOST, self.master.port)
        self.settle()
        return self

    def __exit__(self, *_: object) -> None:
        for one in (*self.replicas, self.master):
            one.close()

    def settle(self) -> None:
        """Wait until the replicas follow."""
        _until(lambda: SentinelSet.replicas(self.master) == len(self.replicas))

    @property
    def url(self) -> str:
        return self.master.url


class Sentinel(Server):
    """One sentinel; its settings are in a file, which it rewrites."""

    def __init__(
        self, master: Server, binary: Path | None = None, *, down_after_ms: int, password: str = ""
    ) -> None:
        super().__init__(binary, master.tls, **({"requirepass": password} if password else {}))
        self._file = self.folder / "sentinel.conf"
        ports: dict[str, str | int] = {"port": self.port}
        if self.tls is not None:
            ports = self.tls.options(self.port)
        lines = [
            *(f"{name} {value}" for name, value in ports.items()),
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
        tls: Tls | None = None,
        *,
        down_after_ms: int = 600,
        sentinel_password: str = "",
        **options: str | int,
    ) -> None:
        if password := options.get("requirepass"):
            options["masterauth"] = password
        self.servers = [Server(binary, tls, **(_REPLICATED | options)) for _ in range(3)]
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
        tls, query = self.servers[0].tls, {"sentinel_password": self._sentinel_password}
        query["ssl_ca_certs"] = str(tls.authority) if tls else ""
        told = "&".join(f"{name}={value}" for name, value in query.items() if value)
        scheme = "rediss+sentinel" if tls else "redis+sentinel"
        return f"{scheme}://{credentials}{hosts}/{SERVICE}" + (f"?{told}" if told else "")

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
        _until(lambda: self.primary is not old or self._begins_to_fail_over())
        self.wait_for_another(old)

    def wait_for_another(self, old: Server) -> Server:
        """Wait until another server is the master; return it."""
        _until(lambda: self.primary is not old and role_of(self.primary) == "master")
        return self.primary

    def close(self) -> None:
        for one in (*self.sentinels, *self.servers):
            with suppress(ProcessLookupError):
                one.close()

    def _begins_to_fail_over(self) -> bool:
        try:
            _tell(self.sentinels[0], "SENTINEL", "FAILOVER", SERVICE)
        except redis.ResponseError as error:
            # For a second after its links broke it takes no replica for fit to be promoted; or
            # it took the master for dead meanwhile, and is at it.
            if any(word in str(error) for word in ("NOGOODSLAVE", "INPROG")):
                return False
            raise
        return True

    def _named_by(self, sentinel: Server) -> int:
        with suppress(redis.RedisError):
            host_and_port = _tell(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
            return int(host_and_port[1])
        return 0

    def _knows_all(self, sentinel: Server) -> bool:
        with sentinel.client() as client:
            state = client.sentinel_master(SERVICE)
            watched = [state, *client.sentinel_slaves(SERVICE)]
        away = ("is_sdown", "is_odown", "is_disconnected")
        up = not any(one[how] for one in watched for how in away)
        return up and state["num-slaves"] == 2 and state["num-other-sentinels"] == 2


class _Member(Server):
    """A node that is told nothing of slots."""

    def __init__(
        self, binary: Path | None = None, tls: Tls | None = None, **options: str | int
    ) -> None:
        cluster: dict[str, str | int] = {
            "cluster-enabled": "yes",
            "cluster-announce-ip": HOST,
            "cluster-node-timeout": 1000,
            **({"tls-cluster": "yes"} if tls else {}),
            # One shard that is away takes no other with it.
            "cluster-require-full-coverage": "no",
            "cluster-replica-validity-factor": 0,
        }
        super().__init__(binary, tls, **(_REPLICATED | cluster | options))

    @property
    def name(self) -> str:
        """What its cluster calls it."""
        reply = _tell(self, "CLUSTER", "MYID")
        return _text(reply)


class Cluster:
    """Three masters with a third of the slots each, and as many replicas as asked for."""

    def __init__(
        self,
        binary: Path | None = None,
        tls: Tls | None = None,
        *,
        replicas: int = 0,
        **options: str | int,
    ) -> None:
        if password := options.get("requirepass"):
            options["masterauth"] = password
        self.nodes = [_Member(binary, tls, **options) for _ in range(3 + 3 * replicas)]
        # Which of them have slots now.
        self.masters = self.nodes[:3]

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> Self:
        for node in self.nodes:
            node.start()
        third = -(-CLUSTER_SLOTS // 3)
        for number, node in enumerate(self.masters):
            _tell(node, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            slots = range(number * third, min((number + 1) * third, CLUSTER_SLOTS))
            _tell(node, "CLUSTER", "ADDSLOTS", *slots)
        for node in self.nodes[1:]:
            _tell(self.nodes[0], "CLUSTER", "MEET", HOST, node.port)
        _until(lambda: all(self._count(node) == len(self.nodes) for node in self.nodes))
        for number, node in enumerate(self.nodes[3:]):
            _tell(node, "CLUSTER", "REPLICATE", self.masters[number % 3].name)
        self.settle()
        return self

    def settle(self) -> None:
        """Wait until all nodes agree, and replicas follow."""
        _until(lambda: all(map(self._is_well, self.nodes)))
        wanted = (len(self.nodes) - 3) // 3
        _until(lambda: all(SentinelSet.replicas(node) == wanted for node in self._serving()))

    @property
    def url(self) -> str:
        password = self.nodes[0].password
        credentials = f":{password}@" if password else ""
        hosts, tls = ",".join(f"{HOST}:{one.port}" for one in self.nodes[:2]), self.nodes[0].tls
        if tls is not None:
            return f"rediss+cluster://{credentials}{hosts}/?ssl_ca_certs={tls.authority}"
        return f"redis+cluster://{credentials}{hosts}/"

    def owner(self, key: str, *, but: Server | None = None) -> Server:
        """Return the node that has a key's slot, by what another node than `but` says."""
        slot = key_slot(key.encode())
        for node in self.nodes:
            if node is but:
                continue
            with suppress(redis.RedisError):
                for low, high, place, *_ in _tell(node, "CLUSTER", "SLOTS"):
                    if low <= slot <= high:
                        return next(one for one in self.nodes if one.port == place[1])
        msg = f"nobody has the slot {slot}"
        raise ServerError(msg)

    def master_of(self, node: Server) -> Server | None:
        """Return the master that a replica follows."""
        port = info_of(node, "replication").get("master_port")
        return next((one for one in self.nodes if one.port == port), None)

    def wait_for_another(self, key: str, old: Server) -> Server:
        """Wait until another node has a key's slot; return it."""

        def another() -> Server | None:
            new = self.owner(key, but=old)
            return new if new is not old and role_of(new) == "master" else None

        return _until(another) or old

    def move(
        self, key: str, between: Callable[[], None] = lambda: None, target: Server | None = None
    ) -> None:
        """Move a key's slot to another master, key by key; `between`: with half of them there."""
        slot, source = key_slot(key.encode()), self.owner(key)
        target = target or next(one for one in self.masters if one is not source)
        _tell(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", source.name)
        _tell(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", target.name)
        names = _tell(source, "CLUSTER", "GETKEYSINSLOT", slot, 100_000)
        _migrate(source, target, names[: len(names) // 2])
        between()
        while names := _tell(source, "CLUSTER", "GETKEYSINSLOT", slot, 1_000):
            _migrate(source, target, names)
        for node in (target, source):
            _tell(node, "CLUSTER", "SETSLOT", slot, "NODE", target.name)

    def move_at_once(self, key: str) -> bool:
        """Move a key's slot to another master as a whole; False where servers cannot do that."""
        slot, source = key_slot(key.encode()), self.owner(key)
        target = next(one for one in self.masters if one is not source)
        words = ("SLOTSRANGE", slot, slot, "NODE", target.name)
        try:
            _tell(source, "CLUSTER", "MIGRATESLOTS", *words)
        except redis.ResponseError:
            return False
        _until(lambda: self.owner(key) is target)
        return True

    def fail_over(self, key: str) -> None:
        """Let a replica take over from the master of a key's slot, as an operator does."""
        old = self.owner(key)
        replica = next(one for one in self.nodes if self.master_of(one) is old)
        _tell(replica, "CLUSTER", "FAILOVER")
        _until(lambda: self.owner(key) is replica and role_of(replica) == "master")

    def close(self) -> None:
        for node in self.nodes:
            with suppress(ProcessLookupError):
                node.close()

    def _serving(self) -> list[Server]:
        return [node for node in self.nodes if role_of(node) == "master"]

    @staticmethod
    def _count(node: Server) -> int:
        return len(_text(_tell(node, "CLUSTER", "NODES")).strip().splitlines())

    def _is_well(self, node: Server) -> bool:
        lines = _text(_tell(node, "CLUSTER", "NODES")).strip().splitlines()
        flags = [line.split()[2] for line in lines]
        states = [line.split()[7] for line in lines]
        well = "cluster_state:ok" in _text(_tell(node, "CLUSTER", "INFO"))
        sure = not any("fail" in one or "handshake" in one for one in flags)
        return well and sure and set(states) == {"connected"}


def _migrate(source: Server, target: Server, names: Sequence[bytes]) -> None:
    if names:
        words = ["AUTH", source.password] if source.password else []
        _tell(source, "MIGRATE", HOST, target.port, "", 0, 5_000, *words, "KEYS", *names)


def _text(reply: Any) -> str:
    """Return what redis-py's versions hand over as bytes or as text."""
    return reply.decode() if isinstance(reply, bytes) else str(reply)


def calls_of(server: Server) -> int:
    """Return how many script calls and bells a server was sent so far."""
    stats = info_of(server, "commandstats")
    names = ("cmdstat_evalsha", "cmdstat_eval", "cmdstat_blpop")
    return sum(int(stats[name]["calls"]) for name in names if name in stats)


def info_of(server: Server, section: str) -> dict[str, Any]:
    """Return what a server says of itself; nothing where it is away."""
    with server.client() as client, suppress(redis.RedisError):
        info: dict[str, Any] = client.info(section)
        return info
    return {}


def role_of(server: Server) -> str:
    return str(info_of(server, "replication").get("role", ""))


def _tell(server: Server, *words: str | int | bytes) -> Any:
    # As it came: what redis-py makes of replies differs between versions.
    with server.client() as client:
        client.response_callbacks.clear()
        return client.execute_command(*words)
