"""The conformance suite: each test with both drivers and on every kind of Redis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from taskq.errors import BrokerError
from tests.broker.drivers import DRIVERS, Blocking, Driver, OneSlot
from tests.broker.queues import FullQueue, Queue
from tests.fleets import Cluster, SentinelSet
from tests.servers import Server

# Not each by each: a script does the same whoever sends it.
PLACES = (
    "server-sync",
    "server-aio",
    "memory-sync",
    "node-aio",
    *(pytest.param(one, marks=pytest.mark.slow) for one in ("sentinels-aio", "cluster-sync")),
)


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def backend(place: str) -> str:
    return place.partition("-")[0]


@pytest.fixture
def url(backend: str, namespace: str, request: pytest.FixtureRequest) -> str:
    """Where the backend is. The cluster of one node is spoken to as any server."""
    if backend == "memory":
        return f"memory://{namespace}"
    if backend in ("sentinels", "cluster"):
        fleet: SentinelSet | Cluster = request.getfixturevalue(backend)
        return fleet.url
    node: Server = request.getfixturevalue("server" if backend == "server" else "cluster_node")
    return f"redis://127.0.0.1:{node.port}"


@pytest.fixture
def driver(place: str, backend: str, url: str) -> Iterator[Driver]:
    driver = DRIVERS[place.partition("-")[2]](url)
    yield OneSlot(driver) if backend == "node" and _takes_shebangs(driver) else driver
    driver.close()


def _takes_shebangs(driver: Driver) -> bool:
    """Tell whether the server knows scripts that begin with `#!lua`; Redis 6.2 does not."""
    try:
        driver.call("EVAL", "#!lua\nreturn 1", 1, "x")
    except BrokerError:
        return False
    return True


@pytest.fixture
def queue(driver: Driver, url: str, namespace: str) -> Iterator[Queue]:
    """A queue of the test's own; its books are checked when the test is over."""
    queue = Queue(driver, url, namespace)
    yield queue
    queue.close()
    queue.audit()
    queue.clear()


@pytest.fixture
def full(binary: Path, namespace: str) -> Iterator[FullQueue]:
    """A queue on a server of its own, of each kind found; `fill()` leaves it no memory."""
    with Server(binary) as server:
        driver = Blocking(server.url)
        yield FullQueue(driver, server.url, namespace)
        driver.close()
