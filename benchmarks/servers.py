"""A Redis of our own for one run: a temporary folder, a Unix socket, ended by its pid."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import redis

from taskq.broker.embedded import find_binary

LOOPBACK = "127.0.0.1"
START_SECONDS = 15.0
STOP_SECONDS = 10.0
SLOTS = 16_384
# Nodes speak to each other on a port 10,000 above.
MOST_CLUSTER_PORT = (1 << 16) - 10_000


@contextlib.contextmanager
def own_server(*, loopback: bool = False) -> Iterator[str]:
    """Yield the URL of a server without persistence, which ends with the block.

    It listens on a Unix socket, or on a port of this machine alone: not every client speaks both.
    """
    binary = find_binary(os.environ.get("TASKQ_REDIS_SERVER"), path=True)
    with tempfile.TemporaryDirectory(prefix="tqb-") as name:
        folder = Path(name)
        port = _free_port() if loopback else 0
        process = _start(binary, folder, port)
        try:
            url = f"redis://{LOOPBACK}:{port}/0" if port else f"unix://{folder}/s"
            _wait_until_ready(url, process, folder)
            yield url
        finally:
            _stop(process)


@contextlib.contextmanager
def own_cluster(masters: int = 3) -> Iterator[str]:
    """Yield the URL of a cluster of masters without replicas, which ends with the block."""
    binary = find_binary(os.environ.get("TASKQ_REDIS_SERVER"), path=True)
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        for _ in range(masters):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tqb-")))
            ports.append(_free_port(below=MOST_CLUSTER_PORT))
            process = _start(binary, folder, ports[-1], {"cluster-enabled": "yes"})
            stack.callback(_stop, process)
            _wait_until_ready(_at(ports[-1]), process, folder)
        _join(ports)
        yield "redis+cluster://" + ",".join(f"{LOOPBACK}:{port}" for port in ports)


def _join(ports: Sequence[int]) -> None:
    """Make one cluster of these nodes, each with its share of the slots; wait until it serves."""
    share, deadline = -(-SLOTS // len(ports)), time.monotonic() + START_SECONDS
    for number, port in enumerate(ports):
        with connect(_at(port)) as client:
            slots = range(number * share, min((number + 1) * share, SLOTS))
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
            client.execute_command("CLUSTER ADDSLOTS", *slots)
            client.execute_command("CLUSTER MEET", LOOPBACK, ports[0])
    for port in ports:
        with connect(_at(port)) as client:
            while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
                if time.monotonic() > deadline:
                    msg = "the cluster did not become healthy"
                    raise RuntimeError(msg)
                time.sleep(0.05)


def _at(port: int) -> str:
    return f"redis://{LOOPBACK}:{port}/0"


def connect(url: str) -> Any:
    """Return a held client. RESP2, as taskq speaks it."""
    return redis.Redis.from_url(url, protocol=2)


def describe(url: str) -> str:
    """Return which server answers there, and its version."""
    with connect(url) as client:
        facts = client.info("server")
    name = facts.get("server_name", "redis")
    return f"{name} {facts.get(f'{name}_version', facts['redis_version'])}"


def used_memory(client: Any) -> int:
    """Return how many bytes the server uses."""
    return int(client.info("memory")["used_memory"])


def processor_seconds(client: Any) -> float:
    """Return the processor time that the server has used."""
    used = client.info("cpu")
    return float(used["used_cpu_user"] + used["used_cpu_sys"])


def remove(url: str, prefix: str) -> None:
    """Delete every key that begins so; other keys of the server are left alone."""
    with connect(url) as client:
        page: list[bytes] = []
        for key in client.scan_iter(match=prefix + "*", count=1000):
            page.append(key)
            if len(page) == 1000:
                client.unlink(*page)
                page.clear()
        if page:
            client.unlink(*page)


def _free_port(below: int = 1 << 16) -> int:
    while True:
        with socket.socket() as one:
            one.bind((LOOPBACK, 0))
            if (port := int(one.getsockname()[1])) < below:
                return port


def _start(
    binary: str, folder: Path, port: int, more: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    options = {
        "bind": LOOPBACK,
        "port": str(port),
        "unixsocket": f"{folder}/s",
        "unixsocketperm": "700",
        "dir": str(folder),
        "save": "",
        "appendonly": "no",
        "maxmemory-policy": "noeviction",
        **(more or {}),
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    with (folder / "log").open("wb") as log:
        # A session of its own: a Ctrl-C is for us, and we end the server.
        return subprocess.Popen(
            [binary, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    with connect(url) as client:
        while True:
            with contextlib.suppress(redis.ConnectionError):
                client.ping()
                return
            if process.poll() is not None or time.monotonic() > deadline:
                log = (folder / "log").read_text(encoding="utf-8", errors="replace")
                msg = f"the server did not start: {log[-800:]}"
                raise RuntimeError(msg)
            time.sleep(0.01)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
