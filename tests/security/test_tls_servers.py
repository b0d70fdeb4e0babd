"""Real servers that speak TLS and nothing else: one, a master with sentinels, a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import taskq
from taskq import BrokerError, BrokerUnavailable, TaskQ
from taskq.broker import keys
from tests.authority import Authority
from tests.cli.conftest import SECRET, Shell
from tests.fleets import Cluster, SentinelSet
from tests.servers import Server, Tls, find_binaries, speaks_tls

pytestmark = pytest.mark.slow

PASSWORD = "hunter2-and-more"
HERE = "DNS:localhost,IP:127.0.0.1"
Place = Server | SentinelSet | Cluster

FLEETS: dict[str, Callable[..., Any]] = {
    "server": Server,
    "sentinels": SentinelSet,
    "cluster": lambda binary, tls, **options: Cluster(binary, tls, replicas=1, **options),
}


@pytest.fixture(scope="module")
def tls_binary() -> Path:
    if NAMED:
        assert speaks_tls(Path(NAMED)), f"{NAMED} speaks no TLS"
        return Path(NAMED)
    for binary in BINARIES:
        if speaks_tls(binary):
            return binary
    pytest.skip("no server here was built with TLS; TASKQ_TEST_TLS_SERVER names one")


# Looked up before a test's environment is cleaned: a variable may name one.
NAMED = os.environ.get("TASKQ_TEST_TLS_SERVER")
BINARIES = list(find_binaries().values())


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "ours")


def started(kind: str, binary: Path, authority: Authority, names: str) -> Any:
    tls = Tls(authority.pem, *authority.issue(names))
    return FLEETS[kind](binary, tls, requirepass=PASSWORD)


@pytest.fixture(scope="module", params=list(FLEETS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def place(kind: str, tls_binary: Path, authority: Authority) -> Iterator[Place]:
    with started(kind, tls_binary, authority, HERE) as running:
        yield running


@pytest.fixture(scope="module")
def elsewhere(kind: str, tls_binary: Path, authority: Authority) -> Iterator[Place]:
    """The same, with certificates of another name."""
    with started(kind, tls_binary, authority, "DNS:redis.example.com") as running:
        yield running


@contextlib.contextmanager
def app_at(url: str, name: str = "shop", **settings: Any) -> Iterator[TaskQ]:
    app = TaskQ(name, url=url, secret=SECRET, queues=["mail"], **settings)
    yield app
    app.close()


def told_both_ways(url: str) -> list[BrokerError]:
    """Return what a blocking and an awaited call raise; long before their deadline."""
    errors: list[BrokerError] = []

    async def awaited(app: TaskQ) -> None:
        async with app:
            await app.aenqueue(app._unchecked("add", (1, 2), None, {}))

    for send in (lambda app: app.send_task("add", (1, 2)), lambda app: asyncio.run(awaited(app))):
        with app_at(url, enqueue_deadline=100_000) as app, pytest.raises(BrokerError) as told:
            send(app)
        errors.append(told.value)
    for error in errors:
        assert PASSWORD not in str(error)
        assert not isinstance(error, BrokerUnavailable), "time does not mend it"
    return errors


def test_workers_producers_and_futures_speak_tls(
    place: Place, tmp_path: Path, shell_of: Callable[[Path, str], Shell]
) -> None:
    shell = shell_of(tmp_path, place.url)
    worker = shell.worker("proj", "-p", "2")
    with app_at(place.url, shell.name) as app:

        async def awaited() -> list[Any]:
            async with app:
                sent = [await app.aenqueue(call(x)) for x in range(20)]
                return [await one.aget(timeout=30) for one in sent]

        def call(x: int) -> Any:
            return app._unchecked("proj.add", (x, 1), None, {"queue": ("default", "mail")[x % 2]})

        wanted = [x + 1 for x in range(20)]
        assert taskq.gather(app.enqueue_many(map(call, range(20))), timeout=30) == wanted
        assert asyncio.run(awaited()) == wanted
        later = app.send_task("proj.add", (1, 1), countdown=0.2)
        assert later.get(timeout=30) == 2
    doctor = shell.say("doctor", "-A", "proj")
    assert doctor.returncode == 0, doctor.stdout
    assert "TLS, verified" in doctor.stdout
    clustered = "+cluster|slots" in shell.say("acl", "-A", "proj", "worker").stdout
    assert clustered == isinstance(place, Cluster)
    assert worker.stop() == 0
    assert PASSWORD not in worker.log + doctor.stdout


def test_another_authority_is_told_at_once(place: Place, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    for query in ("", f"?ssl_ca_certs={other.pem}"):
        url = place.url.partition("?")[0] + query
        for error in told_both_ways(url):
            assert "CERTIFICATE_VERIFY_FAILED" in str(error)
            assert "ssl_ca_certs=" in str(error)
    done = Shell(tmp_path, place.url.partition("?")[0]).say("doctor", "-A", "proj")
    assert done.returncode == 1
    assert "ssl_ca_certs=" in done.stdout
    assert PASSWORD not in done.stdout


def test_another_host_name_is_told_at_once(elsewhere: Place) -> None:
    for error in told_both_ways(elsewhere.url):
        assert "mismatch" in str(error)
        assert "must name the host" in str(error)


@pytest.mark.parametrize("kind", ["sentinels", "cluster"], indirect=True, scope="module")
def test_a_failover_by_tls_is_followed(
    place: SentinelSet | Cluster, tmp_path: Path, shell_of: Callable[[Path, str], Shell]
) -> None:
    shell = shell_of(tmp_path, place.url)
    worker = shell.worker("proj", "-p", "1")
    with app_at(place.url, shell.name, enqueue_deadline=60) as app:
        assert app.send_task("proj.add", (1, 1)).get(timeout=30) == 2
        place.fail_over(*([f"{keys.base(shell.name, 'default')}x"] * isinstance(place, Cluster)))
        place.settle()
        assert app.send_task("proj.add", (2, 1)).get(timeout=60) == 3
    assert worker.stop() == 0
